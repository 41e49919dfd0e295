"""The best that a DataLoader does with torchvision's present transforms: v2, on tensors of bytes.

Settings by PyTorch's performance tuning guide (docs.pytorch.org, recipes/recipes/tuning_guide) and torchvision's
guide to v2 (docs.pytorch.org/vision, transforms): workers as cores, kept alive, batches prefetched and pinned,
tensors rather than PIL images, floats last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torchvision.transforms import v2

from fast_train.benchmarks.instrument.feeds import FeedOptions, Peer, batches_ahead
from fast_train.benchmarks.peers.notes_dataloader import ImageDataset, started

_PREFETCH = 4


class _Chosen(Sampler[int]):
    """The indices of the next pass; persistent workers outlive it, so it changes in place."""

    def __init__(self) -> None:
        self.indices: list[int] = []

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class TunedDataLoader(Peer):
    """Float32 batches, whatever the step computes in."""

    name = "tuned DataLoader"
    source = "PyTorch's performance tuning guide, torchvision's transforms v2"
    augmentation = "crop 4, flip by transforms v2"

    def __init__(self, options: FeedOptions) -> None:
        super().__init__(options)
        self.dtype = torch.float32
        self.ahead = batches_ahead(self.workers, self.per_epoch, _PREFETCH)
        manifest, packed = self.prepared.manifest, self.prepared.packed("train")
        size = manifest.image_shape[:2]
        whole = [
            v2.RandomCrop(size, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(manifest.mean), list(manifest.std)),
        ]
        images = torch.tensor(packed.images).permute(0, 3, 1, 2).contiguous()
        dataset = ImageDataset(images, packed.labels, v2.Compose(whole if self.augment else [v2.Identity()]))
        self._sampler = _Chosen()
        self._loader: DataLoader[tuple[Any, int]] | None = DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=self._sampler,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            prefetch_factor=_PREFETCH if self.workers > 0 else None,
            pin_memory=self.device.type == "cuda",
        )

    def epoch(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        if self._loader is None:
            raise ValueError("this loader is closed")
        self._sampler.indices = torch.randperm(self.prepared.size("train"))[: count * self.batch_size].tolist()
        for images, labels in started(self._loader):
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def close(self) -> None:
        # Its workers end when nothing refers to it any more.
        self._loader = None
