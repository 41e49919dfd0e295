"""What every loader is: batches of raw bytes, in an order that is a pure function of (seed, epoch)."""

from __future__ import annotations

import importlib
import inspect
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from fast_train.common.cores import usable_cores
from fast_train.common.text import one_line, show_path
from fast_train.data_prep.errors import ANEW, PreparedSetError
from fast_train.data_prep.manifest import PreparedSet
from fast_train.kernels.order import epoch_order
from fast_train.kernels.spec import check_seed
from fast_train.pipeline.config.settings import ResidentMemory
from fast_train.pipeline.errors import LoadingError
from fast_train.pipeline.loaders import turbojpeg
from fast_train.pipeline.loaders.batch import CHANNELS, AnyBatch, Batch, OwnBatch, RaggedBatch

# What a position in the order depends on, and the user's name for it.
_KEPT = {
    "seed": "seed",
    "batch_size": "batch size",
    "count": "split size",
    "shards": "number of --shard-resident ranks",
}
# Processes or threads: many more than there are cores only take memory, and in the end the machine.
_MOST_WORKERS = 1024
# Of an error of a library, in letters: DALI adds its stack.
_LONGEST_REASON = 300
#: Shows how far something is, from a label and a total: called with how much more is done.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
# What a pass goes through.
T = TypeVar("T", bound=AnyBatch)


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """What all loaders are built with. train, device: see `Loader`. seed: of the order. workers: loading processes or
    threads, None for what suits the loader. resident_memory, shard: see `ResidentLoader`. progress: shows what takes
    long before the first batch. rank, ranks: which part of each batch is this loader's, of how many. Raises ValueError
    for what is out of range."""

    batch_size: int
    seed: int
    device: torch.device
    train: bool
    workers: int | None
    resident_memory: ResidentMemory = "auto"
    progress: Progress | None = None
    rank: int = 0
    ranks: int = 1
    shard: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "seed", "workers"):
            value = getattr(self, name)
            if not isinstance(value, Integral) and (value is not None or name != "workers"):
                raise ValueError(f"{name} is {value!r}; give a whole number")
        check_seed(self.seed)
        if self.batch_size < 1:
            raise ValueError(f"batch size {self.batch_size} is out of range; give 1 or more")
        if self.train and self.batch_size % self.ranks:
            raise ValueError(
                f"a batch of {self.batch_size} images can't be shared out among {self.ranks} ranks; give a "
                f"--batch-size that divides by {self.ranks}"
            )
        if self.workers is not None and not 0 <= self.workers <= _MOST_WORKERS:
            raise ValueError(f"{self.workers} workers are out of range; give 0 to {_MOST_WORKERS}")


class Loader(ABC):
    """Batches of one split of a prepared set, on ``device``.

    Training (``train=True``) goes through the epoch's permutation in batches of one fixed size, and leaves out the
    remainder after the last whole batch. Evaluation sees every image exactly once, in the order of the file, and its
    last batch may be smaller.

    On several ranks each has a loader, which gives its part of every batch in training, and in evaluation its part of
    the images. Where it stands in an epoch (`state_dict`) does not depend on how many they are.

    Iterating starts at the epoch's first batch, or, once, where `load_state_dict` put it. A loader makes one pass at a
    time: another pass, another epoch or closing ends the one before, and its iterator then raises ValueError. It raises
    LoadingError where no more batches can come. Building one raises ValueError for a training split smaller than one
    batch.
    """

    #: The files it reads, as `prep-data --formats` calls them.
    format: ClassVar[str] = "packed"
    #: The module behind it, if that imports a library which is optional, and what to say where it can't be imported.
    optional: ClassVar[tuple[str, str] | None] = None
    #: True: it reads no file any more once it is built.
    holds_all: ClassVar[bool] = False
    #: True: a batch from `feed` lies in memory that is overwritten soon or scarce; iterating gives copies.
    lends_buffers: ClassVar[bool] = False

    def __init__(self, prepared: PreparedSet, split: str, options: LoaderOptions) -> None:
        self.prepared, self.split, self.seed, self.train = prepared, split, options.seed, options.train
        self.global_batch_size, self.workers, self.device = options.batch_size, options.workers, options.device
        self.rank, self.ranks = options.rank, options.ranks
        #: Images of a batch that this loader gives: all of them, or in training a rank's part.
        self.batch_size = options.batch_size // options.ranks if options.train else options.batch_size
        self.count = prepared.size(split)
        ragged = prepared.manifest.ragged
        #: Bytes of the largest image where each has its own shape, else 0.
        self.largest = CHANNELS * ragged.pixels if ragged is not None else 0
        #: The number of parts that the split is divided into for good.
        self.shards = options.ranks if options.shard and options.train else 1
        self.epoch = 0
        self._position = 0
        self._resume_at = 0
        self._pass: Callable[[], _Pass[Any] | None] = lambda: None
        if self.train and self.count < self.global_batch_size:
            raise ValueError(
                f"split '{split}' of {prepared.root} holds {self.count} images, fewer than one batch of "
                f"{self.global_batch_size}; give a smaller batch size"
            )
        entries = [] if self.holds_all else prepared.entries(split, self.format)
        self._states = {entry: _state(prepared.root / entry.path) for entry in entries}

    @classmethod
    def missing(cls) -> str | None:
        """What is missing to run it here and how to install that, in one line; None where it can run."""
        if cls.optional is None:
            return None
        module, advice = cls.optional
        try:
            importlib.import_module(f"{__package__}.{module}")
        except Exception as error:
            return advice.format(one_line(error))
        return None

    @classmethod
    def advice(cls) -> str:
        """What would make it faster here, to be added to a line; empty where nothing would."""
        if cls.format != "packed" or turbojpeg.installed() is not None:
            return ""
        return "; with the system's libturbojpeg JPEG files are decoded twice as fast"

    def spare_cores(self) -> int:
        """How many threads or processes load by default: as many as there are usable cores, or a quarter of that where
        steps on the CPU want them all, and take far longer over an image."""
        return usable_cores() if self.device.type == "cuda" else max(usable_cores() // 4, 1)

    def __len__(self) -> int:
        """Batches in an epoch."""
        if self.train:
            return self.count // self.global_batch_size
        return -(-len(self._evaluated()) // self.batch_size)

    def _evaluated(self) -> range:
        """The images that evaluation gets from this loader."""
        first, end = (self.count * part // self.ranks for part in (self.rank, self.rank + 1))
        return range(first, end)

    def set_epoch(self, epoch: int) -> None:
        """Go to the first batch of an epoch."""
        self._end_pass()
        self.epoch, self._position, self._resume_at = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: the epoch and how many of its batches it has given out."""
        return {"epoch": self.epoch, "step": self._position, **self._kept()}

    def _kept(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _KEPT} | {"batch_size": self.global_batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last batch that was given out.

        ValueError if the seed, the batch size or the split's size differ, or if the epoch has fewer batches.
        """
        for name, value in self._kept().items():
            # An earlier version knew no shards.
            before = state.get(name, 1 if name == "shards" else value)
            if before != value:
                meaning = _KEPT[name]
                raise ValueError(
                    f"the loader's state has {meaning} {before}, this run {value}; resume with the same {meaning}"
                )
        if not 0 <= state["step"] <= len(self):
            raise ValueError(f"the loader's state has step {state['step']}, the epoch {len(self)} batches")
        self.set_epoch(state["epoch"])
        self._position = self._resume_at = state["step"]

    @property
    def data_length(self) -> int | None:
        """Of the ``data`` of a `RaggedBatch`; None for as much as its images need."""
        return self.batch_size * self.largest if self.train and self.device.type == "cuda" else None

    def __iter__(self) -> Iterator[OwnBatch]:
        return self._begin_pass(self._copies if self.lends_buffers else self._batches)

    def feed(self) -> Iterator[AnyBatch]:
        """As `__iter__`, but as cheap for the step as possible: in the loader's own type of batch, and without copies
        (see `lends_buffers`)."""
        return self._begin_pass(self._batches)

    def _copies(self, start: int) -> Generator[OwnBatch]:
        with closing(self._batches(start)) as batches:
            for batch in batches:
                yield batch.clone()

    def _begin_pass(self, batches: Callable[[int], Generator[T]]) -> _Pass[T]:
        """A pass over ``batches(number of its first batch)``."""
        self._end_pass()
        start, self._resume_at = self._resume_at, 0
        self._position = start
        begun = _Pass(self, batches(start))
        # Weakly: a pass that nobody holds any more ends at once.
        self._pass = weakref.ref(begun)
        return begun

    def _end_pass(self) -> None:
        begun = self._pass()
        if begun is not None:
            begun.close()

    def check_unchanged(self) -> None:
        """PreparedSetError where another program has written into a file that it reads, so that images came which are
        not the set's. Of a file that is deleted, or has another one in its place, it still reads the old one."""
        for entry, before in self._states.items():
            path = self.prepared.root / entry.path
            now = _state(path)
            if now[:2] != before[:2] or now == before:
                continue
            try:
                # What was touched, or linked by a backup, has the same bytes.
                self.prepared.check_hash(entry)
            except PreparedSetError as error:
                raise PreparedSetError(
                    f"{show_path(path)} was written to while it was trained on; steps since the last checkpoint are "
                    f"dropped; {ANEW}"
                ) from error
            self._states[entry] = now

    def failure(self, error: Exception) -> str:
        """What to tell of an error that ended a pass: what failed and what to do."""
        return f"loading failed ({one_line(error)[:_LONGEST_REASON]}); give another --loader, or --debug for all of it"

    def example(self) -> AnyBatch:
        """A batch of the type and the shapes that `feed` gives in training, to warm up with. The position stays."""
        return self.blank()

    def blank(self) -> OwnBatch:
        """A whole batch of black images, the first ones of the file; of as many bytes as any batch needs."""
        indices = torch.arange(self.batch_size, device=self.device)
        ragged = self.prepared.manifest.ragged
        if ragged is not None:
            data = torch.zeros(self.batch_size * self.largest, dtype=torch.uint8, device=self.device)
            sides = torch.full_like(indices, ragged.side, dtype=torch.int32)
            return RaggedBatch(data, indices * self.largest, sides, sides, torch.zeros_like(indices), indices)
        shape = (self.batch_size, *self.prepared.manifest.image_shape)
        images = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        return Batch(images, torch.zeros_like(indices), indices)

    def close(self) -> None:
        """Release processes, threads, files and memory; closing twice is fine."""
        self._end_pass()

    def _closed(self) -> ValueError:
        return ValueError(f"the loader of split '{self.split}' is closed; build a new one")

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def order(self, device: torch.device | str = "cpu") -> Tensor:
        """The epoch's order, int64: for training a permutation cut to whole batches, or a rank's part of each."""
        if not self.train:
            evaluated = self._evaluated()
            return torch.arange(evaluated.start, evaluated.stop, device=device)
        order = epoch_order(self.count, seed=self.seed, epoch=self.epoch, device=device)
        batches = order[: len(self) * self.global_batch_size].view(len(self), self.ranks, self.batch_size)
        return batches[:, self.rank].flatten()

    def index_batches(self, start: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
        """The indices of each batch from number ``start`` on, int64 [N]."""
        order = self.order(device)
        for first in range(start * self.batch_size, len(order), self.batch_size):
            yield order[first : first + self.batch_size]

    @abstractmethod
    def _batches(self, start: int) -> Generator[OwnBatch]:
        """The epoch's batches from number ``start`` on; what it holds, it releases when it is closed."""


def _state(path: Path) -> tuple[int, ...]:
    """Which file lies there, in two numbers, and those that a write to it changes; none where there is no file."""
    try:
        state = os.stat(path)
    except OSError:
        return ()
    return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


class _Pass(Iterator[T], Generic[T]):
    """A loader's way through an epoch, which counts the batches for it."""

    def __init__(self, loader: Loader, batches: Generator[T]) -> None:
        self._loader, self._batches, self._broken_off = loader, batches, False

    def __next__(self) -> T:
        if self._broken_off:
            raise ValueError(
                f"this pass over split '{self._loader.split}' is over: its loader has been closed or has begun another "
                "one since; for two at once build two loaders"
            )
        try:
            batch = next(self._batches)
        # A worker that is killed in the middle of a hand-over ends its connection early.
        except (RuntimeError, OSError, EOFError) as error:
            if isinstance(error, torch.AcceleratorError):
                raise
            raise LoadingError(self._loader.failure(error)) from error
        # Before the batch is given out: a state saved while it is in use continues after it.
        self._loader._position += 1
        return batch

    def close(self) -> None:
        """End it here; one that has come to its end by itself stays as it is."""
        self._broken_off |= inspect.getgeneratorstate(self._batches) != inspect.GEN_CLOSED
        self._batches.close()
