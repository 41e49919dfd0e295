"""A tile of a convolution whose operands TMA loads, in place of `kernels.convolution_triton`'s loads through pointers.

TMA, the tensor memory accelerator of compute capability 9.0, copies a box of a tensor to shared memory by one
instruction, zeros where the box lies outside. A tile is some whole rows of one image. Its pixels under a tap of the
filter are the box of these rows moved by the tap, with no offsets and no masks; the padding comes by itself. The
operands are swapped, so that the filters are the first one of the product of a warp group (wgmma): 64 channels fill its
64 rows, and 128 or 256 pixels lie in a row, where pixels first would have rows of 64 channels.
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
    """Why these tiles can't run on a device, in a few words; None where they can."""
    # Newer devices multiply in another way, or have too little shared memory for these tiles.
    if device.type != "cuda" or not torch.cuda.is_available() or torch.cuda.get_device_capability(device)[0] != 9:
        return "loads by TMA need a GPU of compute capability 9.0"
    return None


def tiles_by_tma(x: Tensor, filters: Tensor, stride: int) -> Tiles | None:
    """The tiles of a convolution of x [N, C, H, W] with filters [O, C, K, K]; None where other loads are to be used."""
    if not SWITCHES.tma or stride > 1 or x.element_size() > 2 or why_not(x.device) is not None:
        return None
    return tma_tiles_of(filters.shape[0], *x.shape[1:])


def boxes(x: Tensor, filters: Tensor, tile: Tile, *, flipped: bool) -> tuple[TensorDescriptor, TensorDescriptor]:
    """What `product_by_tma` reads, in the place of pointers.

    x [N, C, H, W], filters [O, C, K, K]: in channels_last memory that begins at a multiple of 16 bytes. A tile's rows
    must be rows of an image, and divide its height.
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
def product_by_tma(
    x, filters, tile, n_cols, depth, height,
    SIZE: tl.constexpr, FLIPPED: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The tile float32 [BLOCK_M, BLOCK_N] of the convolution, of stride 1, of x with the filters.

    x, filters: `boxes`. FLIPPED, UPCAST: as in `kernels.convolution_triton`.
    """
    rows: tl.constexpr = x.block_shape[1]
    tiles_an_image = height // rows
    image = tile // tiles_an_image
    top = tile % tiles_an_image * rows - SIZE // 2
    first_col = tl.program_id(1) * BLOCK_N
    k_blocks = tl.cdiv(depth, BLOCK_K)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for step in range(SIZE * SIZE * k_blocks):
        tap = step // k_blocks
        k = (step % k_blocks) * BLOCK_K
        # Load the pixels under this tap, [BLOCK_M, BLOCK_K], and the tap's weights, [BLOCK_N, BLOCK_K].
        pixels = x.load([image, top + tap // SIZE, tap % SIZE - SIZE // 2, k]).reshape(BLOCK_M, BLOCK_K)
        if FLIPPED:
            weights = filters.load([k, (SIZE * SIZE - 1 - tap) * n_cols + first_col]).T
        else:
            weights = filters.load([first_col, tap * depth + k])
        if UPCAST:
            pixels, weights = pixels.to(tl.float32), weights.to(tl.float32)
        acc = tl.dot(weights, pixels.T, acc, input_precision="ieee")
    return acc.T
