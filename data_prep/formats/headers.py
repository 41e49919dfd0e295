"""Whether JPEG and PNG files inside of a larger file are what the manifest says, by their headers alone.

FFCV takes no notice of a decoder's error and leaves the pixels of another image in the batch; DALI decodes whatever
size a header says. So a file is held to its size, and to what all decoders make the same pixels of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fast_train.common.text import show
from fast_train.data_prep.errors import ANEW, PreparedSetError
from fast_train.data_prep.whole import check_once

# https://www.w3.org/Graphics/JPEG/itu-t81.pdf, tables B.1 and B.2: baseline and progressive frames, and the scan.
_BASELINE, _PROGRESSIVE, _SCAN = 0xC0, 0xC2, 0xDA
# Huffman tables, quantisation tables, restart interval, JFIF: none of these turns or recolours an image.
_TABLES = (0xC4, 0xDB, 0xDD, 0xE0)
# Application data and comments, which nobody is to heed.
_METADATA = (*range(0xE1, 0xF0), 0xFE)
_ADOBE, _ADOBE_NAME, _ADOBE_TRANSFORM, _YCBCR = 0xEE, np.frombuffer(b"Adobe", np.uint8), 15, 1
# Of a segment with a frame: its marker, length, precision, height, width and number of channels; the same with the
# number, sampling and table of each of three channels.
_FRAME_BYTES, _WHOLE_FRAME_BYTES = 10, 19
_BITS = 8

_PNG_START = np.frombuffer(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR", np.uint8)
# After width and height: 8 bits, red, green and blue, compressed and filtered as usual, line by line.
_PNG_KIND = np.frombuffer(b"\x08\x02\0\0\0", np.uint8)
_PNG_END = np.frombuffer(b"\0\0\0\0IEND\xaeB`\x82", np.uint8)
_PNG_HEAD = 29
# Files of which the headers are looked at together: enough to be fast, and a few megabytes.
_AT_A_TIME = 1 << 15

Ints = NDArray[np.int64]


def _among(*values: int) -> NDArray[np.bool_]:
    """Of each byte, whether it is one of the values: to look up, which is faster than to search."""
    return np.isin(np.arange(256), values)


# Horizontal and vertical sampling of luminance; that of the colours is 1x1.
_SAMPLINGS = _among(0x11, 0x12, 0x14, 0x21, 0x22, 0x41)


@dataclass(frozen=True)
class _Rule:
    """What may come before the scan of a JPEG file: these kinds of frames and segments, at most so many; and how many
    channels it may have. Each as `_among` gives it."""

    frames: NDArray[np.bool_]
    others: NDArray[np.bool_]
    channels: NDArray[np.bool_]
    segments: int


_AS_THEY_CAME = _Rule(_among(_BASELINE, _PROGRESSIVE), _among(*_TABLES, *_METADATA), _among(1, 3), 64)


def check_jpegs(path: Path, begins: Ints, sizes: Ints, image_shape: Sequence[int]) -> None:
    """PreparedSetError unless each of the parts of a file is a JPEG file of shape (H, W, C), as `jpeg_of` writes
    them: looked at once.

    begins, sizes: int64 [n], in bytes; each part lies in the file.
    """
    height, width, channels = image_shape
    rule = _Rule(_among(_BASELINE), _among(*_TABLES), _among(channels), 32)

    def right(data: NDArray[np.uint8]) -> bool:
        heights, widths = (np.full(len(begins), side) for side in (height, width))
        return _are_jpegs(data, begins, begins + sizes, heights, widths, rule)

    what = f"JPEG files are not all of {width}x{height}x{channels}"
    _check(path, f"JPEG {height}x{width}x{channels}", (begins, sizes), right, what)


def check_images(
    path: Path,
    begins: Ints,
    sizes: Ints,
    heights: NDArray[np.int32],
    widths: NDArray[np.int32],
    *,
    png: bool = True,
) -> None:
    """PreparedSetError unless each of the parts of a file is a JPEG or, where ``png`` allows it, a PNG file of its
    height and width, int32 [n]: looked at once.

    begins, sizes: int64 [n], in bytes; each part lies in the file.
    """

    def right(data: NDArray[np.uint8]) -> bool:
        if (sizes < 2).any():
            return False
        is_png = (data[begins] == _PNG_START[0]) & png
        for kind, are_right in ((is_png, _are_pngs), (~is_png, _are_plain_jpegs)):
            places = np.flatnonzero(kind)
            for chosen in np.split(places, range(_AT_A_TIME, len(places), _AT_A_TIME)):
                if not are_right(data, begins[chosen], (begins + sizes)[chosen], heights[chosen], widths[chosen]):
                    return False
        return True

    what = "image files are not all of their heights and widths"
    _check(path, f"images, png {png}", (begins, sizes, heights, widths), right, what)


def is_plain_jpeg(content: bytes, height: int, width: int) -> bool:
    """Whether a file is a JPEG of this height and width, as its pixels lie, that can be stored as it is."""
    begins, ends, heights, widths = (np.array([value]) for value in (0, len(content), height, width))
    return _are_plain_jpegs(np.frombuffer(content, np.uint8), begins, ends, heights, widths)


def _check(
    path: Path, claim: str, numbers: Sequence[NDArray[Any]], right: Callable[[NDArray[np.uint8]], bool], what: str
) -> None:
    """PreparedSetError, which says what is wrong, unless the bytes of the file are right: looked at once.

    claim, numbers: all that the answer depends on."""
    if not len(numbers[0]):
        return
    places = hashlib.sha256(b"".join(column.tobytes() for column in numbers)).hexdigest()

    def check(file: BinaryIO) -> None:
        if not right(np.memmap(file, dtype=np.uint8, mode="r")):
            raise PreparedSetError(f"{show(path)} is not a whole file of this set: its {what}; {ANEW}")

    check_once(path, f"{claim} at {places}", check)


def _are_jpegs(
    data: NDArray[np.uint8], begins: Ints, ends: Ints, heights: NDArray[Any], widths: NDArray[Any], rule: _Rule
) -> bool:
    """Goes through the segments of all files at a time, up to the scan; each must have one frame before it."""
    if (ends - begins < 4).any() or (_take(data, begins, 2) != [0xFF, 0xD8]).any():
        return False
    if (_take(data, ends - 2, 2) != [0xFF, 0xD9]).any():
        return False
    at, channels, other_colours = begins + 2, np.zeros(len(begins), np.uint8), np.zeros(len(begins), np.bool_)
    for _ in range(rule.segments):
        if not len(at):
            return True
        if (at + _FRAME_BYTES > ends).any():
            return False
        head = _take(data, at, _WHOLE_FRAME_BYTES)
        kind = head[:, 1]
        is_frame, is_scan = rule.frames[kind], kind == _SCAN
        if not ((head[:, 0] == 0xFF) & (is_frame | is_scan | rule.others[kind])).all():
            return False
        if is_frame.any():
            if not (~is_frame | (_are_frames(head, heights, widths, rule) & (channels == 0))).all():
                return False
            channels = np.where(is_frame, head[:, 9], channels)
        adobe = (kind == _ADOBE) & (head[:, 4:9] == _ADOBE_NAME).all(axis=1)
        other_colours |= adobe & (head[:, _ADOBE_TRANSFORM] != _YCBCR)
        at = at + 2 + _number(head[:, 2:4])
        if is_scan.any():
            if (is_scan & ((channels == 0) | ((channels == 3) & other_colours))).any():
                return False
            at, ends, heights, widths, channels, other_colours = (
                column[~is_scan] for column in (at, ends, heights, widths, channels, other_colours)
            )
    return not len(at)


_are_plain_jpegs = partial(_are_jpegs, rule=_AS_THEY_CAME)


def _are_frames(head: NDArray[np.uint8], heights: NDArray[Any], widths: NDArray[Any], rule: _Rule) -> NDArray[np.bool_]:
    """Whether segments, uint8 [n, _WHOLE_FRAME_BYTES], describe images of these sides, in grey or in colours that every
    decoder takes for YCbCr."""
    channels = head[:, 9]
    sides = (_number(head[:, 5:7]) == heights) & (_number(head[:, 7:9]) == widths)
    plain = (head[:, 4] == _BITS) & rule.channels[channels] & (_number(head[:, 2:4]) == 8 + 3 * channels)
    sampled = _SAMPLINGS[head[:, 11]] & (head[:, [14, 17]] == 0x11).all(axis=1)
    named_rgb = (head[:, [10, 13, 16]] == np.frombuffer(b"RGB", np.uint8)).all(axis=1)
    return np.asarray(sides & plain & ((channels == 1) | (sampled & ~named_rgb)))


def _are_pngs(data: NDArray[np.uint8], begins: Ints, ends: Ints, heights: NDArray[Any], widths: NDArray[Any]) -> bool:
    if (ends - begins < _PNG_HEAD + len(_PNG_END)).any():
        return False
    head = _take(data, begins, _PNG_HEAD)
    sides = (_number(head[:, 16:20]) == widths) & (_number(head[:, 20:24]) == heights)
    kind = (head[:, :16] == _PNG_START).all(axis=1) & (head[:, 24:] == _PNG_KIND).all(axis=1)
    end = (_take(data, ends - len(_PNG_END), len(_PNG_END)) == _PNG_END).all(axis=1)
    return bool((sides & kind & end).all())


def _number(digits: NDArray[np.uint8]) -> Ints:
    """Bytes [n, k], the highest first, as numbers [n]."""
    return digits.astype(np.int64) @ (1 << 8 * np.arange(digits.shape[1])[::-1])


def _take(data: NDArray[np.uint8], begins: Ints, count: int) -> NDArray[np.uint8]:
    """The bytes from each of the places on, uint8 [n, count]; past the end of the data, its last byte."""
    return np.asarray(data[np.minimum(begins[:, None] + np.arange(count), len(data) - 1)])
