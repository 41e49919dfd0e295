"""The baseline: torch.utils.data.DataLoader over the packed file, in worker processes."""

from __future__ import annotations

import copy
import errno
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Listener
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from fast_train.common.text import one_line
from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.loaders.base import Loader, LoaderOptions
from fast_train.pipeline.loaders.batch import Batch, OwnBatch
from fast_train.pipeline.loaders.image_files import ImageFiles

T = TypeVar("T")

# A forked worker, ours or a peer's, collects nothing that its parent left: to end another library's object may mean to
# wait for its threads, of which a fork has none. Where processes are not forked there is no such function.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=gc.freeze)

DEFAULT_WORKERS = 4
# For a batch. A worker that is stopped, or whose disk does not answer, never fails by itself.
_PATIENCE_SECONDS = 120
# For workers to end by themselves when the loader is closed.
_LEAVE_SECONDS = 1.0
_REMEDY = "give fewer --workers, or --loader resident, ffcv or dali"


class PackedDataset(Dataset[tuple[Tensor, int, int]]):
    """Image i of a split: (uint8 [H, W, C], label, i). The file is mapped, so workers share its pages."""

    def __init__(self, prepared: PreparedSet, split: str) -> None:
        self._packed = prepared.packed(split)

    def __len__(self) -> int:
        return len(self._packed.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return torch.tensor(self._packed.images[index]), int(self._packed.labels[index]), index


class FileDataset(Dataset[Any]):
    """Images of a split that keep their own shapes, decoded a batch at a time."""

    def __init__(self, files: ImageFiles) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files.shapes.labels)

    def __getitems__(self, indices: list[int]) -> list[Tensor | PreparedSetError]:
        """What the DataLoader asks for: the pixels of a batch, one image after the other, uint8 [total], and int64 [N],
        their numbers; or instead of both what can't be decoded, since torch would raise it with its trace."""
        numbers = torch.tensor(indices)
        data = torch.empty(int(self._files.shapes.sizes[numbers].sum()), dtype=torch.uint8)
        try:
            self._files.decode(numbers.numpy(), data.numpy())
        except PreparedSetError as error:
            return [error]
        return [data, numbers]


def _as_it_is(batch: T) -> T:
    """Of a dataset that gives whole batches."""
    return batch


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C, a hang-up and a job's end reach the whole process group; the training finishes its step with the workers
    alive."""
    del worker
    # A parent that is stopped in the middle of a hand-over makes the thread that serves it print a trace; errors of the
    # loading itself take another way.
    sys.excepthook = lambda *_: None
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_the_parent, daemon=True).start()


@contextmanager
def _as_we_want_workers() -> Iterator[None]:
    """Without torch's advice against more workers than cores: they are what somebody asked for. Without its handler of
    SIGCHLD, which would raise a worker's end in the middle of a step: whoever waits for a batch is told of it."""
    handler = signal.getsignal(signal.SIGCHLD)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)


class _Flag:
    """What torch needs of an event, without an event's lock: where a worker is killed with it in its hands, as for lack
    of memory, the parent waits for it for ever."""

    def __init__(self, context: BaseContext) -> None:
        self._value = context.RawValue("b", 0)

    def set(self) -> None:
        self._value.value = 1

    def is_set(self) -> bool:
        return bool(self._value.value)


def _context() -> BaseContext:
    """The usual way to start processes, with flags for events."""
    context = copy.copy(multiprocessing.get_context())
    vars(context)["Event"] = partial(_Flag, context)
    return context


class _Packed:
    """A worker's batch, packed for its way where an error reaches the parent: in the thread that sends it on, an error
    is printed, and the parent waits for ever."""

    def __init__(self, batch: Any) -> None:
        self._data = bytes(ForkingPickler.dumps(batch))

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._data,)


def _packed(collate: Callable[[Any], Any], samples: Any) -> _Packed:
    return _Packed(collate(samples))


def check_sockets() -> None:
    """ValueError where workers could not hand over their batches: they do so by sockets, which are files in the folder
    for temporary ones."""
    try:
        Listener().close()
    except OSError as error:
        raise ValueError(
            f"loading processes need sockets in the folder for temporary files: {one_line(error)}; set TMPDIR to "
            "another folder, of a short name, or give --workers 0 or another --loader"
        ) from error


def _obey_the_parent() -> None:
    """SIGTERM is how the parent ends a worker that does not answer; from anyone else it is not for this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)


def _do_nothing() -> None: ...


def _kill(workers: Iterable[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()


class _Patience:
    """In the block, what `wait_for` waits for may take `_PATIENCE_SECONDS`; then ``give_up`` is called, from another
    thread. torch's own time-out does not cover the connection over which a batch's memory is handed on."""

    def __init__(self, give_up: Callable[[], None]) -> None:
        self._give_up, self._ended = give_up, threading.Event()
        self._since: float | None = None

    def __enter__(self) -> _Patience:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        # The thread ends a little later, and must not hold what it would have called until then.
        self._give_up = _do_nothing

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            since = self._since
            if since is not None and time.monotonic() - since > _PATIENCE_SECONDS:
                self._give_up()
                return

    def wait_for(self, work: Callable[[], T]) -> T:
        self._since = time.monotonic()
        try:
            return work()
        finally:
            self._since = None


class TorchLoader(Loader):
    """torch's DataLoader with persistent workers; pinned memory and asynchronous copies to a CUDA device."""

    # Batches of workers lie in shared memory, which holds a file open for each tensor.
    lends_buffers: ClassVar[bool] = True

    def __init__(self, prepared: PreparedSet, split: str, options: LoaderOptions) -> None:
        super().__init__(prepared, split, options)
        # Files take long to decode; of images that are not encoded a few processes bring more than enough.
        most = self.spare_cores() if self.largest else min(DEFAULT_WORKERS, self.spare_cores())
        workers = most if self.workers is None else self.workers
        if workers:
            check_sockets()
        self._workers: set[BaseProcess] = set()
        self._silent = False
        # Those of the epoch. The workers outlive it, so the list changes in place.
        self._indices: list[int] = []
        self._files = ImageFiles(prepared, split) if self.largest else None
        collate: Callable[[Any], Any] = _as_it_is if self._files else default_collate
        with _as_we_want_workers():
            self._loader: DataLoader[Any] | None = DataLoader(
                FileDataset(self._files) if self._files else PackedDataset(prepared, split),
                batch_size=self.batch_size,
                sampler=self._indices,
                num_workers=workers,
                multiprocessing_context=_context() if workers else None,
                persistent_workers=workers > 0,
                collate_fn=partial(_packed, collate) if workers else collate,
                pin_memory=self.device.type == "cuda",
                worker_init_fn=_leave_signals_to_the_parent if workers else None,
                # The workers' seeds, which nothing here depends on, would else come out of the process's generator.
                generator=torch.Generator(),
            )

    def _batches(self, start: int) -> Generator[OwnBatch]:
        if self._loader is None:
            raise self._closed()
        self._indices[:] = self.order()[start * self.batch_size :].tolist()
        others = set(multiprocessing.active_children())
        with _as_we_want_workers():
            batches = iter(self._loader)
        self._workers |= set(multiprocessing.active_children()) - others
        with _Patience(self._give_up) as patience:
            while (batch := patience.wait_for(partial(next, batches, None))) is not None:
                yield self._sent(batch)

    def _sent(self, batch: list[Any]) -> OwnBatch:
        """What a dataset gave, on the device."""
        if isinstance(batch[0], PreparedSetError):
            raise batch[0]
        if self._files is None:
            return Batch(*(tensor.to(self.device, non_blocking=True) for tensor in batch))
        return self._files.shapes.batch(*batch).to(self.device, self.data_length)

    def _give_up(self) -> None:
        self._silent = True
        _kill(self._workers)

    def failure(self, error: Exception) -> str:
        if self._silent:
            silent = f"the loading processes have sent nothing for {_PATIENCE_SECONDS} s"
            return f"{silent}; are they stopped? If not, {_REMEDY}"
        signals = {-worker.exitcode for worker in self._workers if worker.exitcode}
        if signals & {signal.SIGKILL, signal.SIGBUS}:
            lack = "shared memory (/dev/shm)" if signal.SIGBUS in signals else "memory"
            return f"a loading process was killed, likely for lack of {lack}; {_REMEDY}"
        if os.strerror(errno.ENOSPC) in str(error):
            return f"shared memory (/dev/shm) has no room for the batches of the loading processes; {_REMEDY}"
        # A worker's error comes with its trace.
        reason = str(error).splitlines()[-1] if "Traceback" in str(error) else one_line(error)
        return f"a loading process failed: {reason}; {_REMEDY}"

    def close(self) -> None:
        super().close()
        workers, self._workers = self._workers, set()
        # They end when nothing refers to the DataLoader any more; torch then waits seconds for each that is stopped.
        late = threading.Timer(_LEAVE_SECONDS, _kill, [workers])
        if workers:
            late.start()
        self._loader = None
        if self._files is not None:
            self._files.close()
        late.cancel()
        _kill(workers)
