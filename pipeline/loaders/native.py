"""Augmentation by a loader's library, instead of our kernel: what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fast_train.kernels.augment_reference import crop_offsets, cutout_corners
from fast_train.kernels.spec import AugmentSpec


@dataclass(frozen=True, kw_only=True)
class NativeAugment:
    """The crops, flips and cutouts that `kernels.augment` would draw, for operators of the DALI graph.

    mean, std: per channel, in units where byte 255 is 1. dtype: what the model wants; DALI has no bfloat16, so
    anything but float32 comes as float16. seed: the run's.
    """

    spec: AugmentSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: torch.dtype
    seed: int

    @property
    def output_dtype(self) -> torch.dtype:
        return torch.float32 if self.dtype == torch.float32 else torch.float16

    @property
    def inputs(self) -> list[tuple[type, int]]:
        """The type, and the dimensions for one sample, of each array that `draw` gives."""
        crop_and_flip: list[tuple[type, int]] = [(np.int32, 1), (np.int32, 0)]
        return crop_and_flip + ([(np.float32, 1)] * 2 if self.spec.cutout else [])

    def draw(self, indices: torch.Tensor, epoch: int, height: int, width: int) -> list[NDArray[Any]]:
        """What samples ``indices``, int64 [n], get in an epoch.

        Where the crop begins, int32 [n, 2]; whether it is mirrored, int32 [n]; with cutout, the corner and the sides of
        the square's part inside the image, float32 [n, 2] each. Places are (y, x) in pixels.
        """
        dy, dx, flip = crop_offsets(indices, spec=self.spec, seed=self.seed, epoch=epoch)
        arrays = [(torch.stack([dy, dx], dim=1) - self.spec.pad).int(), flip.int()]
        if self.spec.cutout:
            corners = cutout_corners(indices, height, width, spec=self.spec, seed=self.seed, epoch=epoch)
            first = torch.stack(corners, dim=1)
            inside = first.clamp(min=0)
            end = (first + self.spec.cutout).minimum(torch.tensor([height, width]))
            arrays += [inside.float(), (end - inside).float()]
        return [array.numpy() for array in arrays]
