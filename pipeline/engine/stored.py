"""Single images of a prepared set, without a loader."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fast_train.common.text import show
from fast_train.data_prep.formats.decode import decode_rgb
from fast_train.data_prep.formats.packed import PackedSplit
from fast_train.data_prep.manifest import PreparedSet, PreparedSetError


def stored_pixels(prepared: PreparedSet, split: str, indices: Iterable[int]) -> list[NDArray[np.uint8]]:
    """The pixels uint8 [H, W, C] of images of a split, by their numbers, from its packed file; PreparedSetError where
    there is none or where an image can't be decoded."""
    encoded = prepared.any_packed(split)
    if isinstance(encoded, PackedSplit):
        return [encoded.images[index] for index in indices]
    pixels = []
    for index in map(int, indices):
        try:
            pixels.append(decode_rgb(encoded.file(index), encoded.heights[index], encoded.widths[index]))
        except PreparedSetError as error:
            raise PreparedSetError(f"image {index:,} of split '{split}' of {show(prepared.root)} {error}") from error
    return pixels


def stored_labels(prepared: PreparedSet, split: str) -> NDArray[np.int64]:
    """The labels int64 [N] of a split, from its packed file."""
    return prepared.any_packed(split).labels
