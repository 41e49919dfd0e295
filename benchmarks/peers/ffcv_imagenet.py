"""FFCV's own pipeline for ImageNet: crops decoded and resized by its compiled code, flipped, normalised.

By libffcv/ffcv-imagenet, train_imagenet.py: ``RandomResizedCropRGBImageDecoder``, ``RandomHorizontalFlip``,
``ToTensor``, ``ToDevice``, ``ToTorchImage``, ``NormalizeImage``; over our ``.beton`` file, in random order.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from fast_train.benchmarks.instrument.feeds import FFCV, FeedOptions
from fast_train.benchmarks.peers.ffcv_readme import FfcvPeer


class FfcvImagenet(FfcvPeer):
    """On a GPU NormalizeImage makes half precision there, through CuPy. On a CPU, where the repository has no example,
    it comes before ToTensor, as FFCV's compiled code wants it, and makes float32."""

    name = "FFCV's ImageNet pipeline"
    source = "libffcv/ffcv-imagenet, train_imagenet.py"
    augmentation = "RandomResizedCrop, flip by FFCV"
    decoder = FFCV

    def __init__(self, options: FeedOptions) -> None:
        if options.runtime.device.type == "cuda" and importlib.util.find_spec("cupy") is None:
            raise ValueError("NormalizeImage needs CuPy on a GPU; pip install cupy-cuda12x, or cupy-cuda13x")
        super().__init__(options)

    def image_pipeline(self) -> list[Any]:
        import numpy as np
        from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
        from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToDevice, ToTensor, ToTorchImage

        mean, std = (np.array(values) * 255 for values in (self.prepared.manifest.mean, self.prepared.manifest.std))
        gpu = self.device.type == "cuda"
        self.dtype = torch.float16 if gpu else torch.float32
        normalise = NormalizeImage(mean, std, np.float16 if gpu else np.float32)
        scale, ratio = self.crop
        decoder = RandomResizedCropRGBImageDecoder((self.size, self.size), scale, ratio)
        first = [decoder, RandomHorizontalFlip()]
        if not gpu:
            return [*first, normalise, ToTensor(), ToTorchImage()]
        return [*first, ToTensor(), ToDevice(self.device, non_blocking=True), ToTorchImage(), normalise]
