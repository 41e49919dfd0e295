"""Convolutions with a BatchNorm's sums at their end as Triton kernels; see `kernels.convolution`.

A convolution is a matrix product whose left side is never written out: a row for each pixel of the result, a column for
each of its channels, and the depth between them the pixels under the filter, tap by tap, and their channels. A program
keeps its tile of the product in registers, where sums over its rows cost no memory traffic; the programs' sums are
joined by the kernels of `kernels.batchnorm_triton`.
"""

# Triton's functions take its own values, which have no Python types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from fast_train.kernels.batchnorm_triton import (
    _apply_op,
    _BatchNorm,
    _gradients_op,
    _input_gradient_kernel,
    _statistics_op,
)
from fast_train.kernels.convolution_reference import Raw
from fast_train.kernels.rows_triton import (
    _behind_relu,
    _channels_last,
    _grids,
    _join_sums_kernel,
    _matrix,
    _statistics_kernel,
)

# Wider layers are left to cuDNN: ResNet-18's 64 and 128 channels have four fifths of the activations' bytes, which are
# to be saved, and its 256 and 512 half of the operations, which cuDNN is best at.
MOST_CHANNELS = 128


class Tile(NamedTuple):
    """What a program computes at once: block_rows x block_columns of the product, block_depth of its inner dimension
    a step, by ``warps`` times 32 threads, with the loads of ``stages`` steps under way."""

    block_rows: int
    block_columns: int
    block_depth: int
    warps: int
    stages: int


# Forward, three and two of their programs fit on one processor of an H100 (`benchmarks.lab.registers`). Which tile is
# fastest there, `benchmarks.lab.convolutions` measures.
_NARROW, _WIDE = Tile(128, 64, 64, warps=4, stages=3), Tile(128, 128, 64, warps=8, stages=3)


class Tiles(NamedTuple):
    """Of a convolution, and of its gradient with regard to its input."""

    forward: Tile
    gradient: Tile


def tiles_of(columns: int, depth: int, dtype: torch.dtype) -> Tiles | None:
    """The tiles of a convolution to ``columns`` channels of ``depth``; None where cuDNN is to compute it and a pass of
    its own the sums. A function of shape and type alone, so that sums repeat bit for bit."""
    if max(columns, depth) > MOST_CHANNELS:
        return None
    # Float32 in half the depth: twice the bytes would not fit into the 100 KB of shared memory of compute capabilities
    # 8.6, 8.9 and 12.0.
    deepest = 64 if dtype.itemsize <= 2 else 32
    return Tiles(
        *(fit(_NARROW if c <= 64 else _WIDE, c, min(d, deepest)) for c, d in ((columns, depth), (depth, columns)))
    )


def fit(tile: Tile, columns: int, depth: int) -> Tile:
    """``tile`` with no more columns and depth than the product has; 16 at least, as a product of tiles needs."""
    block_columns, block_depth = (max(triton.next_power_of_2(value), 16) for value in (columns, depth))
    return tile._replace(
        block_columns=min(tile.block_columns, block_columns), block_depth=min(tile.block_depth, block_depth)
    )


@triton.jit
def _product(
    x, filters, first, column, rows, columns, depth, height, width, out_height, out_width,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, FLIPPED: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """float32 [BLOCK_R, BLOCK_C]: the patches of x [N, height, width, depth] from row ``first`` on times filters.

    filters: [columns, SIZE, SIZE, depth], or with FLIPPED [depth, SIZE, SIZE, columns], taken from their last tap to
    the first: so the gradient of a convolution of stride 1 is a convolution. WIDE: multiply in float32.
    """
    row = first + tl.arange(0, BLOCK_R)
    area = out_height * out_width
    pixel = row % area
    top = pixel // out_width * STRIDE - SIZE // 2
    left = pixel % out_width * STRIDE - SIZE // 2
    # Offsets of 32 bits from the first row's image: half the registers. A corner outside of the image is masked below.
    image = first // area
    x += image.to(tl.int64) * height * width * depth
    corner = (((row // area - image) * height + top) * width + left) * depth
    blocks = tl.cdiv(depth, BLOCK_D)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for step in range(SIZE * SIZE * blocks):
        tap = step // blocks
        inner = (step % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
        down, right = tap // SIZE, tap % SIZE
        inside = (row < rows) & (top + down >= 0) & (top + down < height) & (left + right >= 0) & (left + right < width)
        patch = tl.load(
            x + (corner + (down * width + right) * depth)[:, None] + inner[None, :],
            mask=inside[:, None] & (inner < depth)[None, :], other=0.0,
        )  # fmt: skip
        if FLIPPED:
            place = (inner * (SIZE * SIZE) + (SIZE * SIZE - 1 - tap))[:, None] * columns + column[None, :]
        else:
            place = (column * (SIZE * SIZE) + tap)[None, :] * depth + inner[:, None]
        factor = tl.load(filters + place, mask=(inner < depth)[:, None] & (column < columns)[None, :], other=0.0)
        if WIDE:
            total = tl.dot(patch.to(tl.float32), factor.to(tl.float32), total, input_precision="ieee")
        else:
            total = tl.dot(patch, factor, total)
    return total


@triton.jit
def _place(rows, columns, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """(first row, its element, column, element from there, is it one) of a program's tile of the result."""
    first = tl.program_id(0) * BLOCK_R
    local = tl.arange(0, BLOCK_R)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (first + local < rows)[:, None] & (column < columns)[None, :]
    return first, first.to(tl.int64) * columns, column, local[:, None] * columns + column[None, :], inside


@triton.jit
def _convolution_kernel(
    x, filters, out, partial, rows, columns, depth, height, width, out_height, out_width, chunks,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The convolution; of each program's rows mean and sum of squared deviations: partial float32 [2, C, chunks]."""
    first, start, column, element, inside = _place(rows, columns, BLOCK_R, BLOCK_C)
    total = _product(
        x, filters, first, column, rows, columns, depth, height, width, out_height, out_width,
        SIZE, STRIDE, False, WIDE, BLOCK_R, BLOCK_C, BLOCK_D,
    )  # fmt: skip
    stored = total.to(out.dtype.element_ty)
    tl.store(out + start + element, stored, mask=inside)
    # Of what is stored, as if it had been read again. Rows outside are zero.
    value = stored.to(tl.float32)
    mean = tl.sum(value, axis=0) / tl.minimum(rows - first, BLOCK_R)
    deviation = tl.where(inside, value - mean[None, :], 0.0)
    place = partial + column * chunks + tl.program_id(0)
    tl.store(place, mean, mask=column < columns)
    tl.store(place + columns * chunks, tl.sum(deviation * deviation, axis=0), mask=column < columns)


@triton.jit
def _data_gradient_kernel(
    dout, filters, dy2, x, y, mean, inv_std, weight, bias, behind, partial,
    rows, columns, depth, height, width, chunks,
    SECOND: tl.constexpr, FROM_Y: tl.constexpr, SIZE: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradient of a convolution's input, which norm and ReLU made of x, taken back through the ReLU; of each
    program's rows the sums of it and of it times normalised x: partial float32 [2, C, chunks]."""
    first, start, column, element, inside = _place(rows, columns, BLOCK_R, BLOCK_C)
    gradient = _product(
        dout, filters, first, column, rows, columns, depth, height, width, height, width,
        SIZE, 1, True, WIDE, BLOCK_R, BLOCK_C, BLOCK_D,
    )  # fmt: skip
    used = column < columns
    if SECOND:
        gradient += tl.load(dy2 + start + element, mask=inside, other=0.0).to(tl.float32)
    centre = tl.load(mean + column, mask=used, other=0.0)[None, :]
    scale = tl.load(inv_std + column, mask=used, other=0.0)[None, :]
    normal = (tl.load(x + start + element, mask=inside, other=0.0).to(tl.float32) - centre) * scale
    gradient = _behind_relu(gradient, normal, weight, bias, column, used, y + start, element, inside, FROM_Y)
    # Summed as it is stored: the pass that reads it then sees one gradient. Rows outside are zero.
    stored = gradient.to(behind.dtype.element_ty)
    tl.store(behind + start + element, stored, mask=inside)
    gradient = stored.to(tl.float32)
    place = partial + column * chunks + tl.program_id(0)
    tl.store(place, tl.sum(gradient, axis=0), mask=used)
    tl.store(place + columns * chunks, tl.sum(gradient * normal, axis=0), mask=used)


def _options(x: Tensor, tile: Tile) -> dict[str, Any]:
    """Of both kernels. The interpreter has no bfloat16 to multiply."""
    wide = x.dtype == torch.float32 or not x.is_cuda
    blocks = {"BLOCK_R": tile.block_rows, "BLOCK_C": tile.block_columns, "BLOCK_D": tile.block_depth}
    return {"WIDE": wide, **blocks, "num_warps": tile.warps, "num_stages": tile.stages}


def _grid(rows: int, columns: int, tile: Tile) -> tuple[int, int]:
    return triton.cdiv(rows, tile.block_rows), triton.cdiv(columns, tile.block_columns)


def _out_shape(x: Tensor, filters: Tensor, stride: int) -> tuple[int, int, int, int]:
    """Of a convolution with an odd filter that pads by half of it."""
    count, _, height, width = x.shape
    return count, filters.shape[0], (height - 1) // stride + 1, (width - 1) // stride + 1


def _joined(partial: Tensor) -> dict[str, Any]:
    """Options of a kernel in which one program reads a channel's chunks: 16 values a thread, or up to 64."""
    chunks = triton.next_power_of_2(partial.shape[2])
    return {"CHUNKS": chunks, "num_warps": min(max(chunks // 512, 4), 16)}


# Not one operator with the statistics: one that changes its arguments can't have a gradient.
@torch.library.custom_op("fast_train::convolution_moments", mutates_args=())
def _convolution_op(x: Tensor, filters: Tensor, stride: int, tile: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(the convolution in channels_last memory, `_convolution_kernel`'s ``partial``)."""
    x, filters = _channels_last(x), _channels_last(filters)
    (columns, depth, size, _), (_, _, height, width) = filters.shape, x.shape
    shape = _out_shape(x, filters, stride)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    rows, chosen = out.numel() // columns, Tile(*tile)
    grid = _grid(rows, columns, chosen)
    partial = torch.empty((2, columns, grid[0]), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _convolution_kernel[grid](
            x, filters, out, partial, rows, columns, depth, height, width, shape[2], shape[3], grid[0],
            SIZE=size, STRIDE=stride, **_options(x, chosen),
        )  # fmt: skip
    return out, partial


@_convolution_op.register_fake
def _(x, filters, stride, tile):
    count, columns, height, width = _out_shape(x, filters, stride)
    out = torch.empty(
        (count, columns, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    chunks = -(-count * height * width // Tile(*tile).block_rows)
    return out, x.new_empty((2, columns, chunks), dtype=torch.float32)


@torch.library.custom_op("fast_train::join_moments", mutates_args=("running_mean", "running_var"))
def _join_moments_op(
    partial: Tensor, running_mean: Tensor, running_var: Tensor, rows: int, block_rows: int, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """(mean, inv_std) of ``rows`` rows in chunks of ``block_rows``."""
    mean, inv_std = torch.empty_like(running_mean), torch.empty_like(running_var)
    _, channels, chunks = partial.shape
    with torch.cuda.device_of(partial):
        _statistics_kernel[(channels,)](
            partial, running_mean, running_var, mean, inv_std, rows, channels, chunks, momentum, eps,
            BLOCK_R=block_rows, **_joined(partial),
        )  # fmt: skip
    return mean, inv_std


@_join_moments_op.register_fake
def _(partial, running_mean, running_var, rows, block_rows, momentum, eps):
    return torch.empty_like(running_mean), torch.empty_like(running_var)


@torch.library.custom_op("fast_train::convolution_norm_gradients", mutates_args=())
def _data_gradients_op(
    dout: Tensor, filters: Tensor, dy2: Tensor | None, x: Tensor, y: Tensor | None,
    mean: Tensor, inv_std: Tensor, weight: Tensor, bias: Tensor, tile: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """As `_gradients_op` with ``store`` and ReLU, from the gradient of a convolution of stride 1 after it."""
    dout, filters, x = _channels_last(dout), _channels_last(filters), _channels_last(x)
    (depth, columns, size, _), (_, _, height, width) = filters.shape, x.shape
    behind, dx = (torch.empty_like(x, memory_format=torch.channels_last) for _ in range(2))
    weight_gradient, bias_gradient = torch.empty_like(weight), torch.empty_like(bias)
    (rows, _, tiles), chosen = _matrix(x), Tile(*tile)
    grid = _grid(rows, columns, chosen)
    partial = torch.empty((2, columns, grid[0]), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _data_gradient_kernel[grid](
            dout, filters, x if dy2 is None else _channels_last(dy2), x, x if y is None else _channels_last(y),
            mean, inv_std, weight, bias, behind, partial, rows, columns, depth, height, width, grid[0],
            SECOND=dy2 is not None, FROM_Y=y is not None, SIZE=size, **_options(x, chosen),
        )  # fmt: skip
        _join_sums_kernel[(columns,)](partial, bias_gradient, weight_gradient, columns, grid[0], **_joined(partial))
        _input_gradient_kernel[_grids(rows, columns, tiles)[1]](
            behind, x, mean, inv_std, weight, bias, bias_gradient, weight_gradient, dx, rows, columns,
            RELU=False, BLOCK_R=tiles.block_rows, BLOCK_C=tiles.block_channels,
        )  # fmt: skip
    return dx, weight_gradient, bias_gradient, behind


@_data_gradients_op.register_fake
def _(dout, filters, dy2, x, y, mean, inv_std, weight, bias, tile):
    dx, behind = (torch.empty_like(x, memory_format=torch.channels_last) for _ in range(2))
    return dx, torch.empty_like(weight), torch.empty_like(bias), behind


class _NormConvolution(torch.autograd.Function):
    """(the convolution, its chunks' moments, the activation if ``shared``)."""

    @staticmethod
    def forward(ctx: Any, x, weight, bias, residual, mean, inv_std, filters, stride: int, shared: bool, tiles) -> Any:
        y = _apply_op(x, mean, inv_std, weight, bias, residual, True)
        # A list: torch.compile of torch 2.11 passes no named tuple on to an operator.
        out, partial = _convolution_op(y, filters, stride, list(tiles.forward))
        ctx.residual, ctx.stride, ctx.tile = residual is not None, stride, tiles.gradient
        ctx.save_for_backward(x, y, mean, inv_std, weight, bias, filters)
        ctx.mark_non_differentiable(partial)
        ctx.set_materialize_grads(False)
        return (out, partial, y) if shared else (out, partial)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, _: None, dy2: Tensor | None = None) -> Any:
        x, y, mean, inv_std, weight, bias, filters = ctx.saved_tensors
        read = y if ctx.residual else None
        norm = (mean, inv_std, weight, bias)
        if dout is None:
            # Of the shared activation alone; autograd calls for neither only if a caller does.
            if dy2 is None:
                return (None,) * 10
            dx, dweight, dbias, behind = _gradients_op(dy2, None, x, read, *norm, True, ctx.residual)
            return dx, dweight, dbias, behind if ctx.residual else None, *[None] * 6
        stride, padding = [ctx.stride] * 2, [filters.shape[-1] // 2] * 2
        # cuDNN's: the gradient of the filters, and that of y where its pixels lie apart.
        dy, dfilters, _ = torch.ops.aten.convolution_backward(
            dout, y, filters, None, stride, padding, [1, 1], False, [0, 0], 1, [ctx.stride > 1, True, False]
        )
        if ctx.stride == 1:
            dx, dweight, dbias, behind = _data_gradients_op(dout, filters, dy2, x, read, *norm, list(ctx.tile))
        else:
            store = dy2 is not None or ctx.residual
            dx, dweight, dbias, behind = _gradients_op(dy, dy2, x, read, *norm, True, store)
        return dx, dweight, dbias, behind if ctx.residual else None, None, None, dfilters, None, None, None


def with_statistics_triton(x: Tensor, running_mean: Tensor, running_var: Tensor, *, momentum: float, eps: float) -> Raw:
    """`kernels.convolution.with_statistics` on a CUDA device (or, under Triton's interpreter, on the CPU)."""
    with torch.no_grad():
        return Raw(x, *_statistics_op(x.detach(), running_mean, running_var, momentum, eps))


def normalise_triton(raw: Raw, weight: Tensor, bias: Tensor, residual: Tensor | None, *, relu: bool) -> Tensor:
    """`kernels.convolution.normalise` on a CUDA device (or, under Triton's interpreter, on the CPU)."""
    return _BatchNorm.apply(raw.x, weight, bias, residual, raw.mean, raw.inv_std, relu, False)


def norm_relu_convolution_triton(
    raw: Raw, weight: Tensor, bias: Tensor, filters: Tensor, running_mean: Tensor, running_var: Tensor,
    residual: Tensor | None, *, stride: int, shared: bool, momentum: float, eps: float, tiles: Tiles | None,
) -> tuple[Raw, Tensor | None]:  # fmt: skip
    """`kernels.convolution.norm_relu_convolution` on a CUDA device (or, under Triton's interpreter, on the CPU).

    tiles: `tiles_of` the filters, or others to be tried; None for cuDNN's convolution.
    """
    if tiles is None:
        normed = _BatchNorm.apply(raw.x, weight, bias, residual, raw.mean, raw.inv_std, True, shared)
        branch, second = normed if shared else (normed, None)
        out = F.conv2d(branch, filters, stride=stride, padding=filters.shape[-1] // 2)
        return with_statistics_triton(out, running_mean, running_var, momentum=momentum, eps=eps), second
    out, partial, *y = _NormConvolution.apply(
        raw.x, weight, bias, residual, raw.mean, raw.inv_std, filters, stride, shared, tiles
    )
    with torch.no_grad():
        rows = out.numel() // out.shape[1]
        statistics = _join_moments_op(partial, running_mean, running_var, rows, tiles.forward.block_rows, momentum, eps)
    return Raw(out, *statistics), y[0] if shared else None
