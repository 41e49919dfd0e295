"""The weights of Pillow's bilinear resizing, and the tables from which all floors of `kernels.resized_crop` compute.

Source: Pillow's `ImagingResample` (Image.resize with BILINEAR, which is antialiased): for each pixel of the result a
triangle as wide as the larger of the two pixels' pitches, its weights computed in float64, divided by their sum, and
rounded to 22 bits behind the point. Along each axis they depend on the two lengths alone. So they are computed once
for every length that a crop may have, and no device needs floating point to resize.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fast_train.kernels.spec import UNIT, CropSpec

PRECISION = 22
#: The steps in which a crop's ratio is drawn.
RATIOS = 4096
# Of an erased rectangle; torchvision's defaults.
_ERASED_AREA, _ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)


class Resampling(NamedTuple):
    """weights: int32, those for a length n from ``bases[n]`` on, as [size, taps of n]. bases: int64 [n + 1].
    firsts: int32 [n + 1, size], the first pixel that each pixel of the result reads.
    ratios, erased: int32 [RATIOS, 2], from `root_ratios`."""

    weights: Tensor
    bases: Tensor
    firsts: Tensor
    ratios: Tensor
    erased: Tensor

    def to(self, device: torch.device | str) -> Resampling:
        return Resampling(*(tensor.to(device) for tensor in self))


def taps(length: int, size: int) -> int:
    """How many pixels each pixel of the result reads, at most: ``2 * max(length / size, 1)``, rounded up."""
    return max(-(-2 * length // size), 2)


def weights(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """From ``length`` pixels to ``size``: the first pixel that each reads, int64 [size], and the weights in units of
    2**-22, int32 [size, taps]. Those beyond the last pixel are 0."""
    scale = length / size
    support = max(scale, 1.0)
    centre = (np.arange(size)[:, None] + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), length)
    pixel = first + np.arange(taps(length, size))
    distance = np.abs((pixel - centre + 0.5) * (1.0 / support))
    values = np.where((pixel < last) & (distance < 1.0), 1.0 - distance, 0.0)
    # One after the other, as Pillow sums them.
    values /= values.cumsum(axis=1)[:, -1:]
    return first[:, 0], (0.5 + values * (1 << PRECISION)).astype(np.int32)


def root_ratios(low: float, high: float) -> Tensor:
    """int32 [RATIOS, 2]: the square root of each ratio and its inverse, in units of 1 / UNIT; logarithmic steps."""
    steps = (np.arange(RATIOS) + 0.5) / RATIOS
    root = np.exp((np.log(low) + steps * (np.log(high) - np.log(low))) / 2)
    return torch.from_numpy(np.stack([root, 1 / root], axis=1) * UNIT).round().int()


def resampling(spec: CropSpec, longest: int) -> Resampling:
    """The tables for images whose sides have at most ``longest`` pixels."""
    pairs = [weights(length, spec.size) for length in range(1, longest + 1)]
    flat = [values.reshape(-1) for _, values in pairs]
    bases = np.cumsum([0, 0, *(len(values) for values in flat)])[:-1]
    firsts = np.zeros((longest + 1, spec.size), dtype=np.int32)
    firsts[1:] = [first for first, _ in pairs]
    return Resampling(
        weights=torch.from_numpy(np.concatenate(flat)),
        bases=torch.from_numpy(bases),
        firsts=torch.from_numpy(firsts),
        ratios=root_ratios(*spec.ratio),
        erased=root_ratios(*_ERASED_RATIO),
    )


def in_units(value: float) -> int:
    """A fraction or factor in units of 1 / UNIT."""
    return round(value * UNIT)


ERASED_AREA = (in_units(_ERASED_AREA[0]), in_units(_ERASED_AREA[1]))
