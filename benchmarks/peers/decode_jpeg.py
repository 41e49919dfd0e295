"""The best that a DataLoader does with torchvision's own decoder: read_file, decode_image, transforms v2 on bytes.

By torchvision's guides to decoding (docs.pytorch.org/vision, io) and to transforms v2 (the same place, transforms), and
PyTorch's performance tuning guide (docs.pytorch.org, recipes/recipes/tuning_guide): tensors rather than PIL images,
floats last, workers as cores, kept alive, batches prefetched and pinned.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import DatasetFolder
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import v2

from fast_train.benchmarks.instrument.feeds import TORCHVISION, FeedOptions
from fast_train.benchmarks.peers.dataloader import DataLoaderPeer
from fast_train.benchmarks.peers.written import SUFFIXES, class_folders


class DecodeJpegPeer(DataLoaderPeer):
    """Reads the set's files, one of each image, from class folders."""

    name = "torchvision.io"
    source = "torchvision's guides to decode_image and transforms v2, PyTorch's performance tuning guide"
    augmentation = "RandomResizedCrop, flip by transforms v2"
    decoder = TORCHVISION
    prefetch = 4
    persistent = True

    def dataset(self, options: FeedOptions) -> DatasetFolder:
        manifest, (scale, ratio) = self.prepared.manifest, self.crop
        whole: Any = v2.Compose(
            [
                v2.RandomResizedCrop(self.size, scale, ratio, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(manifest.mean), list(manifest.std)),
            ]
        )
        return DatasetFolder(
            str(class_folders(options.prepared, options.scratch) / "train"),
            _decode,
            extensions=SUFFIXES,
            transform=whole,
        )


def _decode(path: str) -> Tensor:
    """uint8 [3, H, W]."""
    return decode_image(read_file(path), mode=ImageReadMode.RGB)
