"""The best that a DataLoader does with torchvision's present transforms: v2, on tensors of bytes.

Settings by PyTorch's performance tuning guide (docs.pytorch.org, recipes/recipes/tuning_guide) and torchvision's
guide to v2 (docs.pytorch.org/vision, transforms): workers as cores, kept alive, batches prefetched and pinned,
tensors rather than PIL images, floats last.
"""

from __future__ import annotations

import torch
from torchvision.transforms import v2

from fast_train.benchmarks.instrument.feeds import FeedOptions
from fast_train.benchmarks.peers.dataloader import DataLoaderPeer, ImageDataset


class TunedDataLoader(DataLoaderPeer):
    """Its workers live as long as it does."""

    name = "tuned DataLoader"
    source = "PyTorch's performance tuning guide, torchvision's transforms v2"
    augmentation = "crop 4, flip by transforms v2"
    prefetch = 4
    persistent = True

    def dataset(self, options: FeedOptions) -> ImageDataset:
        manifest, packed = self.prepared.manifest, self.prepared.packed("train")
        whole = [
            v2.RandomCrop(manifest.image_shape[:2], padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(manifest.mean), list(manifest.std)),
        ]
        images = torch.tensor(packed.images).permute(0, 3, 1, 2).contiguous()
        return ImageDataset(images, packed.labels, v2.Compose([v2.Identity()] if options.raw else whole))
