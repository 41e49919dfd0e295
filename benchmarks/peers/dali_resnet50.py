"""DALI's own pipeline for ImageNet: crops decoded, resized, flipped and normalised; on a GPU by the GPU.

By NVIDIA's example "ImageNet Training in PyTorch" (NVIDIA/DALI, docs/examples/use_cases/pytorch/resnet50/main.py):
``readers.file`` over class folders, ``decoders.image_random_crop``, ``resize`` by triangular interpolation,
``crop_mirror_normalize``. Without a GPU it is the example with ``--dali_cpu``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fast_train.benchmarks.instrument.feeds import DALI, FeedOptions
from fast_train.benchmarks.peers.dali_stock import DaliPeer
from fast_train.benchmarks.peers.written import class_folders

# Bytes that the decoder sets aside, by the example, so that it need not ask for more in the middle of an epoch.
_DEVICE_PADDING, _HOST_PADDING = 211025920, 140544512


class DaliResnet50(DaliPeer):
    """Float32 images, as in the example. Shuffles within DALI's buffer of 1,024 images."""

    name = "DALI's ResNet-50 pipeline"
    source = "NVIDIA/DALI, docs/examples/use_cases/pytorch/resnet50/main.py"
    augmentation = "RandomResizedCrop, flip by DALI"
    decoder = DALI
    _folders: Path

    def check(self, options: FeedOptions) -> None:
        self.dtype = torch.float32
        self._folders = class_folders(options.prepared, options.scratch) / "train"

    def graph(self) -> tuple[Any, Any]:
        from nvidia.dali import fn, types

        gpu, (scale, ratio) = self.device.type == "cuda", self.crop
        files, labels = fn.readers.file(file_root=str(self._folders), random_shuffle=True, name="reader")
        images = fn.decoders.image_random_crop(
            files,
            device="mixed" if gpu else "cpu",
            output_type=types.RGB,
            random_aspect_ratio=list(ratio),
            random_area=list(scale),
            num_attempts=100,
            device_memory_padding=_DEVICE_PADDING if gpu else 0,
            host_memory_padding=_HOST_PADDING if gpu else 0,
        )
        images = fn.resize(images, resize_x=self.size, resize_y=self.size, interp_type=types.INTERP_TRIANGULAR)
        images = self.normalised(images, crop=(self.size, self.size))
        labels = fn.cast(labels, dtype=types.INT64)
        return images, labels.gpu() if gpu else labels
