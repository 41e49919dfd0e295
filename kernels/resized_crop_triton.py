"""The resized crop as Triton kernels; see `kernels.resized_crop` for what they compute.

One kernel draws for each image, one makes the crops. Contrast needs the mean of a whole crop before it can change a
pixel: then the second writes bytes and adds the greys up, and a third finishes.
"""

# Triton's decorators have no types, nor have the values in its functions; torch.cuda.device_of has none either.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fast_train.kernels.philox import STREAM_AUGMENT, STREAM_COLOUR, STREAM_CROP, STREAM_ERASE
from fast_train.kernels.resample import ERASED_AREA, PRECISION, RATIOS, Resampling, in_units
from fast_train.kernels.resized_crop_reference import GREY, TRIES, Ragged
from fast_train.kernels.spec import UNIT, CropSpec

_UNIT: tl.constexpr = tl.constexpr(UNIT)
_TRIES: tl.constexpr = tl.constexpr(TRIES)
_RATIOS: tl.constexpr = tl.constexpr(RATIOS)
_PRECISION: tl.constexpr = tl.constexpr(PRECISION)
_HALF: tl.constexpr = tl.constexpr(1 << (PRECISION - 1))
_RED, _GREEN, _BLUE = (tl.constexpr(weight) for weight in GREY)
_ERASED_LOW, _ERASED_HIGH = (tl.constexpr(area) for area in ERASED_AREA)
_AUGMENT, _CROP, _COLOUR, _ERASE = map(tl.constexpr, (STREAM_AUGMENT, STREAM_CROP, STREAM_COLOUR, STREAM_ERASE))
# What is drawn for an image: crop (top, left, height, width), flip, three factors, erased (top, left, height, width).
_DRAWS: tl.constexpr = tl.constexpr(12)
_SAMPLES = 128
# Pixels of one crop that a program makes: two to each of its 128 threads.
_BLOCK = 256


@triton.jit
def _below(word, bound):
    """`kernels.philox.below`: int64."""
    return ((word.to(tl.uint64) * bound.to(tl.uint64)) >> 32).to(tl.int64)


@triton.jit
def _whole_root(value):
    """`kernels.resized_crop_reference.whole_root`."""
    root = tl.sqrt(value.to(tl.float64)).to(tl.int64)
    root -= (root * root > value).to(tl.int64)
    return root + ((root + 1) * (root + 1) <= value).to(tl.int64)


@triton.jit
def _random_box(
    height, width, seed, counter, epoch, roots_ptr, STREAM: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr
):
    """`kernels.resized_crop_reference.random_boxes`: (top, left, height, width), int64; height 0 where none fits."""
    zero = counter * 0
    box_top, box_left, box_height, box_width = height * 0, height * 0, height * 0, height * 0
    for attempt in range(_TRIES):
        r0, r1, r2, r3 = tl.philox(seed, counter, epoch, zero + STREAM, zero + attempt)
        part = _below(r0, height * 0 + (HIGH - LOW + 1)) + LOW
        side = _whole_root(height * width * part * _UNIT)
        ratio = _below(r1, height * 0 + _RATIOS)
        new_width = (side * tl.load(roots_ptr + 2 * ratio) + (1 << 31)) >> 32
        new_height = (side * tl.load(roots_ptr + 2 * ratio + 1) + (1 << 31)) >> 32
        fits = (new_width > 0) & (new_width <= width) & (new_height > 0) & (new_height <= height)
        new = fits & (box_height == 0)
        box_top = tl.where(new, _below(r2, tl.where(fits, height - new_height + 1, 1)), box_top)
        box_left = tl.where(new, _below(r3, tl.where(fits, width - new_width + 1, 1)), box_left)
        box_height = tl.where(new, new_height, box_height)
        box_width = tl.where(new, new_width, box_width)
    return box_top, box_left, box_height, box_width


@triton.jit
def _crop_box(
    height, width, seed, counter, epoch, roots_ptr,
    RANDOM: tl.constexpr, AREA_LOW: tl.constexpr, AREA_HIGH: tl.constexpr,
    RATIO_LOW: tl.constexpr, RATIO_HIGH: tl.constexpr, CENTRE: tl.constexpr,
):  # fmt: skip
    """`kernels.resized_crop_reference.crop_boxes`."""
    if RANDOM:
        top, left, tall, wide = _random_box(height, width, seed, counter, epoch, roots_ptr, _CROP, AREA_LOW, AREA_HIGH)
        found = tall > 0
        rest_tall = tl.minimum(height, tl.maximum((2 * width * _UNIT + RATIO_LOW) // (2 * RATIO_LOW), 1))
        rest_wide = tl.minimum(width, tl.maximum((2 * height * RATIO_HIGH + _UNIT) // (2 * _UNIT), 1))
        tall = tl.where(found, tall, rest_tall)
        wide = tl.where(found, wide, rest_wide)
        top = tl.where(found, top, (height - rest_tall) // 2)
        left = tl.where(found, left, (width - rest_wide) // 2)
    else:
        tall = tl.maximum((tl.minimum(height, width) * CENTRE + _UNIT // 2) // _UNIT, 1)
        wide = tall
        top = (height - tall) // 2
        left = (width - wide) // 2
    return top, left, tall, wide


@triton.jit
def random_factor(word, like, SPREAD: tl.constexpr):
    """A factor of `kernels.resized_crop_reference.random_factors`. like: int64, of the result's shape."""
    return (_below(word, like * 0 + (2 * SPREAD + 1)) + (_UNIT - SPREAD)).to(tl.int32)


@triton.jit
def _erased_box(size, seed, counter, epoch, roots_ptr, ERASE: tl.constexpr):
    """`kernels.resized_crop_reference.erased_boxes`; size: int64."""
    top, left, tall, wide = size * 0, size * 0, size * 0, size * 0
    if ERASE > 0:
        zero = counter * 0
        top, left, tall, wide = _random_box(
            size, size, seed, counter, epoch, roots_ptr, _ERASE, _ERASED_LOW, _ERASED_HIGH
        )
        # Whether: a word that no attempt has drawn.
        r0, _, _, _ = tl.philox(seed, counter, epoch, zero + _ERASE, zero + _TRIES)
        tall = tl.where(_below(r0, size * 0 + _UNIT) < ERASE, tall, 0)
    return top, left, tall, wide


@triton.jit
def _store_box(out, top, left, tall, wide, mask):
    tl.store(out, top.to(tl.int32), mask=mask)
    tl.store(out + 1, left.to(tl.int32), mask=mask)
    tl.store(out + 2, tall.to(tl.int32), mask=mask)
    tl.store(out + 3, wide.to(tl.int32), mask=mask)


@triton.jit
def draw_kernel(
    heights_ptr, widths_ptr, indices_ptr, ratios_ptr, erased_ptr, epoch_ptr, out_ptr, seed, count,
    SIZE: tl.constexpr, RANDOM: tl.constexpr, AREA_LOW: tl.constexpr, AREA_HIGH: tl.constexpr,
    RATIO_LOW: tl.constexpr, RATIO_HIGH: tl.constexpr, CENTRE: tl.constexpr, FLIP: tl.constexpr,
    BRIGHTNESS: tl.constexpr, CONTRAST: tl.constexpr, SATURATION: tl.constexpr, ERASE: tl.constexpr,
    GATHER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program draws for BLOCK images: out int32 [N, _DRAWS].

    heights, widths: int32 [M]. indices: int64 [N]. ratios, erased: int32 [_RATIOS, 2]. epoch: int64, one value.
    """
    # The samples, and their counters (index, epoch, stream, attempt) for random numbers.
    sample = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = sample < count
    index = tl.load(indices_ptr + sample, mask=mask, other=0)
    epoch = tl.load(epoch_ptr).to(tl.uint32)
    counter = index.to(tl.uint32)
    zero = counter * 0
    row = index if GATHER else sample.to(tl.int64)
    height = tl.load(heights_ptr + row, mask=mask, other=1).to(tl.int64)
    width = tl.load(widths_ptr + row, mask=mask, other=1).to(tl.int64)
    out = out_ptr + sample.to(tl.int64) * _DRAWS

    # The crop, and whether it is mirrored.
    top, left, tall, wide = _crop_box(
        height, width, seed, counter, epoch, ratios_ptr,
        RANDOM, AREA_LOW, AREA_HIGH, RATIO_LOW, RATIO_HIGH, CENTRE,
    )  # fmt: skip
    _store_box(out, top, left, tall, wide, mask)
    _, _, r2, _ = tl.philox(seed, counter, epoch, zero + _AUGMENT, zero)
    flip = _below(r2, height * 0 + 2) if FLIP else height * 0
    tl.store(out + 4, flip.to(tl.int32), mask=mask)

    # The factors of the colours.
    r0, r1, r2, _ = tl.philox(seed, counter, epoch, zero + _COLOUR, zero)
    tl.store(out + 5, random_factor(r0, height, BRIGHTNESS), mask=mask)
    tl.store(out + 6, random_factor(r1, height, CONTRAST), mask=mask)
    tl.store(out + 7, random_factor(r2, height, SATURATION), mask=mask)

    # What is erased.
    top, left, tall, wide = _erased_box(height * 0 + SIZE, seed, counter, epoch, erased_ptr, ERASE)
    _store_box(out + 8, top, left, tall, wide, mask)


@triton.jit
def scale_from(pivot, value, factor):
    """`kernels.resized_crop_reference.scale_from`."""
    return tl.minimum(tl.maximum((((value - pivot) * factor + _UNIT // 2) >> 16) + pivot, 0), 255)


@triton.jit
def _grey(value, channel):
    """value int32 [BLOCK, channels]: the grey of each pixel, [BLOCK]."""
    weight = tl.where(channel == 0, _RED, tl.where(channel == 1, _GREEN, tl.where(channel == 2, _BLUE, 0)))
    return (tl.sum(value * weight, axis=1) + _UNIT // 2) >> 16


@triton.jit
def _finish(value, y, x, channel, mask, table_ptr, draws, out, SIZE: tl.constexpr, C: tl.constexpr):
    """Look the bytes up, erase, store. value: int32 [BLOCK, channels]; y, x: [BLOCK]."""
    top, left = tl.load(draws + 8), tl.load(draws + 9)
    erased = (y >= top) & (y < top + tl.load(draws + 10)) & (x >= left) & (x < left + tl.load(draws + 11))
    result = tl.load(table_ptr + value * C + channel, mask=mask, other=0.0)
    result = tl.where(erased[:, None], 0.0, result)
    tl.store(out + (y * SIZE + x)[:, None] * C + channel, result, mask=mask)


@triton.jit
def _taps(length, SIZE: tl.constexpr):
    """`kernels.resample.taps`."""
    return tl.maximum((2 * length + SIZE - 1) // SIZE, 2)


@triton.jit
def _resized(
    image, pitch, draws, y, x, channel, inside, mask, weights_ptr, bases_ptr, firsts_ptr,
    SIZE: tl.constexpr, C: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pixels y, x [BLOCK] of an image's crop, resized: bytes, int32 [BLOCK, CHANNELS]. inside: [BLOCK]."""
    # Which pixels of the crop they read, and with which weights.
    top, left, tall, wide = tl.load(draws), tl.load(draws + 1), tl.load(draws + 2), tl.load(draws + 3)
    taps_x, taps_y = _taps(wide, SIZE), _taps(tall, SIZE)
    weights_x = weights_ptr + tl.load(bases_ptr + wide) + x * taps_x
    weights_y = weights_ptr + tl.load(bases_ptr + tall) + y * taps_y
    first_x = tl.load(firsts_ptr + wide * SIZE + x, mask=inside, other=0)
    first_y = tl.load(firsts_ptr + tall * SIZE + y, mask=inside, other=0)

    # Resize along the rows, round to bytes, resize along the columns. Weights beyond the crop are 0.
    value = tl.full((BLOCK, CHANNELS), _HALF, tl.int32)
    for ky in range(taps_y):
        line = image + (top + tl.minimum(first_y + ky, tall - 1)).to(tl.int64) * pitch * C
        total = tl.full((BLOCK, CHANNELS), _HALF, tl.int32)
        for kx in range(taps_x):
            column = left + tl.minimum(first_x + kx, wide - 1)
            byte = tl.load(line[:, None] + column[:, None] * C + channel, mask=mask, other=0)
            total += byte.to(tl.int32) * tl.load(weights_x + kx, mask=inside, other=0)[:, None]
        rounded = tl.minimum(tl.maximum(total >> _PRECISION, 0), 255)
        value += rounded * tl.load(weights_y + ky, mask=inside, other=0)[:, None]
    return tl.minimum(tl.maximum(value >> _PRECISION, 0), 255)


@triton.jit
def crop_kernel(
    data_ptr, offsets_ptr, widths_ptr, indices_ptr, draws_ptr, weights_ptr, bases_ptr, firsts_ptr, table_ptr,
    out_ptr, greys_ptr,
    SIZE: tl.constexpr, C: tl.constexpr, CHANNELS: tl.constexpr,
    COLOUR: tl.constexpr, CONTRAST: tl.constexpr, GATHER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program makes BLOCK neighbouring pixels of one crop of out [N, SIZE, SIZE, C]; with CONTRAST it writes them as
    bytes, brightness changed, and adds their greys to greys int32 [N].

    data: uint8. offsets: int64 [M], widths: int32 [M], draws: int32 [N, _DRAWS]; the tables: as in `Resampling`.
    CHANNELS: C, rounded up to a power of 2.
    """
    sample = tl.program_id(0).to(tl.int64)
    draws = draws_ptr + sample * _DRAWS
    row = tl.load(indices_ptr + sample) if GATHER else sample
    pitch = tl.load(widths_ptr + row)
    image = data_ptr + tl.load(offsets_ptr + row)

    # The pixels to make: y, x [BLOCK], and their channels [1, CHANNELS].
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, CHANNELS)[None, :]
    mask = (pixel < SIZE * SIZE)[:, None] & (channel < C)
    y, x = pixel // SIZE, pixel % SIZE
    inside = pixel < SIZE * SIZE
    source_x = tl.where(tl.load(draws + 4) == 1, SIZE - 1 - x, x)

    value = _resized(
        image, pitch, draws, y, source_x, channel, inside, mask, weights_ptr, bases_ptr, firsts_ptr,
        SIZE, C, CHANNELS, BLOCK,
    )  # fmt: skip

    # Change the colours; what needs the crop's mean is left to `finish_kernel`.
    if COLOUR:
        value = scale_from(0, value, tl.load(draws + 5))
    out = out_ptr + sample * (SIZE * SIZE * C)
    if CONTRAST:
        tl.store(out + pixel[:, None] * C + channel, value.to(tl.uint8), mask=mask)
        greys = tl.where(inside, _grey(tl.where(mask, value, 0), channel), 0)
        tl.atomic_add(greys_ptr + sample, tl.sum(greys, axis=0))
    else:
        if COLOUR:
            value = scale_from(_grey(tl.where(mask, value, 0), channel)[:, None], value, tl.load(draws + 7))
        _finish(value, y, x, channel, mask, table_ptr, draws, out, SIZE, C)


@triton.jit
def finish_kernel(
    crops_ptr, greys_ptr, draws_ptr, table_ptr, out_ptr,
    SIZE: tl.constexpr, C: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Contrast, saturation and the rest, from the bytes uint8 [N, SIZE, SIZE, C] that `crop_kernel` wrote."""
    sample = tl.program_id(0).to(tl.int64)
    draws, start = draws_ptr + sample * _DRAWS, sample * (SIZE * SIZE * C)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, CHANNELS)[None, :]
    mask = (pixel < SIZE * SIZE)[:, None] & (channel < C)
    value = tl.load(crops_ptr + start + pixel[:, None] * C + channel, mask=mask, other=0).to(tl.int32)
    mean = (2 * tl.load(greys_ptr + sample) + SIZE * SIZE) // (2 * SIZE * SIZE)
    value = tl.where(mask, scale_from(mean, value, tl.load(draws + 6)), 0)
    value = scale_from(_grey(value, channel)[:, None], value, tl.load(draws + 7))
    _finish(value, pixel // SIZE, pixel % SIZE, channel, mask, table_ptr, draws, out_ptr + start, SIZE, C)


def draw_constants(spec: CropSpec, *, gather: bool) -> dict[str, Any]:
    """The constants of `draw_kernel`."""
    random = spec.scale is not None
    area = spec.scale or (1.0, 1.0)
    return {
        "SIZE": spec.size, "RANDOM": random, "AREA_LOW": in_units(area[0]), "AREA_HIGH": in_units(area[1]),
        "RATIO_LOW": in_units(spec.ratio[0]), "RATIO_HIGH": in_units(spec.ratio[1]), "CENTRE": in_units(spec.centre),
        "FLIP": spec.flip, "BRIGHTNESS": in_units(spec.brightness), "CONTRAST": in_units(spec.contrast),
        "SATURATION": in_units(spec.saturation), "ERASE": in_units(spec.erase), "GATHER": gather, "BLOCK": _SAMPLES,
    }  # fmt: skip


def shape_constants(size: int, *, channels: int) -> dict[str, int]:
    """The constants of `finish_kernel`."""
    return {"SIZE": size, "C": channels, "CHANNELS": triton.next_power_of_2(channels), "BLOCK": _BLOCK}


def crop_constants(spec: CropSpec, *, channels: int, gather: bool) -> dict[str, Any]:
    """The constants of `crop_kernel`."""
    flags = {"COLOUR": spec.colour, "CONTRAST": spec.contrast > 0, "GATHER": gather}
    return {**shape_constants(spec.size, channels=channels), **flags}


# An operator takes plain values: the spec goes through it as its numbers.
def _numbers(spec: CropSpec) -> list[float]:
    return [spec.size, spec.centre, spec.flip, spec.brightness, spec.contrast, spec.saturation, spec.erase,
            *spec.ratio, *(spec.scale or ())]  # fmt: skip


def _spec(numbers: Sequence[float]) -> CropSpec:
    size, centre, flip, brightness, contrast, saturation, erase, low, high, *scale = numbers
    return CropSpec(
        size=int(size), scale=(scale[0], scale[1]) if scale else None, ratio=(low, high), centre=centre,
        flip=bool(flip), brightness=brightness, contrast=contrast, saturation=saturation, erase=erase,
    )  # fmt: skip


@torch.library.custom_op("fast_train::resized_crop", mutates_args=())
def _resized_crop_op(
    images: Sequence[Tensor], indices: Tensor, table: Tensor, resampling: Sequence[Tensor], epoch: Tensor,
    seed: int, numbers: Sequence[float], gather: bool,
) -> Tensor:  # fmt: skip
    spec = _spec(numbers)
    data, offsets, heights, widths = images
    weights, bases, firsts, ratios, erased = resampling
    count, size, channels = len(indices), spec.size, table.shape[1]
    out = torch.empty((count, size, size, channels), dtype=table.dtype, device=data.device)
    if not count:
        return out.permute(0, 3, 1, 2)
    draws = torch.empty((count, _DRAWS.value), dtype=torch.int32, device=data.device)
    greys = torch.zeros(count, dtype=torch.int32, device=data.device)
    crops = torch.empty_like(out, dtype=torch.uint8) if spec.contrast else out
    grid = (count, triton.cdiv(size * size, _BLOCK))
    # Triton by itself would launch on the current device, wherever the tensors lie.
    with torch.cuda.device_of(data):
        draw_kernel[(triton.cdiv(count, _SAMPLES),)](
            heights, widths, indices, ratios, erased, epoch, draws, seed, count, **draw_constants(spec, gather=gather)
        )
        crop_kernel[grid](
            data, offsets, widths, indices, draws, weights, bases, firsts, table, crops, greys,
            **crop_constants(spec, channels=channels, gather=gather),
        )  # fmt: skip
        if spec.contrast:
            finish_kernel[grid](crops, greys, draws, table, out, **shape_constants(size, channels=channels))
    return out.permute(0, 3, 1, 2)


@_resized_crop_op.register_fake
def _(images, indices, table, resampling, epoch, seed, numbers, gather):
    size = int(numbers[0])
    return table.new_empty((indices.shape[0], size, size, table.shape[1])).permute(0, 3, 1, 2)


def resized_crop_triton(
    images: Ragged, indices: Tensor, table: Tensor, resampling: Resampling, *,
    spec: CropSpec, seed: int, epoch: Tensor, gather: bool,
) -> Tensor:  # fmt: skip
    """`kernels.resized_crop.resized_crop` on a CUDA device (or, under Triton's interpreter, on the CPU)."""
    out: Tensor = _resized_crop_op(list(images), indices, table, list(resampling), epoch, seed, _numbers(spec), gather)
    return out
