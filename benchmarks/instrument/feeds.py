"""Where a benchmark's batches come from: any of the library's loaders, or a peer's own recipe, in passes of any length.

What is timed lies in the middle of a pass, where the loader makes as many batches as it gives out. The batches before
it start the workers and bring their queue to where the step keeps it; those after it keep them at work to the end of
the timed part, and are taken from the loader too, so that nothing goes on in the background while another case is
measured.
"""

from __future__ import annotations

import importlib.util
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, TypeVar, get_args

import torch
from torch import Tensor

from fast_train.benchmarks.instrument.timing import Rate, synchronise
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.config.settings import Config, LoaderName
from fast_train.pipeline.engine.augmentation import AnyAugmenter
from fast_train.pipeline.engine.build import build_augmenter, build_split_loader
from fast_train.pipeline.engine.runtime import Runtime
from fast_train.pipeline.loaders import AnyBatch, Batch, Loader, RaggedView, SplitView

#: What decodes image files, as the suite `decode` calls it; `OURS` is that of the loaders `resident` and `torch`.
PILLOW, OURS, TORCHVISION, FFCV, DALI = "Pillow", "resident", "torchvision.io", "ffcv", "dali"
# Times what a loader holds ahead: of longer epochs the end costs a few percent at most.
_LONG_EPOCH = 6
# For one batch. FFCV has Numba compile before the first one, which takes a minute on two busy cores.
LATEST_SECONDS = 180.0

# The resident loader decodes once, before the first batch.
_DECODERS: dict[LoaderName, str | None] = {"resident": None, "torch": OURS, "ffcv": FFCV, "dali": DALI}

T = TypeVar("T")


class Feed(ABC):
    """Batches on the device. ``delivers``: images come augmented and normalised, [N, C, H, W], rather than as bytes.
    ``per_epoch``: batches of an epoch. ``ahead``: those that the loader has begun, at most, and not given out yet."""

    delivers: bool = False
    batch_size: int
    device: torch.device
    workers: int
    per_epoch: int
    ahead: int

    @property
    def lot(self) -> int:
        """What is timed is a multiple of so many batches."""
        return timed_lot(self.workers, self.ahead, self.per_epoch)

    @abstractmethod
    def batches(self, count: int) -> Iterator[AnyBatch]:
        """``count`` training batches."""

    @abstractmethod
    def example(self) -> AnyBatch:
        """A batch as `batches` gives them, to warm up with."""

    @abstractmethod
    def close(self) -> None:
        """Release processes, threads and files."""

    def seconds(self, count: int, consume: Callable[[AnyBatch], object] = lambda batch: None) -> float:
        """How long ``count`` batches take, from the consumption of the one before until the device has consumed the
        last. As many batches as the loader may hold come before them, and after."""
        batches = self.batches(self.ahead + count + self.ahead)
        for batch in islice(batches, self.ahead):
            consume(batch)
        synchronise(self.device)
        started = time.perf_counter()
        for batch in islice(batches, count):
            consume(batch)
        synchronise(self.device)
        seconds = time.perf_counter() - started
        for _ in batches:
            pass
        return seconds

    def rate(self, consume: Callable[[AnyBatch], object] = lambda batch: None, *, seconds: float, epochs: int) -> Rate:
        """A repeat of batches that are consumed, ``epochs`` long at most."""
        return Rate(
            lambda count: self.seconds(count, consume),
            items=self.batch_size,
            seconds=seconds,
            lot=self.lot,
            most=epochs * self.per_epoch,
        )


def batches_ahead(workers: int | None, per_epoch: int, each: int = 2) -> int:
    """Batches that a loader may have begun: ``each`` of every worker, by torch's default 2; with one worker or none as
    many as with two, since FFCV holds 3 and makes another one, and DALI holds 2. None looks beyond an epoch."""
    return min(each * max(workers or 1, 2), per_epoch)


def timed_lot(workers: int | None, ahead: int, per_epoch: int) -> int:
    """As many batches as come at a time, from workers that each make one. Or an epoch's, where it is short beside what
    the loader holds ahead: at an epoch's end workers stall, and that is to count as often as it happens."""
    return per_epoch if per_epoch < _LONG_EPOCH * ahead else max(workers or 1, 1)


def timely(batches: Iterator[T]) -> Iterator[T]:
    """The same; RuntimeError where one keeps the main thread waiting for longer than `LATEST_SECONDS`: a library whose
    worker has died may wait for it for ever."""

    def late(*_: object) -> NoReturn:
        raise RuntimeError(f"no batch came within {LATEST_SECONDS:g} s")

    previous = signal.signal(signal.SIGALRM, late)
    try:
        while True:
            timer = signal.setitimer(signal.ITIMER_REAL, LATEST_SECONDS)
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                signal.setitimer(signal.ITIMER_REAL, *timer)
            yield batch
    finally:
        signal.signal(signal.SIGALRM, previous)


def is_view(batch: AnyBatch) -> bool:
    """Whether its images are still to be gathered, out of a whole split."""
    return isinstance(batch, SplitView | RaggedView)


class LoaderFeed(Feed):
    """One of the library's loaders. raw: each batch's own bytes, even of a loader that feeds views of the split."""

    def __init__(self, loader: Loader, augmenter: AnyAugmenter, *, raw: bool) -> None:
        self.loader, self.augmenter, self._raw = loader, augmenter, raw
        self.batch_size, self.device = loader.batch_size, augmenter.device
        self.workers, self.per_epoch = loader.workers or 0, len(loader)
        # A loader that gives views of the split has only indices to make.
        self.ahead = 1 if is_view(loader.example()) else batches_ahead(self.workers, self.per_epoch)
        self._epoch = 0

    def batches(self, count: int) -> Iterator[AnyBatch]:
        """``count`` training batches, of further epochs in each pass."""
        loader = self.loader
        while count:
            part = count % len(loader) or len(loader)
            count -= part
            # The last batches of an epoch: a pass ends with the epoch.
            state = {"epoch": self._epoch, "step": len(loader) - part}
            loader.load_state_dict({**loader.state_dict(), **state})
            self.augmenter.set_epoch(self._epoch)
            self._epoch += 1
            yield from iter(loader) if self._raw else loader.feed()

    def example(self) -> AnyBatch:
        return self.loader.example()

    def close(self) -> None:
        self.loader.close()


class Delivered:
    """Takes an augmenter's place in the step where a peer has augmented already."""

    def set_epoch(self, epoch: int) -> None:
        pass

    def __call__(self, batch: AnyBatch) -> Tensor:
        assert isinstance(batch, Batch), "a peer delivers images"
        return batch.images


@dataclass(frozen=True, kw_only=True)
class FeedOptions:
    """What a feed is opened with. config: of the step that it feeds. runtime: of ``config``. scratch: where the set's
    files may be written in others' formats. raw: bytes alone, which nobody augments."""

    prepared: PreparedSet
    config: Config
    runtime: Runtime
    workers: int
    scratch: Path
    raw: bool = False


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the comparison: who loads, and how a feed of it is made. augmentation: what is done to each image;
    None for the recipe's, by our kernel. source: of a recipe that is not ours. workers: their number where the recipe
    fixes it; 0 where there are none. decoder: that of image files, as the suite `decode` calls it; None where nothing
    is decoded."""

    name: str
    open: Callable[[FeedOptions], Feed]
    augmentation: str | None = None
    source: str = "this project"
    workers: int | None = None
    decoder: str | None = None


def library_entries() -> list[Entry]:
    """Every loader in the registry, and the ways in which one can be configured to augment by itself."""
    plain = [
        Entry(name=name, open=partial(_open, name), workers=0 if name == "resident" else None, decoder=_DECODERS[name])
        for name in get_args(LoaderName)
    ]
    native = partial(_open, "dali", augment="native")
    augmentation = "the same, by DALI's operators"
    return [*plain, Entry(name="dali, native", open=native, augmentation=augmentation, decoder=_DECODERS["dali"])]


def _open(loader: LoaderName, options: FeedOptions, *, augment: Literal["kernel", "native"] = "kernel") -> LoaderFeed:
    """A feed of one of the library's loaders. augment: see `DataConfig.dali_augment`."""
    if options.raw and augment == "native":
        raise ValueError("it augments inside DALI's graph; its bytes are those of 'dali'")
    data = replace(options.config.data, loader=loader, workers=options.workers, dali_augment=augment)
    config = replace(options.config, data=data)
    built = build_split_loader(config, options.prepared, options.runtime, train=True)
    augmenter = build_augmenter(config, options.prepared, options.runtime, train=True)
    return LoaderFeed(built, augmenter, raw=options.raw)


class Peer(Feed):
    """A recipe that is not ours. It delivers augmented images; ``raw``: the bytes it reads, where it can.

    dtype: of the images that it delivers. size: their side in pixels, where images keep their own shapes; crop: the
    range of areas and that of ratios of the crops that it makes of these. ValueError where its library is missing,
    where the set lacks its format, or where it has no way to give bytes.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    #: What it does to each image.
    augmentation: ClassVar[str]
    #: What decodes image files in it, see `Entry`.
    decoder: ClassVar[str | None] = None
    #: Loading processes or threads, where the recipe fixes their number.
    fixed_workers: ClassVar[int | None] = None
    #: The library that it needs besides ours: its module, its name, and the extra that it is installed by.
    library: ClassVar[tuple[str, str, str] | None] = None
    #: What gives its batches.
    _loader: Any = None

    def __init__(self, options: FeedOptions) -> None:
        if self.library is not None and importlib.util.find_spec(self.library[0]) is None:
            raise ValueError(f"{self.library[1]} is not installed; pip install 'fast-train[{self.library[2]}]'")
        self.prepared, self.batch_size = options.prepared, options.config.data.batch_size
        self.workers, self.device, self.dtype = options.workers, options.runtime.device, options.runtime.image_dtype
        self.augment = self.delivers = not options.raw
        images = self.prepared.size("train")
        if images < self.batch_size:
            raise ValueError(f"{images} training images are fewer than one batch of {self.batch_size}")
        self.per_epoch = images // self.batch_size
        self.ahead = batches_ahead(self.workers, self.per_epoch)
        crop = options.config.crop
        self.size = crop.sizes[-1] if crop.sizes else 0
        self.crop = crop.scale or (1.0, 1.0), crop.ratio

    @classmethod
    def entry(cls) -> Entry:
        return Entry(
            name=cls.name,
            open=cls,
            augmentation=cls.augmentation,
            source=cls.source,
            workers=cls.fixed_workers,
            decoder=cls.decoder,
        )

    def example(self) -> Batch:
        """Black images of the shape and type that come."""
        whole = (self.size, self.size, 3) if self.size else self.prepared.manifest.image_shape
        height, width, channels = whole
        shape = (channels, height, width) if self.augment else whole
        dtype = self.dtype if self.augment else torch.uint8
        images = torch.zeros(self.batch_size, *shape, dtype=dtype, device=self.device)
        indices = torch.arange(self.batch_size, device=self.device)
        return Batch(images, torch.zeros_like(indices), indices)

    def batches(self, count: int) -> Iterator[Batch]:
        """``count`` batches, epoch after epoch. Indices only count the images of a batch: a peer has none."""
        indices = torch.arange(self.batch_size, device=self.device)
        while count:
            part = min(count, self.per_epoch)
            count -= part
            for images, labels in timely(self.epoch(part)):
                yield Batch(images, labels, indices)

    @abstractmethod
    def epoch(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """``count`` batches, at most an epoch, shuffled: images and labels int64 [N] on the device."""

    def close(self) -> None:
        # Its processes, threads and files go when nothing refers to it any more.
        self._loader = None
