"""A built-in set of made-up images, for machines that can't get real ones.

Each class is a smooth pattern; an image shows it shifted, with other contrast and colour, over another smooth pattern
without meaning, under noise. All of it is integer arithmetic on the raw stream of PCG64, which NumPy keeps fixed,
so the bytes are the same on every machine and with every version.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fast_train.data_prep.sources.base import Chunk, Plan, Source

_CLASSES, _SIDE = 10, 32
_COUNTS = {"train": 10_000, "test": 2_000}
_CHUNK = 500
# To be raised with any change of a byte, so that an older set is not taken for this one.
_VERSION = 1

_WAVES = 4
_AMPLITUDE = 1 << 10
_COSINE = np.array([round(_AMPLITUDE * math.cos(2 * math.pi * i / _SIDE)) for i in range(_SIDE)], dtype=np.int64)


class _Draws:
    """Integers from the raw stream of PCG64 at a seed."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(list(seed))

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Uniform in [low, high); the remainder's bias, at most 2**-48, is negligible."""
        raw: NDArray[np.uint64] = self._bits.random_raw(math.prod(shape)) >> np.uint64(16)
        offsets: NDArray[np.int64] = (raw % np.uint64(high - low)).astype(np.int64)
        return low + offsets.reshape(shape)

    def noise(self, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Near-normal: sums of four bytes, of mean 0 and standard deviation 148."""
        words = self._bits.random_raw(-(-math.prod(shape) // 2))
        # By shifts, not by a view: the order of bytes in memory depends on the machine.
        quads = np.stack([words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)], axis=1).ravel()[: math.prod(shape)]
        total = sum((quads >> np.uint64(8 * i)) & np.uint64(255) for i in range(4))
        return np.asarray(total).astype(np.int64).reshape(shape) - 510


def _smooth(draws: _Draws, count: int) -> NDArray[np.int64]:
    """``count`` smooth periodic patterns [count, side, side, 3] of a few waves each, within 4 * 3 * 1024 of 0."""
    frequencies = draws.integers(-3, 4, (2, count, _WAVES, 1, 1, 1))
    phases = draws.integers(0, _SIDE, (count, _WAVES, 1, 1, 3))
    weights = draws.integers(-3, 4, (count, _WAVES, 1, 1, 3))
    y, x = np.arange(_SIDE).reshape(-1, 1, 1), np.arange(_SIDE).reshape(1, -1, 1)
    waves = _COSINE[(frequencies[0] * y + frequencies[1] * x + phases) % _SIDE]
    return np.asarray((waves * weights).sum(axis=1))


def _render(patterns: NDArray[np.int64], labels: NDArray[np.int64], draws: _Draws) -> NDArray[np.uint8]:
    """Images uint8 [n, side, side, 3] of the classes ``labels``."""
    n = len(labels)
    shifts = draws.integers(-8, 9, (2, n, 1, 1))
    rows = (np.arange(_SIDE).reshape(-1, 1) + shifts[0]) % _SIDE
    columns = (np.arange(_SIDE) + shifts[1]) % _SIDE
    contrast = draws.integers(24, 96, (n, 1, 1, 1))
    colour = draws.integers(-40, 41, (n, 1, 1, 3)) * 1024
    # One background of 64 for each image: as loud as the class's own pattern.
    background = _smooth(draws, 64)[draws.integers(0, 64, (n,))] * draws.integers(32, 96, (n, 1, 1, 1))
    pattern: NDArray[np.int64] = patterns[labels[:, None, None], rows, columns] * contrast
    noise = draws.noise((n, _SIDE, _SIDE, 3)) * 160
    value: NDArray[np.int64] = (pattern + background) // 8 + colour + noise
    return (128 + (value >> 10)).clip(0, 255).astype(np.uint8)


class Synthetic(Source):
    """10,000 training and 2,000 test images of 32x32 RGB in 10 classes."""

    kind = "synthetic"

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind, "version": _VERSION}

    def plan(self, scratch: Path) -> Plan:
        classes = tuple(f"synthetic-{i}" for i in range(_CLASSES))
        return Plan(classes=classes, shape=(_SIDE, _SIDE, 3), counts=dict(_COUNTS))

    def read(self, split: str) -> Iterator[Chunk]:
        patterns = _smooth(_Draws(_VERSION), _CLASSES)
        labels = np.arange(_CHUNK, dtype=np.int64) % _CLASSES
        for number in range(_COUNTS[split] // _CHUNK):
            yield Chunk(_render(patterns, labels, _Draws(_VERSION, list(_COUNTS).index(split), number)), labels)
