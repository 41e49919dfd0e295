"""The fused augmentation as one Triton kernel; see `kernels.augment` for what it computes."""

# Triton's decorators have no types, nor have the values in its functions; torch.cuda.device_of has none either.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fast_train.kernels.philox import STREAM_AUGMENT, STREAM_COLOUR, STREAM_CUTOUT
from fast_train.kernels.resample import in_units
from fast_train.kernels.resized_crop_triton import random_factor, scale_from
from fast_train.kernels.spec import MID_GREY, AugmentSpec
from fast_train.kernels.switches import SWITCHES

_AUGMENT: tl.constexpr = tl.constexpr(STREAM_AUGMENT)
_CUTOUT: tl.constexpr = tl.constexpr(STREAM_CUTOUT)
_COLOUR: tl.constexpr = tl.constexpr(STREAM_COLOUR)
_MID_GREY: tl.constexpr = tl.constexpr(MID_GREY)
# Output elements of one image that a program writes, 8 to each of its 128 threads: three programs for 32 x 32 x 3.
_BLOCK = 1024


@triton.jit
def _below(word, bound: tl.constexpr):
    """`kernels.philox.below`."""
    return ((word.to(tl.uint64) * bound) >> 32).to(tl.int32)


@triton.jit
def _reflect(position, size: tl.constexpr):
    """Mirror a position outside of 0 .. size - 1 at the nearer border, which is not repeated."""
    position = tl.where(position < 0, -position, position)
    return tl.where(position >= size, 2 * (size - 1) - position, position)


@triton.jit
def _source(
    y, x, seed, counter, epoch,
    H: tl.constexpr, W: tl.constexpr,
    PAD: tl.constexpr, REFLECT: tl.constexpr, FLIP: tl.constexpr, ALTERNATING: tl.constexpr,
):  # fmt: skip
    """Where output pixels y, x [BLOCK] come from, as in `kernels.augment_reference.source_coordinates`: (y, x)."""
    source_y, source_x = y, x
    if PAD > 0 or FLIP:
        zero = counter * 0
        r0, r1, r2, _ = tl.philox(seed, counter, epoch, zero + _AUGMENT, zero)
        if FLIP:
            flip = _below(r2, 2)
            if ALTERNATING:
                _, _, first_r2, _ = tl.philox(seed, counter, zero, zero + _AUGMENT, zero)
                flip = _below(first_r2, 2) ^ (epoch & 1).to(tl.int32)
            source_x = tl.where(flip == 1, W - 1 - x, x)
        source_y += _below(r0, 2 * PAD + 1) - PAD
        source_x += _below(r1, 2 * PAD + 1) - PAD
    if REFLECT:
        source_y = _reflect(source_y, H)
        source_x = _reflect(source_x, W)
    return source_y, source_x


@triton.jit
def _change_colours(level, seed, counter, epoch, index, BRIGHTNESS: tl.constexpr, CONTRAST: tl.constexpr):
    """`kernels.augment_reference.change_colours` of one sample."""
    zero = counter * 0
    r0, r1, _, _ = tl.philox(seed, counter, epoch, zero + _COLOUR, zero)
    level = scale_from(0, level, random_factor(r0, index, BRIGHTNESS))
    return scale_from(_MID_GREY, level, random_factor(r1, index, CONTRAST))


@triton.jit
def augment_kernel(
    images_ptr, indices_ptr, table_ptr, epoch_ptr, out_ptr, seed,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr,
    PAD: tl.constexpr, REFLECT: tl.constexpr, FLIP: tl.constexpr, ALTERNATING: tl.constexpr,
    CUTOUT: tl.constexpr, BRIGHTNESS: tl.constexpr, CONTRAST: tl.constexpr,
    GATHER: tl.constexpr, TABLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program writes BLOCK neighbouring elements of one image [H, W, C] of out [N, H, W, C].

    images: uint8 [M, H, W, C]. indices: int64 [N]. table: [256, C] of out's type. epoch: int64, one value. BRIGHTNESS,
    CONTRAST: in units of 1 / UNIT. TABLE: how many values to look up in shared memory, a power of two; 0 for none.
    """
    # The sample, and its counter (index, epoch, stream, 0) for random numbers, as in `kernels.philox.sample_words`.
    sample = tl.program_id(0).to(tl.int64)
    index = tl.load(indices_ptr + sample)
    epoch = tl.load(epoch_ptr).to(tl.uint32)
    counter = index.to(tl.uint32)

    # The elements to write: y, x, channel, all [BLOCK].
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < H * W * C
    channel = offsets % C
    y = (offsets // C) // W
    x = (offsets // C) % W

    # Where each element comes from: crop and flip.
    source_y, source_x = _source(y, x, seed, counter, epoch, H, W, PAD, REFLECT, FLIP, ALTERNATING)
    in_image = (source_y >= 0) & (source_y < H) & (source_x >= 0) & (source_x < W)

    # Load the bytes, black outside of the image, change their colours, and look their values up.
    image = index if GATHER else sample
    source = (source_y * W + source_x) * C + channel
    byte = tl.load(images_ptr + image * (H * W * C) + source, mask=mask & in_image, other=0)
    level = byte.to(tl.int32)
    if BRIGHTNESS > 0 or CONTRAST > 0:
        level = _change_colours(level, seed, counter, epoch, index, BRIGHTNESS, CONTRAST)
    if TABLE > 0:
        entries = tl.arange(0, TABLE)
        value = tl.gather(tl.load(table_ptr + entries, mask=entries < 256 * C, other=0.0), level * C + channel, axis=0)
    else:
        value = tl.load(table_ptr + level * C + channel, mask=mask, other=0.0)

    # Draw the square, and cut it out: zero is the mean colour.
    if CUTOUT > 0:
        zero = counter * 0
        r0, r1, _, _ = tl.philox(seed, counter, epoch, zero + _CUTOUT, zero)
        from_top = y - (_below(r0, H) - CUTOUT // 2)
        from_left = x - (_below(r1, W) - CUTOUT // 2)
        covered = (from_top >= 0) & (from_top < CUTOUT) & (from_left >= 0) & (from_left < CUTOUT)
        value = tl.where(covered, 0.0, value)

    # Store.
    tl.store(out_ptr + sample * (H * W * C) + offsets, value, mask=mask)


@torch.library.custom_op("fast_train::augment", mutates_args=())
def _augment_op(
    images: Tensor, indices: Tensor, table: Tensor, epoch: Tensor, seed: int,
    pad: int, reflect: bool, flip: bool, alternating: bool, cutout: int, brightness: int, contrast: int, gather: bool,
) -> Tensor:  # fmt: skip
    count, (height, width, channels) = len(indices), images.shape[1:]
    out = torch.empty((count, height, width, channels), dtype=table.dtype, device=images.device)
    if count:
        grid = (count, triton.cdiv(height * width * channels, _BLOCK))
        # Triton by itself would launch on the current device, wherever the tensors lie.
        with torch.cuda.device_of(images):
            augment_kernel[grid](
                images, indices, table, epoch, out, seed,
                H=height, W=width, C=channels, PAD=pad, REFLECT=reflect, FLIP=flip, ALTERNATING=alternating,
                CUTOUT=cutout, BRIGHTNESS=brightness, CONTRAST=contrast, GATHER=gather,
                TABLE=triton.next_power_of_2(256 * channels) if SWITCHES.shared_table else 0, BLOCK=_BLOCK,
            )  # fmt: skip
    return out.permute(0, 3, 1, 2)


@_augment_op.register_fake
def _(images, indices, table, epoch, seed, pad, reflect, flip, alternating, cutout, brightness, contrast, gather):
    count, (height, width, channels) = indices.shape[0], images.shape[1:]
    return table.new_empty((count, height, width, channels)).permute(0, 3, 1, 2)


def augment_triton(
    images: Tensor, indices: Tensor, table: Tensor, *, spec: AugmentSpec, seed: int, epoch: Tensor, gather: bool
) -> Tensor:
    """`kernels.augment.augment` on a CUDA device (or, under Triton's interpreter, on the CPU)."""
    out: Tensor = _augment_op(
        images, indices, table, epoch, seed,
        spec.pad, spec.pad_mode == "reflect", spec.flip, spec.flip_mode == "alternating", spec.cutout,
        in_units(spec.brightness), in_units(spec.contrast), gather,
    )  # fmt: skip
    return out
