"""Fused augmentation: gather, random crop, horizontal flip, cutout, normalisation, cast, in one pass.

What a sample gets is a pure function of (seed, epoch, index of the sample), so it depends on neither the batch,
the loader, the number of workers nor a restart. Bytes become numbers through a table of 256 x C output values:
the reference, the CPU's code and the Triton kernel read the same table, so they agree to the last bit of any type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.philox import STREAM_AUGMENT, STREAM_CUTOUT, below, check_seed, sample_words

MAX_PAD = 8
PAD_MODES = ("zero", "reflect")
FLIP_MODES = ("random", "alternating")
OUTPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class AugmentSpec:
    """What to do to each image; the default does nothing but normalise.

    pad: the image is padded by this many pixels on each side (0..8) and a window of its own size is cut out of it
    at a uniformly random place (He et al. 2015, section 4.2: 4 pixels). pad_mode: ``zero`` pads with black,
    ``reflect`` mirrors without repeating the border. flip: mirror left-right with probability 1/2. flip_mode: of each
    epoch by itself, ``random``, or ``alternating``: an image is drawn for epoch 0, and from then on mirrored in every
    other epoch (Jordan 2024, arXiv 2404.00498, section 3.6), so that two epochs together show both sides of it.
    cutout: side in pixels of a square set to the mean colour, its centre uniform over the image and its edges clipped
    by the border (DeVries and Taylor 2017, section 3.2); 0 for none.
    """

    pad: int = 0
    pad_mode: str = "zero"
    flip: bool = False
    flip_mode: str = "random"
    cutout: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.pad <= MAX_PAD:
            raise ValueError(f"pad {self.pad} is out of range; give 0 to {MAX_PAD} pixels")
        if self.pad_mode not in PAD_MODES:
            raise ValueError(f"unknown pad mode '{self.pad_mode}'; choose from {', '.join(PAD_MODES)}")
        if self.flip_mode not in FLIP_MODES:
            raise ValueError(f"unknown flip mode '{self.flip_mode}'; choose from {', '.join(FLIP_MODES)}")
        if self.cutout < 0:
            raise ValueError(f"cutout {self.cutout} is negative; give the side of the square in pixels, 0 for none")


NO_AUGMENT = AugmentSpec()


def normalisation_table(
    mean: Sequence[float], std: Sequence[float], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor:
    """The output value of each byte in each channel, ``(byte / 255 - mean) / std``: [256, C] of ``dtype``.

    mean, std: per channel, in units where byte 255 is 1. Computed in float64 on the CPU and rounded once, so it
    is the same table on every device.
    """
    if dtype not in OUTPUT_DTYPES:
        raise ValueError(f"cannot augment to {dtype}; choose from float32, bfloat16, float16")
    if len(mean) != len(std) or not mean or min(std) <= 0:
        raise ValueError(f"mean {tuple(mean)} and std {tuple(std)} need one number per channel, std above 0")
    levels = torch.arange(256, dtype=torch.float64)[:, None] / 255
    centred = levels - torch.tensor(mean, dtype=torch.float64)
    return (centred / torch.tensor(std, dtype=torch.float64)).to(dtype).to(device)


def augment(
    images: Tensor,
    indices: Tensor,
    table: Tensor,
    *,
    spec: AugmentSpec,
    seed: int,
    epoch: Tensor | int,
    gather: bool = False,
) -> Tensor:
    """Augment and normalise a batch.

    images: uint8 [M, H, W, C]. indices: int64 [N], the samples' numbers in their split. table: [256, C] from
    `normalisation_table`, its dtype is the output's. All three contiguous. epoch: int, or an int64 0-D tensor on
    the images' device, read when the kernel runs, so that a captured graph can be replayed for a later epoch.
    gather: image i of the batch is ``images[indices[i]]`` (``images`` is the whole split) if True, else
    ``images[i]`` (``images`` is the batch, M = N).

    Returns [N, C, H, W] in channels_last memory. Raises ValueError on shapes, dtypes or devices that don't fit.
    Triton runs it on CUDA devices, PyTorch (`kernels.augment_cpu`) elsewhere.
    """
    check_seed(seed)
    _check_inputs(images, indices, table, spec, gather)
    if not isinstance(epoch, Tensor):
        epoch = torch.full((), epoch, dtype=torch.int64, device=images.device)
    if images.is_cuda:
        from kernels.augment_triton import augment_triton

        return augment_triton(images, indices, table, spec=spec, seed=seed, epoch=epoch, gather=gather)
    from kernels.augment_cpu import augment_cpu

    return augment_cpu(images, indices, table, spec=spec, seed=seed, epoch=epoch, gather=gather)


def _check_inputs(images: Tensor, indices: Tensor, table: Tensor, spec: AugmentSpec, gather: bool) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or not images.is_contiguous():
        raise ValueError(f"images must be contiguous uint8 [M, H, W, C], not {images.dtype} {tuple(images.shape)}")
    if indices.dtype != torch.int64 or indices.dim() != 1 or not indices.is_contiguous():
        raise ValueError(f"indices must be contiguous int64 [N], not {indices.dtype} {tuple(indices.shape)}")
    if not gather and len(images) != len(indices):
        raise ValueError(f"{len(images)} images for {len(indices)} indices; without gather they go in pairs")
    if table.shape != (256, images.shape[3]) or table.dtype not in OUTPUT_DTYPES or not table.is_contiguous():
        raise ValueError(f"table must be contiguous [256, {images.shape[3]}], not {table.dtype} {tuple(table.shape)}")
    if not images.device == indices.device == table.device:
        raise ValueError(f"images, indices, table lie on {images.device}, {indices.device}, {table.device}")
    check_reflection(spec, *images.shape[1:3])


def check_reflection(spec: AugmentSpec, height: int, width: int) -> None:
    """ValueError where images have fewer pixels than ``spec`` reflects."""
    if spec.pad_mode == "reflect" and spec.pad >= min(height, width):
        raise ValueError(f"reflect padding of {spec.pad} needs images larger than {(height, width)}")


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
    """Where output pixel 0..size-1 of each sample comes from in the unpadded image: int64 [N, size]."""
    out = torch.arange(size, device=offset.device).expand(len(offset), size)
    if mirrored is not None:
        out = torch.where(mirrored[:, None] == 1, size - 1 - out, out)
    source = out + (offset - spec.pad)[:, None]
    if spec.pad_mode == "reflect":
        source = source.abs()
        source = torch.where(source >= size, 2 * (size - 1) - source, source)
    return source


def augment_reference(
    images: Tensor, indices: Tensor, table: Tensor, *, spec: AugmentSpec, seed: int, epoch: Tensor, gather: bool
) -> Tensor:
    """`augment` in plain PyTorch, on any device; the definition that the CPU's code and the Triton kernel meet."""
    _, height, width, channels = images.shape
    dy, dx, flip = crop_offsets(indices, spec=spec, seed=seed, epoch=epoch)
    ys = source_coordinates(height, dy, spec, None)
    xs = source_coordinates(width, dx, spec, flip)

    rows = indices if gather else torch.arange(len(indices), device=images.device)
    line = rows[:, None] * height + ys.clamp(0, height - 1)
    pixel = line[:, :, None] * width + xs.clamp(0, width - 1)[:, None, :]
    batch = images.view(-1, channels).index_select(0, pixel.view(-1)).view(-1, height, width, channels)
    if spec.pad and spec.pad_mode == "zero":
        outside_y, outside_x = (ys < 0) | (ys >= height), (xs < 0) | (xs >= width)
        batch.masked_fill_((outside_y[:, :, None] | outside_x[:, None, :])[..., None], 0)

    # One look-up per channel keeps the index int32 and the table in the first cache level.
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
