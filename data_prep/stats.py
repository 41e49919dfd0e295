"""What there is to know of all pixels of a split: exact statistics per channel, and a hash."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


class ChannelHistogram:
    """Counts of each byte value per channel, from which mean and std follow without rounding on the way."""

    def __init__(self, channels: int) -> None:
        self.counts: NDArray[np.int64] = np.zeros((channels, 256), dtype=np.int64)

    def update(self, images: NDArray[np.uint8]) -> None:
        """Count the values of images uint8 [..., C]."""
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


def pixel_digest(image: NDArray[np.uint8]) -> bytes:
    """SHA-256 of an image's shape (H, W, C), three int64, little-endian, and its bytes uint8 [H, W, C]."""
    digest = hashlib.sha256(np.array(image.shape, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


class PixelHash:
    """SHA-256 over `pixel_digest` and label, int64, little-endian, of each image of a split, in order: the same for
    all formats."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def update(self, images: Iterable[bytes], labels: NDArray[np.int64]) -> None:
        """images: their digests."""
        for image, label in zip(images, labels.astype("<i8"), strict=True):
            self._digest.update(image + label.tobytes())

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
