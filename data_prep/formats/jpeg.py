"""Whether JPEG files inside of a larger one are what the manifest says, by their headers alone.

FFCV takes no notice of a decoder's error and leaves the pixels of another image in the batch; DALI decodes whatever
size a header says. So a file is held to the size, the channels and the kinds of segments that `JpegEncoder` writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fast_train.common.text import show
from fast_train.data_prep.errors import ANEW, PreparedSetError
from fast_train.data_prep.whole import check_once

# https://www.w3.org/Graphics/JPEG/itu-t81.pdf, tables B.1 and B.2: baseline frame, start of the scan, and what may come
# before that: Huffman tables, quantisation tables, restart interval, JFIF. None of these turns or recolours an image.
_FRAME, _SCAN = 0xC0, 0xDA
_SEGMENTS = (_FRAME, _SCAN, 0xC4, 0xDB, 0xDD, 0xE0)
_MOST_SEGMENTS = 32
# Of the marker, its length, precision, height, width and number of channels.
_FRAME_BYTES = 10
_BITS = 8


def check_jpegs(path: Path, begins: NDArray[np.int64], sizes: NDArray[np.int64], image_shape: Sequence[int]) -> None:
    """PreparedSetError unless each of the parts of a file is a JPEG file of shape (H, W, C): looked at once.

    begins, sizes: int64 [n], in bytes; each part lies in the file.
    """
    if not len(begins):
        return
    places = hashlib.sha256(np.stack([begins, sizes]).tobytes()).hexdigest()
    height, width, channels = image_shape

    def check(file: BinaryIO) -> None:
        if not _are_jpegs(np.memmap(file, dtype=np.uint8, mode="r"), begins, begins + sizes, image_shape):
            what = f"its JPEG files are not all of {width}x{height}x{channels}"
            raise PreparedSetError(f"{show(path)} is not a whole file of this set: {what}; {ANEW}")

    check_once(path, f"JPEG {height}x{width}x{channels} at {places}", check)


def _are_jpegs(
    data: NDArray[np.uint8], begins: NDArray[np.int64], ends: NDArray[np.int64], image_shape: Sequence[int]
) -> bool:
    """Goes through the segments of all files at a time, up to the scan; each must have one frame before it."""
    height, width, channels = image_shape
    frame = [_BITS, height >> 8, height & 255, width >> 8, width & 255, channels]
    if (ends - begins < 4).any() or (_take(data, begins, 2) != [0xFF, 0xD8]).any():
        return False
    if (_take(data, ends - 2, 2) != [0xFF, 0xD9]).any():
        return False
    at, has_frame = begins + 2, np.zeros(len(begins), dtype=bool)
    for _ in range(_MOST_SEGMENTS):
        if (at + _FRAME_BYTES > ends).any():
            return False
        head = _take(data, at, _FRAME_BYTES)
        kind, length = head[:, 1], head[:, 2].astype(np.int64) << 8 | head[:, 3]
        is_frame, is_scan = kind == _FRAME, kind == _SCAN
        known = (head[:, 0] == 0xFF) & np.isin(kind, _SEGMENTS)
        right = ~is_frame | ((head[:, 4:] == frame).all(axis=1) & ~has_frame)
        if not (known & right & (has_frame | ~is_scan)).all():
            return False
        left = ~is_scan
        at, ends, has_frame = (at + 2 + length)[left], ends[left], (has_frame | is_frame)[left]
        if not len(at):
            return True
    return False


def _take(data: NDArray[np.uint8], begins: NDArray[np.int64], count: int) -> NDArray[np.uint8]:
    """The bytes from each of the places on: uint8 [n, count]."""
    return np.asarray(data[begins[:, None] + np.arange(count)])
