"""The fused augmentation on the CPU; see `kernels.augment` for what it computes.

The reference moves single pixels. Here whole rows move: the batch is laid out once with its borders and mirror images,
in bytes, and each row of a crop is one contiguous piece of that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fast_train.kernels.augment_reference import change_colours, crop_offsets, cutout_corners, source_coordinates
from fast_train.kernels.spec import AugmentSpec

# Whose bytes are looked up together.
_IMAGES = 64


def augment_cpu(
    images: Tensor, indices: Tensor, table: Tensor, *, spec: AugmentSpec, seed: int, epoch: Tensor, gather: bool
) -> Tensor:
    """`kernels.augment.augment` on the CPU, with PyTorch's own threads (``torch.get_num_threads()``)."""
    count, (height, width, channels) = len(indices), images.shape[1:]
    batch = images.index_select(0, indices) if gather else images
    if spec.pad or spec.flip:
        batch = _crop_and_flip(batch, indices, spec=spec, seed=seed, epoch=epoch)
    if spec.colour:
        levels = change_colours(torch.arange(256).view(256, 1, 1), indices, spec=spec, seed=seed, epoch=epoch)
        batch = _look_up_levels(batch, levels.view(count, 256))

    # Look the bytes up, in the channels' tables one after the other: byte b of channel c is entry 256 * c + b. Some
    # images at a time: memory that the entries of all would take is fresh in each call, and its first touch costs more.
    out = torch.empty((count, height, width, channels), dtype=table.dtype)
    values = table.t().reshape(-1)
    starts = torch.arange(0, 256 * channels, 256, dtype=torch.int32).repeat(height * width)
    for some, result in zip(batch.flatten(1).split(_IMAGES), out.split(_IMAGES), strict=True):
        torch.index_select(values, 0, (some + starts).view(-1), out=result.view(-1))
    if spec.cutout:
        _cut_out(out, indices, spec=spec, seed=seed, epoch=epoch)
    return out.permute(0, 3, 1, 2)


def _crop_and_flip(batch: Tensor, indices: Tensor, *, spec: AugmentSpec, seed: int, epoch: Tensor) -> Tensor:
    """Each image's window: uint8 [N, H, W, C] to the same."""
    count, height, width, channels = batch.shape
    dy, dx, flip = crop_offsets(indices, spec=spec, seed=seed, epoch=epoch)
    lines = _padded_lines(batch, spec)
    # The line that each row of the output comes from, [N, H].
    image = (torch.arange(count) + count * flip)[:, None]
    y = source_coordinates(height, dy, spec, None)
    black = len(lines) - 1
    line = torch.where((y < 0) | (y >= height), black, image * height + y)
    # The pixel it starts at, [N, 1]. The mirror image of a crop is the crop of the mirror image, as far from the other
    # side.
    x = torch.where(flip == 1, 2 * spec.pad - dx, dx)[:, None]
    # A view of the window of ``width`` pixels that starts at each pixel of ``lines``: windows overlap.
    pixels = lines.shape[0] * lines.shape[1]
    windows = lines.as_strided((pixels - width + 1, width * channels), (channels, 1))
    return windows.index_select(0, (line * lines.shape[1] + x).view(-1)).view(batch.shape)


def _padded_lines(batch: Tensor, spec: AugmentSpec) -> Tensor:
    """The rows of the batch; if ``spec`` flips, those of its mirror images; last, a black row. All are padded at both
    ends: uint8 [N * H + 1 or 2 * N * H + 1, W + 2 * pad, C]."""
    count, height, width, channels = batch.shape
    pad, reflect = spec.pad, spec.pad_mode == "reflect"
    views = [batch, batch.flip(2)] if spec.flip or reflect else [batch]
    copies = 2 if spec.flip else 1
    lines = torch.empty((copies * count * height + 1, width + 2 * pad, channels), dtype=torch.uint8)
    lines[-1] = 0
    for k, padded in enumerate(lines[:-1].view(copies, count, height, width + 2 * pad, channels)):
        left, middle, right = padded.split([pad, width, pad], dim=2)
        middle.copy_(views[k])
        if reflect:
            left.copy_(views[1 - k][:, :, width - 1 - pad : width - 1])
            right.copy_(views[1 - k][:, :, 1 : 1 + pad])
        else:
            left.zero_()
            right.zero_()
    return lines


def _look_up_levels(batch: Tensor, levels: Tensor) -> Tensor:
    """What each byte of image n becomes, ``levels[n]``: uint8 [N, H, W, C] to the same. levels: uint8 [N, 256]."""
    count = len(batch)
    entries = batch.view(count, -1).int()
    entries += torch.arange(0, 256 * count, 256, dtype=torch.int32)[:, None]
    return levels.view(-1).index_select(0, entries.view(-1)).view(batch.shape)


def _cut_out(out: Tensor, indices: Tensor, *, spec: AugmentSpec, seed: int, epoch: Tensor) -> None:
    """Zero each sample's square in ``out``, [N, H, W, C], in place; only rows that it touches are read and written."""
    count, height, width, channels = out.shape
    top, left = cutout_corners(indices, height, width, spec=spec, seed=seed, epoch=epoch)
    y = top[:, None] + torch.arange(spec.cutout)
    touched = (torch.arange(0, count * height, height)[:, None] + y)[(y >= 0) & (y < height)]
    x = torch.arange(width) - left[:, None]
    inside = ((x >= 0) & (x < spec.cutout)).repeat_interleave(channels, dim=1).index_select(0, touched // height)
    lines = out.view(-1, width * channels)
    lines.index_copy_(0, touched, lines.index_select(0, touched).masked_fill_(inside, 0))
