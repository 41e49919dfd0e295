"""The fused augmentation as one Triton kernel; see `kernels.augment` for what it computes."""

# Triton's functions take its own values, which have no Python types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fast_train.kernels.philox import STREAM_AUGMENT, STREAM_CUTOUT
from fast_train.kernels.spec import AugmentSpec

_AUGMENT: tl.constexpr = tl.constexpr(STREAM_AUGMENT)
_CUTOUT: tl.constexpr = tl.constexpr(STREAM_CUTOUT)
# Elements of one image that a program writes: 32 x 32 x 3 takes three programs of eight warps' worth of work.
_BLOCK = 1024


@triton.jit
def _below(word, bound: tl.constexpr):
    return ((word.to(tl.uint64) * bound) >> 32).to(tl.int32)


@triton.jit
def _reflect(position, size: tl.constexpr):
    position = tl.where(position < 0, -position, position)
    return tl.where(position >= size, 2 * (size - 1) - position, position)


@triton.jit
def _augment_kernel(
    images, indices, table, epoch_pointer, out, seed,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr,
    PAD: tl.constexpr, REFLECT: tl.constexpr, FLIP: tl.constexpr, ALTERNATING: tl.constexpr,
    CUTOUT: tl.constexpr, GATHER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program writes BLOCK neighbouring output elements of one image, in channels_last order."""
    sample = tl.program_id(0).to(tl.int64)
    index = tl.load(indices + sample)
    epoch = tl.load(epoch_pointer).to(tl.uint32)
    counter = index.to(tl.uint32)
    zero = counter * 0

    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    written = element < H * W * C
    channel = element % C
    y = (element // C) // W
    x = (element // C) % W

    source_y, source_x = y, x
    if PAD > 0 or FLIP:
        r0, r1, r2, _ = tl.philox(seed, counter, epoch, zero + _AUGMENT, zero)
        if FLIP:
            mirrored = _below(r2, 2)
            if ALTERNATING:
                _, _, first, _ = tl.philox(seed, counter, zero, zero + _AUGMENT, zero)
                mirrored = _below(first, 2) ^ (epoch & 1).to(tl.int32)
            source_x = tl.where(mirrored == 1, W - 1 - x, x)
        source_y += _below(r0, 2 * PAD + 1) - PAD
        source_x += _below(r1, 2 * PAD + 1) - PAD
    if REFLECT:
        source_y = _reflect(source_y, H)
        source_x = _reflect(source_x, W)
    inside = (source_y >= 0) & (source_y < H) & (source_x >= 0) & (source_x < W)

    row = index if GATHER else sample
    offset = (source_y * W + source_x) * C + channel
    byte = tl.load(images + row * (H * W * C) + offset, mask=written & inside, other=0)
    value = tl.load(table + byte.to(tl.int32) * C + channel, mask=written, other=0.0)
    if CUTOUT > 0:
        s0, s1, _, _ = tl.philox(seed, counter, epoch, zero + _CUTOUT, zero)
        from_y = y - (_below(s0, H) - CUTOUT // 2)
        from_x = x - (_below(s1, W) - CUTOUT // 2)
        covered = (from_y >= 0) & (from_y < CUTOUT) & (from_x >= 0) & (from_x < CUTOUT)
        value = tl.where(covered, 0.0, value)
    tl.store(out + sample * (H * W * C) + element, value, mask=written)


@torch.library.custom_op("fast_train::augment", mutates_args=())
def _augment_op(
    images: Tensor, indices: Tensor, table: Tensor, epoch: Tensor, seed: int,
    pad: int, reflect: bool, flip: bool, alternating: bool, cutout: int, gather: bool,
) -> Tensor:  # fmt: skip
    count, (height, width, channels) = len(indices), images.shape[1:]
    out = torch.empty((count, height, width, channels), dtype=table.dtype, device=images.device)
    if count:
        grid = (count, triton.cdiv(height * width * channels, _BLOCK))
        # Triton launches on the current device, wherever its tensors lie.
        with torch.cuda.device_of(images):
            _augment_kernel[grid](
                images, indices, table, epoch, out, seed,
                H=height, W=width, C=channels, PAD=pad, REFLECT=reflect, FLIP=flip, ALTERNATING=alternating,
                CUTOUT=cutout, GATHER=gather, BLOCK=_BLOCK,
            )  # fmt: skip
    return out.permute(0, 3, 1, 2)


@_augment_op.register_fake
def _(images, indices, table, epoch, seed, pad, reflect, flip, alternating, cutout, gather):
    count, (height, width, channels) = indices.shape[0], images.shape[1:]
    return table.new_empty((count, height, width, channels)).permute(0, 3, 1, 2)


def augment_triton(
    images: Tensor, indices: Tensor, table: Tensor, *, spec: AugmentSpec, seed: int, epoch: Tensor, gather: bool
) -> Tensor:
    """`kernels.augment.augment` on a CUDA device (or, under Triton's interpreter, on the CPU)."""
    return _augment_op(
        images, indices, table, epoch, seed,
        spec.pad, spec.pad_mode == "reflect", spec.flip, spec.flip_mode == "alternating", spec.cutout, gather,
    )  # fmt: skip
