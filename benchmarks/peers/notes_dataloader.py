"""The baseline's loading: a DataLoader of four workers, PIL images, torchvision's first transforms.

The study notes that this project grew out of train so: ``RandomHorizontalFlip``, ``ToTensor``, ``Normalize`` by a half,
batches moved to the device in the loop. They follow PyTorch's tutorial "Training a classifier"
(pytorch.org, tutorials/beginner/blitz/cifar10_tutorial).
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler
from torchvision import transforms

from fast_train.benchmarks.instrument.feeds import FeedOptions, Peer
from fast_train.pipeline.loaders.torch_loader import check_sockets


class ImageDataset(Dataset[tuple[Any, int]]):
    """torchvision's CIFAR10 in small: images in memory, transformed one a call."""

    def __init__(self, images: Any, labels: Any, transform: Any) -> None:
        self._images, self._labels, self._transform = images, labels, transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._transform(self._images[index]), int(self._labels[index])


def started(loader: DataLoader[tuple[Any, int]]) -> Iterator[Any]:
    """A pass, whose workers hear neither Ctrl-C nor a job's end, which reach the whole process group, and print nothing
    where this process is stopped in the middle of a hand-over. No signal comes while a process is half started; and
    torch's handler, which raises a worker's end wherever this process is, goes again: whoever waits is told. ValueError
    where workers have no way to hand their batches over."""
    if loader.num_workers:
        check_sockets()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    of_children, of_errors = signal.getsignal(signal.SIGCHLD), sys.excepthook
    # The workers are forks: they have what is set here.
    sys.excepthook = lambda *_: None
    try:
        return iter(loader)
    finally:
        sys.excepthook = of_errors
        signal.signal(signal.SIGCHLD, of_children)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class NotesDataLoader(Peer):
    """Float32 batches, whatever the step computes in. New workers each epoch, as in the notes."""

    name = "baseline DataLoader"
    source = "PyTorch's tutorial 'Training a classifier', with four workers"
    augmentation = "flip on PIL images"
    fixed_workers = 4

    def __init__(self, options: FeedOptions) -> None:
        super().__init__(options)
        if not self.augment:
            raise ValueError("its transforms make normalised floats on the CPU; it has no way to give bytes")
        self.dtype = torch.float32
        packed = self.prepared.packed("train")
        if packed.images.shape[3] != 3:
            raise ValueError(f"its transforms take RGB images, these have {packed.images.shape[3]} channels")
        half = (0.5,) * 3
        steps = [Image.fromarray, transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        transform = transforms.Compose([*steps, transforms.Normalize(half, half)])
        self._dataset = ImageDataset(packed.images, packed.labels, transform)

    def epoch(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        chosen = torch.randperm(len(self._dataset))[: count * self.batch_size].tolist()
        loader = DataLoader(
            self._dataset,
            batch_size=self.batch_size,
            sampler=SubsetRandomSampler(chosen),
            num_workers=self.workers,
        )
        for images, labels in started(loader):
            yield images.to(self.device), labels.to(self.device)
