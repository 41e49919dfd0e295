"""The resized crop on the CPU, compiled by Numba; see `kernels.resized_crop` for what it computes.

Images are drawn for, cropped and changed one by one, on as many threads as PyTorch uses: a compiled function that
needs neither Python nor its lock.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba.extending import register_jitable
from numpy.typing import NDArray
from torch import Tensor

from fast_train.kernels.numba_cache import compiled
from fast_train.kernels.philox import (
    STREAM_AUGMENT,
    STREAM_COLOUR,
    STREAM_CROP,
    STREAM_ERASE,
    below,
    multiply,
    philox4x32,
)
from fast_train.kernels.resample import ERASED_AREA, PRECISION, RATIOS, Resampling, in_units, taps
from fast_train.kernels.resized_crop_reference import GREY, TRIES, Ragged
from fast_train.kernels.spec import UNIT, CropSpec

_HALF = 1 << (PRECISION - 1)
_WORD = 0xFFFFFFFF
# Rows that are resized together: four bytes of each fill one of the cache's lines.
_ROWS = 16
# Numba knows no bfloat16: values are moved as whole numbers of their size.
_AS_WHOLE = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}

# Functions of numbers, for compiled ones to call.
for _function in (multiply, philox4x32, below, taps):
    register_jitable(_function)


class _Draws(NamedTuple):
    """What is drawn for each image: `CropSpec` in whole numbers, and of what seed and epoch."""

    seed: int
    epoch: int
    random: bool
    area: tuple[int, int]
    ratio: tuple[int, int]
    centre: int
    flip: bool
    colour: bool
    spreads: tuple[int, int, int]
    erase: int


def _draws(spec: CropSpec, seed: int, epoch: int) -> _Draws:
    low, high = spec.scale or (1.0, 1.0)
    return _Draws(
        seed=seed,
        epoch=epoch & _WORD,
        random=spec.scale is not None,
        area=(in_units(low), in_units(high)),
        ratio=(in_units(spec.ratio[0]), in_units(spec.ratio[1])),
        centre=in_units(spec.centre),
        flip=spec.flip,
        colour=spec.colour,
        spreads=(in_units(spec.brightness), in_units(spec.contrast), in_units(spec.saturation)),
        erase=in_units(spec.erase),
    )


@register_jitable
def _words(draws, index, stream, attempt):  # type: ignore[no-untyped-def]
    """`kernels.philox.sample_words` for one sample."""
    return philox4x32(draws.seed, index & _WORD, draws.epoch, stream, attempt)


@register_jitable
def _whole_root(value: int) -> int:
    """`kernels.resized_crop_reference.whole_root`."""
    root = np.int64(np.sqrt(value))
    if root * root > value:
        root -= 1
    if (root + 1) * (root + 1) <= value:
        root += 1
    return root


@register_jitable
def _random_box(height, width, index, area, roots, draws, stream):  # type: ignore[no-untyped-def]
    """`kernels.resized_crop_reference.random_boxes` for one image: (top, left, height, width)."""
    for attempt in range(TRIES):
        r0, r1, r2, r3 = _words(draws, index, stream, attempt)
        side = _whole_root(height * width * (area[0] + below(r0, area[1] - area[0] + 1)) * UNIT)
        ratio = roots[below(r1, RATIOS)]
        wide, tall = ((side * ratio[0] + UNIT * UNIT // 2) >> 32, (side * ratio[1] + UNIT * UNIT // 2) >> 32)
        if 0 < wide <= width and 0 < tall <= height:
            return below(r2, height - tall + 1), below(r3, width - wide + 1), tall, wide
    return 0, 0, 0, 0


@register_jitable
def _crop_box(height, width, index, roots, draws):  # type: ignore[no-untyped-def]
    """`kernels.resized_crop_reference.crop_boxes` for one image."""
    if draws.random:
        box = _random_box(height, width, index, draws.area, roots, draws, STREAM_CROP)
        if box[2] > 0:
            return box
        low, high = draws.ratio
        tall = min(height, max((2 * width * UNIT + low) // (2 * low), 1))
        wide = min(width, max((2 * height * high + UNIT) // (2 * UNIT), 1))
    else:
        tall = wide = max((min(height, width) * draws.centre + UNIT // 2) // UNIT, 1)
    return (height - tall) // 2, (width - wide) // 2, tall, wide


@register_jitable
def _erased_box(size, index, roots, draws):  # type: ignore[no-untyped-def]
    """`kernels.resized_crop_reference.erased_boxes` for one image."""
    if draws.erase and below(_words(draws, index, STREAM_ERASE, TRIES)[0], UNIT) < draws.erase:
        return _random_box(size, size, index, ERASED_AREA, roots, draws, STREAM_ERASE)
    return 0, 0, 0, 0


class _Scratch(NamedTuple):
    """What a thread computes in. Pixels are moved four bytes at a time, so rows have room for three more."""

    row: NDArray[np.uint8]
    columns: NDArray[np.uint8]
    resized: NDArray[np.uint8]
    sums: NDArray[np.int32]
    lines: NDArray[np.uint8]
    pixels: NDArray[np.uint8]
    planes: NDArray[np.uint8]


def _scratch(longest: int, size: int, channels: int) -> _Scratch:
    """For images of up to ``longest`` pixels a side."""
    # `_resize` reads beyond the last line.
    length = longest + taps(longest, size)
    return _Scratch(
        row=np.empty(longest * channels + 3, np.uint8),
        columns=np.empty((length, 4 * _ROWS), np.uint8),
        resized=np.empty((size, 4 * _ROWS), np.uint8),
        sums=np.empty(max(size * channels, 4 * _ROWS), np.int32),
        lines=np.empty((length, size * channels + 3), np.uint8),
        pixels=np.empty((size, size * channels), np.uint8),
        planes=np.empty((3, size * size), np.uint8),
    )


def _resize_by(reads: int) -> Any:
    """`_resize` where each sum reads so many lines: a constant, so that it stays in the processor's registers."""

    @register_jitable
    def resize(lines, firsts, weights, out):  # type: ignore[no-untyped-def]
        for y in range(out.shape[0]):
            first = np.uint64(firsts[y])
            for i in range(out.shape[1]):
                total = np.int32(_HALF)
                for k in range(reads):
                    # Converted, as Numba's sum of two int32 is an int64, of which a vector holds half as many.
                    total = np.int32(total + np.int32(lines[first + np.uint64(k), i]) * weights[y * reads + k])
                # A byte: no weight is negative, and their sum is 1 but for the rounding of so few.
                out[y, i] = total >> PRECISION

    return resize


_resize_2, _resize_3, _resize_4 = _resize_by(2), _resize_by(3), _resize_by(4)


# Compiled once for its two callers, where `register_jitable` compiles for each.
@numba.njit(nogil=True)
def _resize(lines, length, tables, sums, out):  # type: ignore[no-untyped-def]
    """lines uint8 [length, n or more] to out uint8 [size, n]. sums: int32, n or more.

    Lines beyond the last one are read too, but their weights are 0.
    """
    size, count = out.shape
    reads, firsts, weights = taps(length, size), tables.firsts[length], tables.weights[tables.bases[length] :]
    if reads == 2:
        _resize_2(lines, firsts, weights, out)
    elif reads == 3:
        _resize_3(lines, firsts, weights, out)
    elif reads == 4:
        _resize_4(lines, firsts, weights, out)
    else:
        for y in range(size):
            sums[:count] = _HALF
            for k in range(reads):
                weight, line = weights[y * reads + k], lines[firsts[y] + k]
                for i in range(count):
                    sums[i] += np.int32(line[i]) * weight
            for i in range(count):
                # Of many thousand weights the rounding may add up.
                out[y, i] = min(sums[i] >> PRECISION, 255)


@register_jitable
def _to_columns(data, begin, pitch, rows, wide, channels, channel, row, columns):  # type: ignore[no-untyped-def]
    """Four bytes of each pixel, from its ``channel`` on, to columns uint8 [wide, 4 * _ROWS].

    data: uint8, in which the rows of pixels begin at ``begin`` and ``pitch`` bytes apart.
    """
    count = wide * channels
    for y in range(rows):
        # A copy, as the last pixel's four bytes may reach beyond the last image.
        source = data[begin + y * pitch : begin + y * pitch + count]
        for i in range(count):
            row[i] = source[i]
        # Unsigned: a signed index might count from the end, which costs a branch.
        k = np.uint64(4 * y)
        for x in range(wide):
            i, column = np.uint64(x * channels + channel), columns[x]
            a, b, c, d = row[i], row[i + np.uint64(1)], row[i + np.uint64(2)], row[i + np.uint64(3)]
            column[k], column[k + np.uint64(1)], column[k + np.uint64(2)], column[k + np.uint64(3)] = a, b, c, d


@register_jitable
def _to_rows(columns, mirror, channels, channel, lines):  # type: ignore[no-untyped-def]
    """columns uint8 [size, 4 * _ROWS] to lines uint8 [rows, size * C + 3], mirrored if ``mirror``.

    What of the four bytes is beyond a pixel's channels is overwritten by the next pixel's.
    """
    size = len(columns)
    first, step = (size - 1, -1) if mirror else (0, 1)
    for y in range(len(lines)):
        line, k = lines[y], np.uint64(4 * y)
        for x in range(size):
            i, column = np.uint64(x * channels + channel), columns[np.uint64(first + step * x)]
            a, b, c, d = column[k], column[k + np.uint64(1)], column[k + np.uint64(2)], column[k + np.uint64(3)]
            line[i], line[i + np.uint64(1)], line[i + np.uint64(2)], line[i + np.uint64(3)] = a, b, c, d


@register_jitable
def _resize_rows(data, begin, pitch, tall, wide, channels, mirror, tables, scratch):  # type: ignore[no-untyped-def]
    """``tall`` rows, each from ``wide`` pixels to ``size``, to the scratch's lines; for the rest see `_to_columns`.

    Sums of whole lines take the processor's vectors, so some rows at a time are laid out as columns for it.
    """
    for y in range(0, tall, _ROWS):
        rows = min(_ROWS, tall - y)
        # The last channels first: four bytes may reach into the next pixel.
        for channel in range((channels - 1) // 4 * 4, -1, -4):
            _to_columns(data, begin + y * pitch, pitch, rows, wide, channels, channel, scratch.row, scratch.columns)
            _resize(scratch.columns, wide, tables, scratch.sums, scratch.resized)
            _to_rows(scratch.resized, mirror, channels, channel, scratch.lines[y : y + rows])


@register_jitable
def _scale(pivot, value, factor):  # type: ignore[no-untyped-def]
    """`kernels.resized_crop_reference.scale_from`: int32."""
    # Converted at each step, as Numba computes in int64, of which a vector holds half as many.
    moved = np.int32((value - pivot) * factor + UNIT // 2) >> 16
    return np.int32(min(max(np.int32(pivot + moved), 0), 255))


@register_jitable
def _grey(r, g, b):  # type: ignore[no-untyped-def]
    return np.int32(r * GREY[0] + g * GREY[1] + b * GREY[2] + UNIT // 2) >> 16


@register_jitable
def _factor(word, spread):  # type: ignore[no-untyped-def]
    """A factor of `kernels.resized_crop_reference.colour_factors`."""
    return np.int32(UNIT - spread + below(word, 2 * spread + 1))


@register_jitable
def _change_colours(pixels, planes, index, draws):  # type: ignore[no-untyped-def]
    """pixels: uint8 [3 * n], in place. planes: uint8 [3, n], what brightness makes of them: loops from one array into
    another take the processor's vectors."""
    words = _words(draws, index, STREAM_COLOUR, 0)
    brightness, contrast = _factor(words[0], draws.spreads[0]), _factor(words[1], draws.spreads[1])
    saturation = _factor(words[2], draws.spreads[2])
    reds, greens, blues = planes[0], planes[1], planes[2]
    # Below 2**28: MAX_OUTPUT squared, times 255.
    count, total = len(reds), np.int32(0)
    for i in range(count):
        k = np.uint64(3 * i)
        r = _scale(0, pixels[k], brightness)
        g = _scale(0, pixels[k + np.uint64(1)], brightness)
        b = _scale(0, pixels[k + np.uint64(2)], brightness)
        reds[i], greens[i], blues[i] = r, g, b
        total = np.int32(total + _grey(r, g, b))
    mean = np.int32((2 * total + count) // (2 * count))
    for i in range(count):
        r, g, b = _scale(mean, reds[i], contrast), _scale(mean, greens[i], contrast), _scale(mean, blues[i], contrast)
        k, own = np.uint64(3 * i), _grey(r, g, b)
        pixels[k] = _scale(own, r, saturation)
        pixels[k + np.uint64(1)] = _scale(own, g, saturation)
        pixels[k + np.uint64(2)] = _scale(own, b, saturation)


@register_jitable
def _look_up(pixels, values, out):  # type: ignore[no-untyped-def]
    """pixels uint8 [size * C] to out [size * C], from values [C, 256]."""
    channels = len(values)
    for c in range(channels):
        channel = values[c]
        for i in range(c, len(pixels), channels):
            # Unsigned: a signed index might count from the end, which costs a branch.
            out[np.uint64(i)] = channel[pixels[np.uint64(i)]]


# Compiled once, for values of any type.
@numba.njit(nogil=True)
def _make_pixels(images, row, index, draws, tables, scratch):  # type: ignore[no-untyped-def]
    """Image ``row`` as bytes: cropped, resized, mirrored, its colours changed. To ``pixels`` of the scratch."""
    pixels = scratch.pixels
    size = len(pixels)
    channels = pixels.shape[1] // size
    height, width = np.int64(images.heights[row]), np.int64(images.widths[row])
    top, left, tall, wide = _crop_box(height, width, index, tables.ratios, draws)
    mirror = draws.flip and below(_words(draws, index, STREAM_AUGMENT, 0)[2], 2) == 1
    # Along the rows, then along the columns.
    start = images.offsets[row] + (top * width + left) * channels
    _resize_rows(images.data, start, width * channels, tall, wide, channels, mirror, tables, scratch)
    _resize(scratch.lines, tall, tables, scratch.sums, pixels)
    if draws.colour:
        _change_colours(pixels.reshape(-1), scratch.planes, index, draws)


@compiled
def _crop_images(begin, end, images, indices, gather, draws, tables, values, out, scratch):  # type: ignore[no-untyped-def]
    """Images ``begin`` to ``end`` of the batch: out [N, size, size * C], from values [C, 256] of its type."""
    # They come as plain tuples: the types of arguments are kept with the code on the disk, and a class that is no
    # longer there could not be read from it.
    images, draws, tables, scratch = Ragged(*images), _Draws(*draws), Resampling(*tables), _Scratch(*scratch)
    size, channels = len(scratch.pixels), len(values)
    for i in range(begin, end):
        _make_pixels(images, indices[i] if gather else i, indices[i], draws, tables, scratch)
        for y in range(size):
            _look_up(scratch.pixels[y], values, out[i, y])
        top, left, tall, wide = _erased_box(size, indices[i], tables.erased, draws)
        out[i, top : top + tall, left * channels : (left + wide) * channels] = 0


def resized_crop_cpu(
    images: Ragged, indices: Tensor, table: Tensor, resampling: Resampling, *,
    spec: CropSpec, seed: int, epoch: Tensor, gather: bool,
) -> Tensor:  # fmt: skip
    """`kernels.resized_crop.resized_crop` on the CPU, on ``torch.get_num_threads()`` threads. IndexError for an index
    beyond the images, if ``gather``."""
    if gather and len(indices):
        low, high = indices.aminmax()
        if low < 0 or high >= len(images.offsets):
            raise IndexError(f"indices reach from {low} to {high}, the images from 0 to {len(images.offsets) - 1}")
    count, size, channels = len(indices), spec.size, table.shape[1]
    out = torch.empty((count, size, size, channels), dtype=table.dtype)
    _use_huge_pages(out)
    whole = _AS_WHOLE[table.dtype]
    arguments = (
        _numpy(images), indices.numpy(), gather, tuple(_draws(spec, seed, int(epoch))), _numpy(resampling),
        table.t().contiguous().view(whole).numpy(), out.view(whole).view(count, size, size * channels).numpy(),
    )  # fmt: skip
    longest = len(resampling.firsts) - 1
    # Shares of equal numbers of images: a thread that is done early takes another.
    share = max(count // (4 * torch.get_num_threads()), 1)
    jobs = [(begin, min(begin + share, count)) for begin in range(0, count, share)]

    def run(job: tuple[int, int]) -> None:
        _crop_images(*job, *arguments, tuple(_scratch(longest, size, channels)))

    for _ in _threads(torch.get_num_threads()).map(run, jobs):
        pass
    return out.permute(0, 3, 1, 2)


def _numpy(tensors: Iterable[Tensor]) -> tuple[NDArray[np.generic], ...]:
    return tuple(tensor.numpy() for tensor in tensors)


def _use_huge_pages(tensor: Tensor) -> None:
    """Have Linux give fresh memory in large pages: the first touch of small ones takes as long as the pixels.

    PyTorch itself does it where THP_MEM_ALLOC_ENABLE is set.
    """
    if hasattr(mmap, "MADV_HUGEPAGE"):
        begin, end = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE, tensor.data_ptr() + tensor.nbytes
        if begin < end:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_HUGEPAGE)


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="resized-crop")
