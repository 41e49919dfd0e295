"""Exact per-channel statistics of bytes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


class ChannelHistogram:
    """Counts of each byte value per channel, from which mean and std follow without rounding on the way."""

    def __init__(self, channels: int) -> None:
        self.counts: NDArray[np.int64] = np.zeros((channels, 256), dtype=np.int64)

    def update(self, images: NDArray[np.uint8]) -> None:
        """Count the values of images uint8 [n, H, W, C]."""
        for channel, counts in enumerate(self.counts):
            counts += np.bincount(images[..., channel].ravel(), minlength=256)

    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and population standard deviation of each channel, in units of 1 = byte 255.

        Sums are integers of any size, so neither the order of the images nor their number changes a digit.
        """
        means, stds = [], []
        for counts in self.counts.tolist():
            n = sum(counts)
            total = sum(value * count for value, count in enumerate(counts))
            squares = sum(value * value * count for value, count in enumerate(counts))
            means.append(total / (255 * n))
            stds.append(math.sqrt(n * squares - total * total) / (255 * n))
        return tuple(means), tuple(stds)
