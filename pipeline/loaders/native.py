"""Augmentation by a loader's library, instead of our kernel: what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fast_train.kernels.augment_reference import crop_offsets, cutout_corners
from fast_train.kernels.resample import resampling
from fast_train.kernels.resized_crop_reference import crop_boxes, mirrored
from fast_train.kernels.spec import AugmentSpec, CropSpec


@dataclass(frozen=True, kw_only=True)
class _Native:
    """mean, std: per channel, in units where byte 255 is 1. dtype: what the model wants; DALI has no bfloat16, so
    anything but float32 comes as float16. seed: the run's."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: torch.dtype
    seed: int

    @property
    def output_dtype(self) -> torch.dtype:
        return torch.float32 if self.dtype == torch.float32 else torch.float16


def _check_left_alone(changed: object, remedy: str) -> None:
    if changed:
        raise ValueError(
            f"DALI's graph changes no colours and erases nothing here: {remedy}, or leave out --dali-augment native"
        )


@dataclass(frozen=True, kw_only=True)
class NativeAugment(_Native):
    """The crops, flips and cutouts that `kernels.augment` would draw, for operators of the DALI graph. ValueError for
    colours, which it leaves alone."""

    spec: AugmentSpec

    def __post_init__(self) -> None:
        _check_left_alone(self.spec.colour, "set brightness and contrast to 0")

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


@dataclass(frozen=True, kw_only=True)
class NativeCrop(_Native):
    """The boxes and flips that `kernels.resized_crop` would draw, of images that keep their own shapes; the graph
    resizes by the same triangular filter, in floating point. ValueError for colours and erasing, which it leaves
    alone."""

    spec: CropSpec

    def __post_init__(self) -> None:
        changed = self.spec.colour or self.spec.erase
        _check_left_alone(changed, "set brightness, contrast, saturation and erase to 0")

    def draw(
        self, indices: torch.Tensor, epoch: int, heights: torch.Tensor, widths: torch.Tensor
    ) -> list[NDArray[np.int32]]:
        """What samples ``indices``, int64 [n], of these shapes, int32 [n], get in an epoch: where the crop begins, and
        its shape, int32 [n, 2] each, (y, x) in pixels; whether it is mirrored, int32 [n]."""
        spec, seed = self.spec, self.seed
        # Only its ratios are asked for.
        table = resampling(spec, 1)
        box = crop_boxes(heights.long(), widths.long(), indices, table, spec=spec, seed=seed, epoch=epoch)
        flips = mirrored(indices, spec=spec, seed=seed, epoch=epoch)
        pairs = (torch.stack([box.top, box.left], dim=1), torch.stack([box.height, box.width], dim=1))
        return [array.int().numpy() for array in (*pairs, flips)]
