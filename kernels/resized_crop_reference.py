"""The resized crop in plain PyTorch, whole numbers only; see `kernels.resized_crop` for what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fast_train.kernels.philox import (
    STREAM_AUGMENT,
    STREAM_COLOUR,
    STREAM_CROP,
    STREAM_ERASE,
    below,
    sample_words,
)
from fast_train.kernels.resample import ERASED_AREA, PRECISION, RATIOS, Resampling, in_units, taps
from fast_train.kernels.spec import UNIT, CropSpec

TRIES = 10
# Pillow's grey, ITU-R 601-2: 0.299, 0.587, 0.114.
GREY = (19595, 38470, 7471)


class Ragged(NamedTuple):
    """M images of any shapes. data: uint8, their pixels [H, W, C] one after the other. offsets: int64 [M], where each
    begins. heights, widths: int32 [M]."""

    data: Tensor
    offsets: Tensor
    heights: Tensor
    widths: Tensor


class Box(NamedTuple):
    """A rectangle in each image: int64 [N] each; of no height where there is none."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def whole_root(value: Tensor) -> Tensor:
    """The square root of whole numbers below 2**58, rounded down: int64."""
    root = value.double().sqrt().long()
    root -= (root * root > value).long()
    return root + ((root + 1) * (root + 1) <= value).long()


def random_boxes(
    heights: Tensor, widths: Tensor, indices: Tensor, *,
    area: tuple[int, int], roots: Tensor, seed: int, epoch: Tensor | int, stream: int,
) -> Box:  # fmt: skip
    """The first of `TRIES` boxes that fits into its image; of no height where none does.

    area: the least and the largest part of the image's, in units of 1 / UNIT. roots: of the ratio, [RATIOS, 2].
    """
    box = Box(*[torch.zeros_like(heights)] * 4)
    for attempt in range(TRIES):
        r0, r1, r2, r3 = sample_words(seed, epoch, indices, stream, attempt)
        part = area[0] + below(r0, area[1] - area[0] + 1)
        # In units of 1 / UNIT: the side of a square of that area.
        side = whole_root(heights * widths * part * UNIT)
        root, inverse = roots[below(r1, RATIOS)].long().unbind(1)
        width, height = ((side * factor + (UNIT * UNIT // 2)) // (UNIT * UNIT) for factor in (root, inverse))
        fits = (width > 0) & (width <= widths) & (height > 0) & (height <= heights)
        new = Box(below(r2, heights - height + 1), below(r3, widths - width + 1), height, width)
        box = _where(fits & (box.height == 0), new, box)
    return box


def _where(condition: Tensor, a: Box, b: Box) -> Box:
    return Box(*(torch.where(condition, x, y) for x, y in zip(a, b, strict=True)))


def crop_boxes(
    heights: Tensor, widths: Tensor, indices: Tensor, table: Resampling, *,
    spec: CropSpec, seed: int, epoch: Tensor | int,
) -> Box:  # fmt: skip
    """What each image is cropped to. heights, widths: int64 [N]."""
    if spec.scale is None:
        side = ((torch.minimum(heights, widths) * in_units(spec.centre) + UNIT // 2) // UNIT).clamp_min(1)
        return _centred(heights, widths, side, side)
    area = (in_units(spec.scale[0]), in_units(spec.scale[1]))
    drawn = random_boxes(
        heights, widths, indices,
        area=area, roots=table.ratios, seed=seed, epoch=epoch, stream=STREAM_CROP,
    )  # fmt: skip
    # Where none fits: the largest one in the centre whose ratio is allowed.
    low, high = (in_units(ratio) for ratio in spec.ratio)
    height = torch.minimum(heights, ((2 * widths * UNIT + low) // (2 * low)).clamp_min(1))
    width = torch.minimum(widths, ((2 * heights * high + UNIT) // (2 * UNIT)).clamp_min(1))
    return _where(drawn.height > 0, drawn, _centred(heights, widths, height, width))


def _centred(heights: Tensor, widths: Tensor, height: Tensor, width: Tensor) -> Box:
    return Box((heights - height) // 2, (widths - width) // 2, height, width)


def mirrored(indices: Tensor, *, spec: CropSpec, seed: int, epoch: Tensor | int) -> Tensor:
    """0 or 1 for each sample: int64 [N]. The draw is that of `kernels.augment`."""
    if not spec.flip:
        return torch.zeros_like(indices)
    return below(sample_words(seed, epoch, indices, STREAM_AUGMENT)[2], 2)


def colour_factors(indices: Tensor, *, spec: CropSpec, seed: int, epoch: Tensor | int) -> Tensor:
    """Of brightness, contrast and saturation, in units of 1 / UNIT: int64 [N, 3]."""
    return random_factors(indices, (spec.brightness, spec.contrast, spec.saturation), seed=seed, epoch=epoch)


def random_factors(indices: Tensor, spreads: Sequence[float], *, seed: int, epoch: Tensor | int) -> Tensor:
    """A factor uniform in 1 - x to 1 + x for each x of ``spreads`` (at most 4), in units of 1 / UNIT: int64 [N, x]."""
    words = sample_words(seed, epoch, indices, STREAM_COLOUR)
    units = [in_units(spread) for spread in spreads]
    return torch.stack([UNIT - x + below(r, 2 * x + 1) for r, x in zip(words, units, strict=False)], dim=1)


def erased_boxes(indices: Tensor, table: Resampling, *, spec: CropSpec, seed: int, epoch: Tensor | int) -> Box:
    """What of each result is erased."""
    if not spec.erase:
        return Box(*[torch.zeros_like(indices)] * 4)
    side = torch.full_like(indices, spec.size)
    box = random_boxes(
        side, side, indices,
        area=ERASED_AREA, roots=table.erased, seed=seed, epoch=epoch, stream=STREAM_ERASE,
    )  # fmt: skip
    # Whether: a word that no attempt has drawn.
    erases = below(sample_words(seed, epoch, indices, STREAM_ERASE, TRIES)[0], UNIT) < in_units(spec.erase)
    return box._replace(height=torch.where(erases, box.height, 0))


def resize_one_axis(pixels: Tensor, table: Resampling, size: int) -> Tensor:
    """uint8 [n, ...] to [size, ...], rounded to bytes as Pillow does."""
    length = len(pixels)
    count, base = taps(length, size), int(table.bases[length])
    factors = table.weights[base : base + size * count].view(size, count)
    source = table.firsts[length].long()[:, None] + torch.arange(count, device=pixels.device)
    read = pixels[source.clamp_max(length - 1)].int()
    total = (read * factors.view(size, count, *[1] * (pixels.dim() - 1))).sum(dim=1, dtype=torch.int64)
    return ((total + (1 << (PRECISION - 1))) >> PRECISION).clamp(0, 255).byte()


def scale_from(pivot: Tensor | int, value: Tensor, factor: Tensor) -> Tensor:
    """``pivot + (value - pivot) * factor``, rounded, as a byte: int64."""
    return (pivot + (((value - pivot) * factor + UNIT // 2) >> 16)).clamp(0, 255)


def grey(pixels: Tensor) -> Tensor:
    """int64 [..., 3] to [...]."""
    return (pixels @ torch.tensor(GREY, device=pixels.device) + UNIT // 2) >> 16


def change_colours(pixels: Tensor, factors: Tensor) -> Tensor:
    """uint8 [H, W, 3] and the three factors to uint8 [H, W, 3]: brightness, contrast, saturation."""
    value = scale_from(0, pixels.long(), factors[0])
    greys = grey(value)
    mean = (2 * greys.sum() + greys.numel()) // (2 * greys.numel())
    value = scale_from(mean, value, factors[1])
    return scale_from(grey(value)[..., None], value, factors[2]).byte()


def resized_crop_reference(
    images: Ragged, indices: Tensor, table: Tensor, resampling: Resampling, *,
    spec: CropSpec, seed: int, epoch: Tensor, gather: bool,
) -> Tensor:  # fmt: skip
    """`kernels.resized_crop.resized_crop` in plain PyTorch, on any device: the definition.

    The CPU's code and the Triton kernels agree with it to the last bit.
    """
    rows = indices if gather else torch.arange(len(indices), device=indices.device)
    channels, size = table.shape[1], spec.size
    heights, widths = images.heights[rows].long(), images.widths[rows].long()
    boxes = crop_boxes(heights, widths, indices, resampling, spec=spec, seed=seed, epoch=epoch)
    flips = mirrored(indices, spec=spec, seed=seed, epoch=epoch)
    factors = colour_factors(indices, spec=spec, seed=seed, epoch=epoch)
    erased = erased_boxes(indices, resampling, spec=spec, seed=seed, epoch=epoch)
    out = torch.empty((len(indices), size, size, channels), dtype=table.dtype, device=table.device)
    for i, row in enumerate(rows.tolist()):
        # Crop; resize along the rows, then along the columns.
        start, height, width = int(images.offsets[row]), int(heights[i]), int(widths[i])
        image = images.data[start : start + height * width * channels].view(height, width, channels)
        top, left, tall, wide = (int(side[i]) for side in boxes)
        crop = image[top : top + tall, left : left + wide]
        crop = resize_one_axis(crop.transpose(0, 1), resampling, size).transpose(0, 1)
        crop = resize_one_axis(crop, resampling, size)
        # Mirror, change colours, look the values up, erase.
        crop = crop.flip(1) if flips[i] else crop
        crop = change_colours(crop, factors[i]) if spec.colour else crop
        for c in range(channels):
            out[i, ..., c] = table[:, c][crop[..., c].long()]
        top, left, tall, wide = (int(side[i]) for side in erased)
        out[i, top : top + tall, left : left + wide] = 0
    return out.permute(0, 3, 1, 2)
