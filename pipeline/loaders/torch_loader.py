"""The baseline: torch.utils.data.DataLoader over the packed file, one image a call, in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.loaders.base import Loader, LoaderOptions
from fast_train.pipeline.loaders.batch import Batch

DEFAULT_WORKERS = 4


class PackedDataset(Dataset[tuple[Tensor, int, int]]):
    """Image i of a split: (uint8 [H, W, C], label, i). The file is mapped, so workers share its pages."""

    def __init__(self, prepared: PreparedSet, split: str) -> None:
        self._packed = prepared.packed(split)

    def __len__(self) -> int:
        return len(self._packed.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return torch.tensor(self._packed.images[index]), int(self._packed.labels[index]), index


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
def _more_workers_than_cores() -> Iterator[None]:
    """Without torch's advice against them: they are what somebody asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        yield


def _obey_the_parent() -> None:
    """SIGTERM is how the parent ends a worker that does not answer; from anyone else it is not for this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)


class TorchLoader(Loader):
    """torch's DataLoader with persistent workers; pinned memory and asynchronous copies to a CUDA device."""

    # Batches of workers lie in shared memory, which holds a file open for each tensor.
    lends_buffers: ClassVar[bool] = True

    def __init__(self, prepared: PreparedSet, split: str, options: LoaderOptions) -> None:
        super().__init__(prepared, split, options)
        workers = min(DEFAULT_WORKERS, self.spare_cores()) if self.workers is None else self.workers
        # Those of the epoch. The workers outlive it, so the list changes in place.
        self._indices: list[int] = []
        with _more_workers_than_cores():
            self._loader: DataLoader[tuple[Tensor, int, int]] | None = DataLoader(
                PackedDataset(prepared, split),
                batch_size=self.batch_size,
                sampler=self._indices,
                num_workers=workers,
                persistent_workers=workers > 0,
                pin_memory=self.device.type == "cuda",
                worker_init_fn=_leave_signals_to_the_parent if workers else None,
                # The workers' seeds, which nothing here depends on, would else come out of the process's generator.
                generator=torch.Generator(),
            )

    def _batches(self, start: int) -> Generator[Batch]:
        if self._loader is None:
            raise self._closed()
        self._indices[:] = self.order()[start * self.batch_size :].tolist()
        with _more_workers_than_cores():
            batches = iter(self._loader)
        for images, labels, indices in batches:
            yield Batch(*(t.to(self.device, non_blocking=True) for t in (images, labels, indices)))

    def close(self) -> None:
        super().close()
        # Its workers end when nothing refers to it any more.
        self._loader = None
