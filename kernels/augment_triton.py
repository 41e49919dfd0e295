"""The fused augmentation as one Triton kernel; see `kernels.augment` for what it computes."""

# Triton's functions take its own values, which have no Python types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.augment import AugmentSpec
from kernels.philox import STREAM_AUGMENT, STREAM_CUTOUT

_AUGMENT: tl.constexpr = tl.constexpr(STREAM_AUGMENT)
_CUTOUT: tl.constexpr = tl.constexpr(STREAM_CUTOUT)
# A program writes a tile of rows and columns of one image, a column being one channel of one pixel, and so several times
# side by side. A single warp: each of its threads has the same columns in many rows, so that it finds out but once where
# they come from, and 15 instructions an element are left of 38 with a thread for every 8 neighbouring elements.
_ROWS, _COLUMNS, _MOST_PARTS, _WARPS = 32, 32, 4, 1


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
    CUTOUT: tl.constexpr, GATHER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One program writes ROWS rows and PARTS times COLUMNS columns of one image, in channels_last order."""
    sample = tl.program_id(0).to(tl.int64)
    index = tl.load(indices + sample)
    epoch = tl.load(epoch_pointer).to(tl.uint32)
    counter = index.to(tl.uint32)
    zero = counter * 0
    down, right, mirrored = 0, 0, 0
    if PAD > 0 or FLIP:
        r0, r1, r2, _ = tl.philox(seed, counter, epoch, zero + _AUGMENT, zero)
        if FLIP:
            mirrored = _below(r2, 2)
            if ALTERNATING:
                _, _, first, _ = tl.philox(seed, counter, zero, zero + _AUGMENT, zero)
                mirrored = _below(first, 2) ^ (epoch & 1).to(tl.int32)
        down = _below(r0, 2 * PAD + 1) - PAD
        right = _below(r1, 2 * PAD + 1) - PAD
    hidden_y, hidden_x = 0, 0
    if CUTOUT > 0:
        s0, s1, _, _ = tl.philox(seed, counter, epoch, zero + _CUTOUT, zero)
        hidden_y = _below(s0, H) - CUTOUT // 2
        hidden_x = _below(s1, W) - CUTOUT // 2

    source = images + (index if GATHER else sample) * (H * W * C)
    target = out + sample * (H * W * C)
    y = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    source_y = y + down
    if REFLECT:
        source_y = _reflect(source_y, H)
    row = y < H
    row_read = row & (source_y >= 0) & (source_y < H)
    # Of rows that one program writes whole, all columns are known to the compiler.
    start = tl.program_id(2) * (PARTS * COLUMNS) if PARTS * COLUMNS < W * C else 0
    for part in tl.static_range(PARTS):
        column = start + part * COLUMNS + tl.arange(0, COLUMNS)
        channel = column % C
        x = column // C
        source_x = (tl.where(mirrored == 1, W - 1 - x, x) if FLIP else x) + right
        if REFLECT:
            source_x = _reflect(source_x, W)
        written = row[:, None] & (column < W * C)[None, :]
        read = row_read[:, None] & ((column < W * C) & (source_x >= 0) & (source_x < W))[None, :]
        place = (source_y * (W * C))[:, None] + (source_x * C + channel)[None, :]
        byte = tl.load(source + place, mask=read, other=0)
        value = tl.load(table + byte.to(tl.int32) * C + channel[None, :], mask=written, other=0.0)
        if CUTOUT > 0:
            from_y, from_x = y - hidden_y, x - hidden_x
            in_y, in_x = (from_y >= 0) & (from_y < CUTOUT), (from_x >= 0) & (from_x < CUTOUT)
            value = tl.where(in_y[:, None] & in_x[None, :], 0.0, value)
        tl.store(target + (y * (W * C))[:, None] + column[None, :], value, mask=written)


@torch.library.custom_op("fast_train::augment", mutates_args=())
def _augment_op(
    images: Tensor, indices: Tensor, table: Tensor, epoch: Tensor, seed: int,
    pad: int, reflect: bool, flip: bool, alternating: bool, cutout: int, gather: bool,
) -> Tensor:  # fmt: skip
    count, (height, width, channels) = len(indices), images.shape[1:]
    out = torch.empty((count, height, width, channels), dtype=table.dtype, device=images.device)
    if count:
        rows = min(_ROWS, triton.next_power_of_2(height))
        parts = triton.cdiv(width * channels, _COLUMNS)
        each = min(parts, _MOST_PARTS)
        _augment_kernel[count, triton.cdiv(height, rows), triton.cdiv(parts, each)](
            images, indices, table, epoch, out, seed,
            H=height, W=width, C=channels, PAD=pad, REFLECT=reflect, FLIP=flip, ALTERNATING=alternating,
            CUTOUT=cutout, GATHER=gather, ROWS=rows, COLUMNS=_COLUMNS, PARTS=each, num_warps=_WARPS,
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
