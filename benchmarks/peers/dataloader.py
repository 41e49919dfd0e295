"""What recipes on torch's DataLoader have in common: workers that are started safely, passes of any length."""

from __future__ import annotations

import signal
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import transforms

from fast_train.benchmarks.instrument.feeds import PILLOW, FeedOptions, Peer, batches_ahead
from fast_train.benchmarks.peers.written import written
from fast_train.pipeline.loaders.torch_loader import check_sockets


class ImageDataset(Dataset[tuple[Any, int]]):
    """torchvision's CIFAR10 in small: images in memory, transformed one a call."""

    def __init__(self, images: Any, labels: Any, transform: Any) -> None:
        self._images, self._labels, self._transform = images, labels, transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._transform(self._images[index]), int(self._labels[index])


def started(loader: Iterable[Any], workers: int, *, lazy: bool = False) -> Iterator[Any]:
    """A pass, whose workers hear neither Ctrl-C nor a job's end, which reach the whole process group, and print nothing
    where this process is stopped in the middle of a hand-over. No signal comes while a process is half started; and
    torch's handler, which raises a worker's end wherever this process is, goes again: whoever waits is told. ValueError
    where workers have no way to hand their batches over.

    lazy: a pass that starts its workers only when it is asked for its first batch.
    """
    if workers:
        check_sockets()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    of_children, of_errors = signal.getsignal(signal.SIGCHLD), sys.excepthook
    # The workers are forks: they have what is set here.
    sys.excepthook = lambda *_: None
    try:
        batches = iter(loader)
        return chain([next(batches)], batches) if lazy else batches
    finally:
        sys.excepthook = of_errors
        signal.signal(signal.SIGCHLD, of_children)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Chosen(Sampler[int]):
    """The indices of the next pass; persistent workers outlive it, so it changes in place."""

    def __init__(self) -> None:
        self.indices: list[int] = []

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class DataLoaderPeer(Peer):
    """Float32 batches, whatever the step computes in."""

    #: Batches that each worker may have begun.
    prefetch: ClassVar[int] = 2
    #: Whether workers outlive an epoch.
    persistent: ClassVar[bool] = False
    #: Whether batches go to a GPU out of page-locked memory.
    pinned: ClassVar[bool] = True

    def __init__(self, options: FeedOptions) -> None:
        super().__init__(options)
        self.dtype = torch.float32
        self.ahead = batches_ahead(self.workers, self.per_epoch, self.prefetch)
        self._sampler = _Chosen()
        self._loader = DataLoader(
            self.dataset(options),
            batch_size=self.batch_size,
            sampler=self._sampler,
            num_workers=self.workers,
            persistent_workers=self.persistent and self.workers > 0,
            prefetch_factor=self.prefetch if self.workers > 0 else None,
            pin_memory=self.pinned and self.device.type == "cuda",
        )

    @abstractmethod
    def dataset(self, options: FeedOptions) -> Dataset[Any]:
        """Image i of the training split, as the recipe gives it to a batch, and its label."""

    def epoch(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        self._sampler.indices = torch.randperm(self.prepared.size("train"))[: count * self.batch_size].tolist()
        for images, labels in started(self._loader, self.workers):
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


class ShardsPeer(Peer):
    """Float32 batches out of a library's own shards, which hold the set's files."""

    augmentation = "RandomResizedCrop, flip on PIL images"
    decoder = PILLOW
    #: Whether a pass starts its workers only when it is asked for its first batch.
    lazy: ClassVar[bool] = False

    def __init__(self, options: FeedOptions) -> None:
        super().__init__(options)
        self.dtype = torch.float32
        folder = written(options.prepared, options.scratch, self.name, self.write)
        self._loader = self.open(folder, pil_transforms(self))

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write the shards of the training split."""

    @abstractmethod
    def open(self, folder: Path, transform: Callable[[Image], Tensor]) -> Any:
        """The library's loader, whose passes have no end, or that of an epoch. transform: makes an image a tensor."""

    def epoch(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in islice(started(self._loader, self.workers, lazy=self.lazy), count):
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


def pil_transforms(peer: Peer) -> transforms.Compose:
    """What pytorch/examples, imagenet/main.py, does to an image of Pillow's for training."""
    scale, ratio = peer.crop
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(peer.size, scale, ratio),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(peer.prepared.manifest.mean, peer.prepared.manifest.std),
        ]
    )
