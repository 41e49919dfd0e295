"""FFCV's own CIFAR-10 pipeline: its augmentation, compiled by Numba, on the CPU.

The pipelines of FFCV's example "Training CIFAR-10" (docs.ffcv.io, ffcv_examples/cifar10; libffcv/ffcv,
examples/cifar), over our ``.beton`` file: flip, translation by 2 pixels, cutout of 4, random order, then the
conversion and the normalisation on the device.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fast_train.benchmarks.instrument.feeds import FeedOptions, Peer


class FfcvPeer(Peer):
    """FFCV's loader over the ``.beton`` of the training split, in random order."""

    library = "ffcv", "ffcv", "ffcv"

    def __init__(self, options: FeedOptions) -> None:
        super().__init__(options)
        path = self.prepared.beton("train").path
        # FFCV sets torch's threads for the whole process, when it is imported and when it begins to read.
        self._threads = torch.get_num_threads()
        from ffcv.loader import Loader, OrderOption

        self._loader = Loader(
            str(path),
            batch_size=self.batch_size,
            num_workers=self.workers,
            order=OrderOption.RANDOM,
            os_cache=True,
            drop_last=True,
            pipelines={"image": self.image_pipeline(), "label": self._label_pipeline(), "index": None},
        )
        self._all = self._loader.traversal_order.indices
        torch.set_num_threads(self._threads)

    @abstractmethod
    def image_pipeline(self) -> list[Any]:
        """What is done to an image, as FFCV's operations."""

    def _label_pipeline(self) -> list[Any]:
        from ffcv.fields.basics import IntDecoder
        from ffcv.transforms import Squeeze, ToDevice, ToTensor

        return [IntDecoder(), ToTensor(), ToDevice(self.device, non_blocking=True), Squeeze(1)]

    def epoch(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        # A pass ends with what it was given: FFCV's threads outlive an iteration that is left early.
        self._loader.traversal_order.indices = self._all[torch.randperm(len(self._all))[: count * self.batch_size]]
        for batch in self._loader:
            if torch.get_num_threads() != self._threads:
                torch.set_num_threads(self._threads)
            yield batch


class FfcvReadme(FfcvPeer):
    """Half precision where the step computes in it, as in the example; float32 for a float32 step."""

    name = "FFCV's example"
    source = "docs.ffcv.io, 'Training CIFAR-10'"
    augmentation = "flip, translate 2, cutout 4, by FFCV on the CPU"

    def image_pipeline(self) -> list[Any]:
        import numpy as np
        import torchvision
        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from ffcv.transforms import (
            Convert,
            Cutout,
            RandomHorizontalFlip,
            RandomTranslate,
            ToDevice,
            ToTensor,
            ToTorchImage,
        )

        mean = np.array(self.prepared.manifest.mean) * 255
        std = np.array(self.prepared.manifest.std) * 255
        fill = tuple(map(int, mean))
        image: list[Any] = [SimpleRGBImageDecoder()]
        if self.augment:
            image += [RandomHorizontalFlip(), RandomTranslate(padding=2, fill=fill), Cutout(4, fill)]
        image += [ToTensor(), ToDevice(self.device, non_blocking=True)]
        if self.augment:
            image += [ToTorchImage(), Convert(self.dtype), torchvision.transforms.Normalize(mean, std)]
        return image
