"""The fused augmentation in plain PyTorch; see `kernels.augment` for what it computes."""

from __future__ import annotations

import torch
from torch import Tensor

from fast_train.kernels.philox import STREAM_AUGMENT, STREAM_CUTOUT, below, sample_words
from fast_train.kernels.resized_crop_reference import random_factors, scale_from
from fast_train.kernels.spec import MID_GREY, AugmentSpec


def crop_offsets(indices: Tensor, *, spec: AugmentSpec, seed: int, epoch: Tensor | int) -> tuple[Tensor, ...]:
    """Each sample's crop and flip: (dy, dx, flip), int64 [N]; dy, dx in 0..2*pad, flip 0 or 1."""
    r0, r1, r2, _ = sample_words(seed, epoch, indices, STREAM_AUGMENT)
    positions = 2 * spec.pad + 1
    if not spec.flip:
        flip = torch.zeros_like(r2)
    elif spec.flip_mode == "alternating":
        flip = below(sample_words(seed, 0, indices, STREAM_AUGMENT)[2], 2) ^ (epoch & 1)
    else:
        flip = below(r2, 2)
    return below(r0, positions), below(r1, positions), flip


def source_coordinates(size: int, offset: Tensor, spec: AugmentSpec, mirrored: Tensor | None) -> Tensor:
    """Where output pixels 0..size-1 of each sample lie in the image before padding, along one side: int64 [N, size]."""
    out = torch.arange(size, device=offset.device).expand(len(offset), size)
    if mirrored is not None:
        out = torch.where(mirrored[:, None] == 1, size - 1 - out, out)
    source = out + (offset - spec.pad)[:, None]
    if spec.pad_mode == "reflect":
        source = source.abs()
        source = torch.where(source >= size, 2 * (size - 1) - source, source)
    return source


def change_colours(pixels: Tensor, indices: Tensor, *, spec: AugmentSpec, seed: int, epoch: Tensor | int) -> Tensor:
    """Each sample's brightness and then its contrast: bytes, of any type of whole numbers, to uint8 [N, H, W, C].

    pixels: [N, H, W, C], or what broadcasts to N samples.
    """
    factors = random_factors(indices, (spec.brightness, spec.contrast), seed=seed, epoch=epoch)
    brightness, contrast = factors[:, :, None, None, None].unbind(1)
    return scale_from(MID_GREY, scale_from(0, pixels.long(), brightness), contrast).byte()


def augment_reference(
    images: Tensor, indices: Tensor, table: Tensor, *, spec: AugmentSpec, seed: int, epoch: Tensor, gather: bool
) -> Tensor:
    """`kernels.augment.augment` in plain PyTorch, on any device: the definition.

    The CPU's code and the Triton kernel agree with it to the last bit.
    """
    # Draw each sample's crop and flip, and find its pixels: ys [N, H], xs [N, W].
    _, height, width, channels = images.shape
    dy, dx, flip = crop_offsets(indices, spec=spec, seed=seed, epoch=epoch)
    ys = source_coordinates(height, dy, spec, None)
    xs = source_coordinates(width, dx, spec, flip)

    # Gather them, uint8 [N, H, W, C]; the padding is black.
    rows = indices if gather else torch.arange(len(indices), device=images.device)
    line = rows[:, None] * height + ys.clamp(0, height - 1)
    pixel = line[:, :, None] * width + xs.clamp(0, width - 1)[:, None, :]
    batch = images.view(-1, channels).index_select(0, pixel.view(-1)).view(-1, height, width, channels)
    if spec.pad and spec.pad_mode == "zero":
        outside_y, outside_x = (ys < 0) | (ys >= height), (xs < 0) | (xs >= width)
        batch.masked_fill_((outside_y[:, :, None] | outside_x[:, None, :])[..., None], 0)
    if spec.colour:
        batch = change_colours(batch, indices, spec=spec, seed=seed, epoch=epoch)

    # Look their values up, [N, H, W, C]. One channel at a time keeps the index int32 and the table in the L1 cache.
    planes = [table[:, c].index_select(0, batch[..., c].reshape(-1).int()) for c in range(channels)]
    out = torch.stack(planes, dim=-1).view(-1, height, width, channels)
    if spec.cutout:
        out.masked_fill_(_cutout_mask(indices, height, width, spec=spec, seed=seed, epoch=epoch)[..., None], 0)
    return out.permute(0, 3, 1, 2)


def cutout_corners(
    indices: Tensor, height: int, width: int, *, spec: AugmentSpec, seed: int, epoch: Tensor | int
) -> tuple[Tensor, Tensor]:
    """The upper left corner of each sample's square: (y, x), int64 [N]; it may lie outside of the image."""
    r0, r1, _, _ = sample_words(seed, epoch, indices, STREAM_CUTOUT)
    return below(r0, height) - spec.cutout // 2, below(r1, width) - spec.cutout // 2


def _cutout_mask(indices: Tensor, height: int, width: int, *, spec: AugmentSpec, seed: int, epoch: Tensor) -> Tensor:
    """True where the square lies: bool [N, H, W]."""
    inside = []
    corners = cutout_corners(indices, height, width, spec=spec, seed=seed, epoch=epoch)
    for first, size in zip(corners, (height, width), strict=True):
        position = torch.arange(size, device=indices.device)[None, :] - first[:, None]
        inside.append((position >= 0) & (position < spec.cutout))
    return inside[0][:, :, None] & inside[1][:, None, :]
