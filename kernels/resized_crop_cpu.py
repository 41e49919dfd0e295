"""The resized crop on the CPU, compiled by Numba; see `kernels.resized_crop` for what it computes.

The draws are PyTorch's, for the whole batch. The pixels are moved here, image by image, on as many threads as PyTorch
uses: a compiled function that needs neither Python nor its lock.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fast_train.kernels.resample import PRECISION, Resampling, taps
from fast_train.kernels.resized_crop_reference import (
    GREY,
    Ragged,
    colour_factors,
    crop_boxes,
    erased_boxes,
    mirrored,
)
from fast_train.kernels.spec import UNIT, CropSpec

_HALF = 1 << (PRECISION - 1)
# Numba knows no bfloat16: values are moved as whole numbers of their size.
_AS_WHOLE = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def _compiled(function: Callable[..., Any]) -> Any:
    """Free of Python's lock, and kept on the disk for the next process where there is a folder for it."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        # Neither beside this file nor in a home: Numba then refuses.
        return numba.njit(nogil=True)(function)


_taps = numba.njit(nogil=True)(taps)


@_compiled
def _weights_of(length, size, weights, bases):  # type: ignore[no-untyped-def]
    """Those from ``length`` pixels to ``size``: [size, taps]."""
    count = _taps(length, size)
    return weights[bases[length] : bases[length] + size * count].reshape((size, count))


@_compiled
def _transpose(pixels, mirror, out):  # type: ignore[no-untyped-def]
    """pixels uint8 [a, b, C], its first axis turned round if ``mirror``, to out [b, a, C]."""
    height, width, channels = pixels.shape
    # Sixteen rows at a time stay in the cache while columns are read from them.
    for start in range(0, height, 16):
        for x in range(width):
            for y in range(start, min(start + 16, height)):
                row = pixels[height - 1 - y if mirror else y]
                if channels == 3:
                    # Twice as fast as the loop.
                    out[x, y, 0], out[x, y, 1], out[x, y, 2] = row[x, 0], row[x, 1], row[x, 2]
                else:
                    for c in range(channels):
                        out[x, y, c] = row[x, c]


@_compiled
def _resize(lines, first, weights, total, out):  # type: ignore[no-untyped-def]
    """lines uint8 [length, n] to out uint8 [size, n]. total: int32, n or more, for sums."""
    size, taps = weights.shape
    count = lines.shape[1]
    for y in range(size):
        total[:count] = _HALF
        # Weights beyond the last line are 0.
        for k in range(min(taps, lines.shape[0] - first[y])):
            weight, line = weights[y, k], lines[first[y] + k]
            for i in range(count):
                total[i] += np.int32(line[i]) * weight
        for i in range(count):
            out[y, i] = min(max(total[i] >> PRECISION, 0), 255)


@_compiled
def _scale(pivot: int, value: int, factor: int) -> int:
    return min(max(pivot + (((value - pivot) * factor + UNIT // 2) >> 16), 0), 255)


@_compiled
def _grey(r: int, g: int, b: int) -> int:
    return (r * GREY[0] + g * GREY[1] + b * GREY[2] + UNIT // 2) >> 16


@_compiled
def _change_colours(pixels, factors):  # type: ignore[no-untyped-def]
    """pixels: uint8 [n, 3], in place."""
    count, total = len(pixels), 0
    for i in range(count):
        for c in range(3):
            pixels[i, c] = _scale(0, pixels[i, c], factors[0])
        total += _grey(pixels[i, 0], pixels[i, 1], pixels[i, 2])
    mean = (2 * total + count) // (2 * count)
    for i in range(count):
        r = _scale(mean, pixels[i, 0], factors[1])
        g = _scale(mean, pixels[i, 1], factors[1])
        b = _scale(mean, pixels[i, 2], factors[1])
        own = _grey(r, g, b)
        pixels[i, 0] = _scale(own, r, factors[2])
        pixels[i, 1] = _scale(own, g, factors[2])
        pixels[i, 2] = _scale(own, b, factors[2])


@_compiled
def _look_up(pixels, values, out):  # type: ignore[no-untyped-def]
    """pixels uint8 [size * C] to out [size * C], from values [C, 256]."""
    channels = len(values)
    for c in range(channels):
        channel = values[c]
        for i in range(c, len(pixels), channels):
            # Unsigned: a signed index might count from the end, which costs a question.
            out[np.uint64(i)] = channel[pixels[np.uint64(i)]]


@_compiled
def _crop_images(  # type: ignore[no-untyped-def]
    begin, end, data, offsets, heights, widths, boxes, erased, flips, colour_factors, colour,
    bases, firsts, weights, values, out,
):  # fmt: skip
    """Images ``begin`` to ``end`` of the batch: out [N, size, size * C], from values [C, 256] of its type."""
    size, channels = firsts.shape[1], values.shape[0]
    pixels = np.empty((size, size * channels), dtype=np.uint8)
    for i in range(begin, end):
        height, width = heights[i], widths[i]
        image = data[offsets[i] : offsets[i] + height * width * channels].reshape((height, width, channels))
        top, left, tall, wide = boxes[i]

        # Crop; resize along the rows, then along the columns. Sums of whole lines take the processor's vectors, so
        # the rows are laid out as columns for it.
        turned = np.empty((wide, tall, channels), dtype=np.uint8)
        resized = np.empty((size, tall, channels), dtype=np.uint8)
        lines = np.empty((tall, size, channels), dtype=np.uint8)
        total = np.empty(max(size, tall) * channels, dtype=np.int32)
        _transpose(image[top : top + tall, left : left + wide], False, turned)
        along = _weights_of(wide, size, weights, bases)
        _resize(turned.reshape((wide, -1)), firsts[wide], along, total, resized.reshape((size, -1)))
        _transpose(resized, flips[i] != 0, lines)
        along = _weights_of(tall, size, weights, bases)
        _resize(lines.reshape((tall, -1)), firsts[tall], along, total, pixels)

        # Change colours, look the values up, erase.
        if colour:
            _change_colours(pixels.reshape((size * size, 3)), colour_factors[i])
        for y in range(size):
            _look_up(pixels[y], values, out[i, y])
        top, left, tall, wide = erased[i]
        out[i, top : top + tall, left * channels : (left + wide) * channels] = 0


def resized_crop_cpu(
    images: Ragged, indices: Tensor, table: Tensor, resampling: Resampling, *,
    spec: CropSpec, seed: int, epoch: Tensor, gather: bool,
) -> Tensor:  # fmt: skip
    """`kernels.resized_crop.resized_crop` on the CPU, on ``torch.get_num_threads()`` threads."""
    count, size, channels = len(indices), spec.size, table.shape[1]
    rows = indices if gather else torch.arange(count)
    heights, widths = images.heights[rows].long(), images.widths[rows].long()
    boxes = crop_boxes(heights, widths, indices, resampling, spec=spec, seed=seed, epoch=epoch)
    erased = erased_boxes(indices, resampling, spec=spec, seed=seed, epoch=epoch)
    out = torch.empty((count, size, size, channels), dtype=table.dtype)
    arguments = (
        *_numpy(images.data, images.offsets[rows], heights, widths),
        *_numpy(torch.stack(boxes, dim=1), torch.stack(erased, dim=1)),
        *_numpy(mirrored(indices, spec=spec, seed=seed, epoch=epoch)),
        *_numpy(colour_factors(indices, spec=spec, seed=seed, epoch=epoch)),
        spec.colour,
        *_numpy(resampling.bases, resampling.firsts, resampling.weights),
        *_numpy(table.t().contiguous().view(_AS_WHOLE[table.dtype])),
        *_numpy(out.view(_AS_WHOLE[table.dtype]).view(count, size, -1)),
    )
    # Shares of equal numbers of images: a thread that is done early takes another.
    share = max(count // (4 * torch.get_num_threads()), 1)
    jobs = [(begin, min(begin + share, count)) for begin in range(0, count, share)]
    for _ in _threads(torch.get_num_threads()).map(lambda job: _crop_images(*job, *arguments), jobs):
        pass
    return out.permute(0, 3, 1, 2)


def _numpy(*tensors: Tensor) -> list[NDArray[np.generic]]:
    return [tensor.numpy() for tensor in tensors]


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="resized-crop")
