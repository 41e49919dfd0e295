"""Convolutions of 3x3 taps and stride 1 in strips, whose operands TMA loads: see `kernels.convolution_triton`.

TMA, the tensor memory accelerator of compute capability 9.0, copies a box of a tensor to shared memory by one
instruction, zeros where the box lies outside. A strip is some whole rows of one image, and a program goes down whole
images strip by strip. The three taps of a filter's column read the strip moved sideways: a box, with no offsets and no
masks. Each has a product of its own with that one box, and the three products are moved by a row against each other
afterwards. So a pixel is read three times instead of nine; the last row waits for the next strip's first one.

The operands are swapped: the filters are the first one of a warp group's product (wgmma), 64 channels by 128 pixels. A
thread then holds a part of each row of a strip, the same columns of all, and to move rows costs no instruction.
"""

# Triton's decorators have no types, nor have the values in its functions.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fast_train.kernels.switches import SWITCHES
from fast_train.kernels.tiling import Tile, Tiles, tma_tiles_of


# As a constant: torch.compile can't look at a device.
@torch.compiler.assume_constant_result
def why_not(device: torch.device) -> str | None:
    """Why these kernels can't run on a device, in a few words; None where they can."""
    # Newer devices multiply in another way, or have too little shared memory for these tiles.
    if device.type != "cuda" or not torch.cuda.is_available() or torch.cuda.get_device_capability(device)[0] != 9:
        return "loads by TMA need a GPU of compute capability 9.0"
    return None


def tiles_by_tma(x: Tensor, filters: Tensor, stride: int) -> Tiles | None:
    """The tiles of a convolution of x [N, C, H, W] with filters [O, C, K, K]; None where other loads are to be used."""
    fits = stride == 1 and filters.shape[-1] == 3 and x.element_size() == 2
    if not SWITCHES.tma or not fits or why_not(x.device) is not None:
        return None
    return tma_tiles_of(filters.shape[0], *x.shape[1:])


def boxes(x: Tensor, filters: Tensor, tile: Tile, *, flipped: bool) -> tuple[TensorDescriptor, TensorDescriptor]:
    """What `strip_by_tma` reads, in the place of pointers.

    x [N, C, H, W], filters [O, C, 3, 3]: in channels_last memory that begins at a multiple of 16 bytes.
    """
    count, depth, height, width = x.shape
    taps = filters.numel() // len(filters)
    # By hand: a tensor's own stride of a dimension with one element may be any number.
    strides = [height * width * depth, width * depth, depth, 1]
    block = [tile.block_k, tile.block_n] if flipped else [tile.block_n, tile.block_k]
    return (
        TensorDescriptor(x, [count, height, width, depth], strides, [1, tile.block_m // width, width, tile.block_k]),
        TensorDescriptor(filters, [len(filters), taps], [taps, 1], block),
    )


@triton.jit
def strips_of_program(x, n_rows, n_chunks, image_rows, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Of the images that a program computes: their first row, the row after their last one, the same of strips; and
    zeros to begin with, a row of products [BLOCK_N, W] and a column of sums [BLOCK_N]. One strip more than they have:
    it completes the last row."""
    images = tl.cdiv(n_rows // image_rows, n_chunks)
    low = tl.program_id(0) * images * image_rows
    high = tl.minimum(low + images * image_rows, n_rows)
    width: tl.constexpr = x.block_shape[2]
    row, column = tl.zeros([BLOCK_N, width], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    return low, high, low // BLOCK_M, high // BLOCK_M + 1, row, column


@triton.jit
def _weights(filters, tap, k, n_cols, depth, FLIPPED: tl.constexpr, BLOCK_N: tl.constexpr):
    """[BLOCK_N, BLOCK_K] of a tap."""
    first_col = tl.program_id(1) * BLOCK_N
    if FLIPPED:
        weights = filters.load([k, (8 - tap) * n_cols + first_col]).T
    else:
        weights = filters.load([first_col, tap * depth + k])
    return weights


@triton.jit
def filters_to_keep(filters, n_cols, depth, KEEP: tl.constexpr, FLIPPED: tl.constexpr, BLOCK_N: tl.constexpr):
    """What `strip_by_tma` takes as filters: if KEEP, the nine taps [BLOCK_N, BLOCK_K], which stay in shared memory from
    strip to strip; else the box itself, which is read for each strip."""
    if KEEP:
        kept = (
            _weights(filters, 0, 0, n_cols, depth, FLIPPED, BLOCK_N),
            _weights(filters, 1, 0, n_cols, depth, FLIPPED, BLOCK_N),
            _weights(filters, 2, 0, n_cols, depth, FLIPPED, BLOCK_N),
            _weights(filters, 3, 0, n_cols, depth, FLIPPED, BLOCK_N),
            _weights(filters, 4, 0, n_cols, depth, FLIPPED, BLOCK_N),
            _weights(filters, 5, 0, n_cols, depth, FLIPPED, BLOCK_N),
            _weights(filters, 6, 0, n_cols, depth, FLIPPED, BLOCK_N),
            _weights(filters, 7, 0, n_cols, depth, FLIPPED, BLOCK_N),
            _weights(filters, 8, 0, n_cols, depth, FLIPPED, BLOCK_N),
        )
    else:
        kept = filters
    return kept


@triton.jit
def _add_product(weights, pixels, acc, UPCAST: tl.constexpr):
    if UPCAST:
        weights, pixels = weights.to(tl.float32), pixels.to(tl.float32)
    return tl.dot(weights, pixels.T, acc, input_precision="ieee")


@triton.jit
def _move_down(values, above, ROWS: tl.constexpr):
    """values [BLOCK_N, ROWS * width] moved by a row, below ``above`` [BLOCK_N, width]; and the row that falls out.

    Of two neighbouring rows the second is the first one of before; the first ones are the second ones moved.
    """
    if ROWS == 1:
        moved, out = above, values
    else:
        n_cols: tl.constexpr = values.shape[0]
        pixels: tl.constexpr = values.shape[1]
        half: tl.constexpr = ROWS // 2
        first, second = values.reshape(n_cols, half, 2, pixels // ROWS).permute(0, 1, 3, 2).split()
        below, out = _move_down(second.reshape(n_cols, pixels // 2), above, half)
        below = below.reshape(n_cols, half, pixels // ROWS)
        moved = tl.join(below, first).permute(0, 1, 3, 2).reshape(n_cols, pixels)
    return moved, out


@triton.jit
def strip_by_tma(
    x, filters, strip, above, unfinished, n_cols, depth, height,
    KEEP: tl.constexpr, FLIPPED: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The tile float32 [BLOCK_M, BLOCK_N] of the convolution of x with the filters that begins a row of the image above
    the strip; and what goes to the next strip as ``above`` and ``unfinished``, of the last row's products [BLOCK_N, W].

    x: of `boxes`. filters: `filters_to_keep`. FLIPPED, UPCAST: as in `kernels.convolution_triton`.
    """
    rows: tl.constexpr = x.block_shape[1]
    width: tl.constexpr = x.block_shape[2]
    image = strip // (height // rows)
    top = strip % (height // rows) * rows
    inside = top > 0
    upper = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    middle, _ = _move_down(upper, tl.where(inside, above, 0.0), rows)
    lower = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    if KEEP:
        for right in tl.static_range(3):
            pixels = x.load([image, top, right - 1, 0]).reshape(BLOCK_M, BLOCK_K)
            upper = _add_product(filters[right], pixels, upper, UPCAST)
            middle = _add_product(filters[3 + right], pixels, middle, UPCAST)
            lower = _add_product(filters[6 + right], pixels, lower, UPCAST)
    else:
        k_blocks = tl.cdiv(depth, BLOCK_K)
        for step in range(3 * k_blocks):
            right = step // k_blocks
            k = (step % k_blocks) * BLOCK_K
            pixels = x.load([image, top, right - 1, k]).reshape(BLOCK_M, BLOCK_K)
            weights = _weights(filters, right, k, n_cols, depth, FLIPPED, BLOCK_N)
            upper = _add_product(weights, pixels, upper, UPCAST)
            weights = _weights(filters, 3 + right, k, n_cols, depth, FLIPPED, BLOCK_N)
            middle = _add_product(weights, pixels, middle, UPCAST)
            weights = _weights(filters, 6 + right, k, n_cols, depth, FLIPPED, BLOCK_N)
            lower = _add_product(weights, pixels, lower, UPCAST)
    # A row of the result is the upper taps' product of the row above it, the middle ones' of its own, and the lower
    # ones' of the row below. Nothing comes from the image above: its last row is complete, and has no row below.
    moved, above = _move_down(upper, tl.zeros([BLOCK_N, width], tl.float32), rows)
    moved, unfinished = _move_down(moved + middle, unfinished, rows)
    below_border = (inside | (tl.arange(0, BLOCK_M) >= width))[None, :]
    return (moved + tl.where(below_border, lower, 0.0)).T, above, unfinished
