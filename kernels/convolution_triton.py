"""Convolutions with a BatchNorm's sums at their end as Triton kernels; see `kernels.convolution`.

A convolution is an implicit matrix product (implicit GEMM): its left side, a row of patches for each output pixel, is
never written out. ``n_rows`` = N * H_out * W_out pixels of the result, ``n_cols`` channels of the result, and the inner
dimension runs over the taps of the filter and, within a tap, over ``depth`` input channels. A program keeps its tile of
the product in registers, where sums over its rows cost no memory traffic; the kernels of `kernels.rows_triton` join the
programs' sums, so that a chunk is one tile of rows here, or some whole images with `kernels.convolution_tma`. x_hat, z,
dz, rstd: as in `kernels.batchnorm_triton`.
"""

# Triton's decorators have no types, nor have the values in its functions; torch.cuda.device_of has none either.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from fast_train.kernels.batchnorm_triton import (
    BatchNormFn,
    apply_op,
    gradients_op,
    input_gradient_kernel,
    statistics_op,
)
from fast_train.kernels.convolution_reference import Raw
from fast_train.kernels.convolution_tma import boxes, filters_to_keep, strip_by_tma, strips_of_program
from fast_train.kernels.rows_triton import (
    channels_last,
    empty_partials,
    join_sums_kernel,
    relu_backward,
    statistics_kernel,
    tiling_of,
)
from fast_train.kernels.tiling import Tile, Tiles, cdiv, join_options


@triton.jit
def _product(
    x_ptr, filters_ptr, first_row, cols, n_rows, n_cols, depth, height, width, out_height, out_width,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, FLIPPED: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The tile float32 [BLOCK_M, BLOCK_N] of the convolution of x with the filters that begins at ``first_row``.

    x: [N, height, width, depth]. filters: [n_cols, SIZE, SIZE, depth], or if FLIPPED [depth, SIZE, SIZE, n_cols], read
    from the last tap to the first: the gradient of a convolution of stride 1 is such a convolution. UPCAST: multiply in
    float32.
    """
    # Where each output pixel's patch begins in x: top and left, of the corner under the filter's first tap. [BLOCK_M]
    rows = first_row + tl.arange(0, BLOCK_M)
    area = out_height * out_width
    pixel = rows % area
    top = pixel // out_width * STRIDE - SIZE // 2
    left = pixel % out_width * STRIDE - SIZE // 2
    # Offsets count from the image of the first row, in 32 bits: half the registers of 64. Corners outside of the image
    # are masked below.
    first_image = first_row // area
    x_ptr += first_image.to(tl.int64) * height * width * depth
    corners = (((rows // area - first_image) * height + top) * width + left) * depth
    k_blocks = tl.cdiv(depth, BLOCK_K)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    # Step by step through the inner dimension: all channels of the first tap, all of the second ...
    for step in range(SIZE * SIZE * k_blocks):
        tap = step // k_blocks
        ks = (step % k_blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
        down, right = tap // SIZE, tap % SIZE
        # Load the pixels under this tap, [BLOCK_M, BLOCK_K]; the padding around an image is zero.
        row_mask = (
            (rows < n_rows)
            & (top + down >= 0) & (top + down < height)
            & (left + right >= 0) & (left + right < width)
        )  # fmt: skip
        x = tl.load(
            x_ptr + (corners + (down * width + right) * depth)[:, None] + ks[None, :],
            mask=row_mask[:, None] & (ks < depth)[None, :], other=0.0,
        )  # fmt: skip
        # Load the filters' weights of this tap, [BLOCK_K, BLOCK_N].
        if FLIPPED:
            offsets = (ks * (SIZE * SIZE) + (SIZE * SIZE - 1 - tap))[:, None] * n_cols + cols[None, :]
        else:
            offsets = (cols * (SIZE * SIZE) + tap)[None, :] * depth + ks[:, None]
        w = tl.load(filters_ptr + offsets, mask=(ks < depth)[:, None] & (cols < n_cols)[None, :], other=0.0)
        # Multiply and accumulate; float32 in full, not as TF32.
        if UPCAST:
            x, w = x.to(tl.float32), w.to(tl.float32)
        acc = tl.dot(x, w, acc, input_precision="ieee")
    return acc


@triton.jit
def _tile_of_result(first_row, low, high, cols, n_cols, BLOCK_M: tl.constexpr):
    """Of a tile of the result, of whose rows low <= row < high count: the first row's offset in 64 bits, and from there
    on offsets in 32 bits and mask [BLOCK_M, BLOCK_N]."""
    local_rows = tl.arange(0, BLOCK_M)
    row_mask = (first_row + local_rows >= low) & (first_row + local_rows < high)
    mask = row_mask[:, None] & (cols < n_cols)[None, :]
    return first_row.to(tl.int64) * n_cols, local_rows[:, None] * n_cols + cols[None, :], mask


@triton.jit
def _store_partials(partials_ptr, first, second, cols, n_cols, n_chunks):
    ptrs = partials_ptr + cols * n_chunks + tl.program_id(0)
    tl.store(ptrs, first, mask=cols < n_cols)
    tl.store(ptrs + n_cols * n_chunks, second, mask=cols < n_cols)


@triton.jit
def _finish_forward(acc, first_row, low, high, cols, n_cols, out_ptr, BLOCK_M: tl.constexpr):
    """Store the rows low <= row < high of a tile of the convolution. Returns their mean and sum of squared deviations,
    as of `moments_kernel`, [BLOCK_N]."""
    # Store, rounded to the result's type.
    start, offsets, mask = _tile_of_result(first_row, low, high, cols, n_cols, BLOCK_M)
    stored = acc.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + start + offsets, stored, mask=mask)

    # Reduce over rows: the moments of what is stored, as if it were read again.
    out = tl.where(mask, stored.to(tl.float32), 0.0)
    mean = tl.sum(out, axis=0) / (tl.minimum(high, first_row + BLOCK_M) - tl.maximum(low, first_row))
    deviations = tl.where(mask, out - mean[None, :], 0.0)
    return mean, tl.sum(deviations * deviations, axis=0)


@triton.jit
def convolution_kernel(
    x_ptr, filters_ptr, out_ptr, partials_ptr,
    n_rows, n_cols, depth, height, width, out_height, out_width, n_chunks,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, UPCAST: tl.constexpr, TMA: tl.constexpr, KEEP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the convolution, and its rows' moments. TMA: tile after tile (`strip_by_tma`) of some images; x_ptr
    and filters_ptr are then `boxes`. KEEP: as in `filters_to_keep`."""
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    if TMA:
        low, high, first, end, above, mean = strips_of_program(
            x_ptr, n_rows, n_chunks, height * width, BLOCK_M, BLOCK_N
        )
        unfinished, squares = above, mean
        filters = filters_to_keep(filters_ptr, n_cols, depth, KEEP, False, BLOCK_N)
        for strip in tl.range(first, end):
            acc, above, unfinished = strip_by_tma(
                x_ptr, filters, strip, above, unfinished, n_cols, depth, height,
                KEEP, False, UPCAST, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            first_row = strip * BLOCK_M - x_ptr.block_shape[2]
            tile_mean, tile_squares = _finish_forward(acc, first_row, low, high, cols, n_cols, out_ptr, BLOCK_M)
            # Join the moments as `statistics_kernel` does.
            before = tl.maximum(first_row - low, 0)
            after = tl.minimum(first_row + BLOCK_M, high) - low
            share = (after - before).to(tl.float32) / after
            squares += tile_squares + (tile_mean - mean) * (tile_mean - mean) * (before * share)
            mean += (tile_mean - mean) * share
    else:
        first_row = tl.program_id(0) * BLOCK_M
        acc = _product(
            x_ptr, filters_ptr, first_row, cols, n_rows, n_cols, depth, height, width, out_height, out_width,
            SIZE, STRIDE, False, UPCAST, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        mean, squares = _finish_forward(acc, first_row, first_row, n_rows, cols, n_cols, out_ptr, BLOCK_M)
    _store_partials(partials_ptr, mean, squares, cols, n_cols, n_chunks)


@triton.jit
def _finish_gradient(
    dz, first_row, low, high, cols, n_cols,
    dy2_ptr, x_ptr, y_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, dz_ptr,
    SECOND: tl.constexpr, FROM_Y: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Store the rows low <= row < high of a tile of dz, which so far is one of dy without the second gradient of y.
    Returns their sums of dz and of dz * x_hat, [BLOCK_N]."""
    start, offsets, mask = _tile_of_result(first_row, low, high, cols, n_cols, BLOCK_M)
    col_mask = cols < n_cols
    if SECOND:
        dz += tl.load(dy2_ptr + start + offsets, mask=mask, other=0.0).to(tl.float32)

    # Load x, normalise once more, and go back through the ReLU.
    mean = tl.load(mean_ptr + cols, mask=col_mask, other=0.0)[None, :]
    rstd = tl.load(rstd_ptr + cols, mask=col_mask, other=0.0)[None, :]
    x_hat = (tl.load(x_ptr + start + offsets, mask=mask, other=0.0).to(tl.float32) - mean) * rstd
    dz = relu_backward(dz, x_hat, weight_ptr, bias_ptr, cols, col_mask, y_ptr + start, offsets, mask, FROM_Y)

    # Store; sum what is stored, after rounding: `input_gradient_kernel` then sees the same dz.
    stored = dz.to(dz_ptr.dtype.element_ty)
    tl.store(dz_ptr + start + offsets, stored, mask=mask)
    dz = stored.to(tl.float32)

    # Reduce over rows.
    dz = tl.where(mask, dz, 0.0)
    return tl.sum(dz, axis=0), tl.sum(dz * x_hat, axis=0)


@triton.jit
def data_gradient_kernel(
    dout_ptr, filters_ptr, dy2_ptr, x_ptr, y_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, dz_ptr, partials_ptr,
    n_rows, n_cols, depth, height, width, n_chunks,
    SECOND: tl.constexpr, FROM_Y: tl.constexpr, SIZE: tl.constexpr, UPCAST: tl.constexpr, TMA: tl.constexpr,
    KEEP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of dz, from the gradient of the convolution that read y = relu(z); and its rows' sums of dz and of
    dz * x_hat, as of `gradient_sums_kernel`, which has the same flags. TMA, KEEP: as in `convolution_kernel`."""
    # Convolve dout with the flipped filters: the tile of dy.
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    if TMA:
        low, high, first, end, above, sum_dz = strips_of_program(
            dout_ptr, n_rows, n_chunks, height * width, BLOCK_M, BLOCK_N
        )
        unfinished, sum_dz_x_hat = above, sum_dz
        filters = filters_to_keep(filters_ptr, n_cols, depth, KEEP, True, BLOCK_N)
        for strip in tl.range(first, end):
            dy, above, unfinished = strip_by_tma(
                dout_ptr, filters, strip, above, unfinished, n_cols, depth, height,
                KEEP, True, UPCAST, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            first_row = strip * BLOCK_M - dout_ptr.block_shape[2]
            tile_dz, tile_dz_x_hat = _finish_gradient(
                dy, first_row, low, high, cols, n_cols,
                dy2_ptr, x_ptr, y_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, dz_ptr, SECOND, FROM_Y, BLOCK_M,
            )  # fmt: skip
            sum_dz += tile_dz
            sum_dz_x_hat += tile_dz_x_hat
    else:
        first_row = tl.program_id(0) * BLOCK_M
        dy = _product(
            dout_ptr, filters_ptr, first_row, cols, n_rows, n_cols, depth, height, width, height, width,
            SIZE, 1, True, UPCAST, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        sum_dz, sum_dz_x_hat = _finish_gradient(
            dy, first_row, first_row, n_rows, cols, n_cols,
            dy2_ptr, x_ptr, y_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, dz_ptr, SECOND, FROM_Y, BLOCK_M,
        )  # fmt: skip
    _store_partials(partials_ptr, sum_dz, sum_dz_x_hat, cols, n_cols, n_chunks)


def _upcast(x: Tensor) -> bool:
    """Is the product taken in float32? Triton's interpreter has no other."""
    return x.dtype == torch.float32 or not x.is_cuda


def _operands(x: Tensor, filters: Tensor, tile: Tile, *, flipped: bool) -> tuple[Any, Any]:
    """What the kernels take in the place of x_ptr and filters_ptr."""
    return boxes(x, filters, tile, flipped=flipped) if tile.programs else (x, filters)


def out_shape(x: Tensor, filters: Tensor, stride: int) -> tuple[int, int, int, int]:
    """[N, O, H_out, W_out] of a convolution with an odd filter, padded by half of it."""
    count, _, height, width = x.shape
    return count, filters.shape[0], (height - 1) // stride + 1, (width - 1) // stride + 1


# Without the statistics: an operator that changes its arguments, as the running ones are, can have no gradient.
@torch.library.custom_op("fast_train::convolution_moments", mutates_args=())
def convolution_op(x: Tensor, filters: Tensor, stride: int, tile: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(the convolution in channels_last memory, the moments of its chunks: `convolution_kernel`'s partials)."""
    x, filters, chosen = channels_last(x), channels_last(filters), Tile(*tile)
    (n_cols, depth, size, _), (_, _, height, width) = filters.shape, x.shape
    shape = out_shape(x, filters, stride)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    n_rows = out.numel() // n_cols
    n_chunks = cdiv(n_rows, chosen.chunk(n_rows, shape[2] * shape[3]))
    partials = empty_partials(n_cols, n_chunks, x)
    with torch.cuda.device_of(x):
        convolution_kernel[n_chunks, cdiv(n_cols, chosen.block_n)](
            *_operands(x, filters, chosen, flipped=False), out, partials,
            n_rows, n_cols, depth, height, width, shape[2], shape[3], n_chunks,
            SIZE=size, STRIDE=stride, UPCAST=_upcast(x), TMA=chosen.programs > 0, KEEP=chosen.keeps(depth),
            **chosen.options,
        )  # fmt: skip
    return out, partials


@convolution_op.register_fake
def _(x, filters, stride, tile):
    count, n_cols, height, width = out_shape(x, filters, stride)
    out = torch.empty((count, n_cols, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    n_rows = count * height * width
    return out, empty_partials(n_cols, cdiv(n_rows, Tile(*tile).chunk(n_rows, height * width)), x)


@torch.library.custom_op("fast_train::join_moments", mutates_args=("running_mean", "running_var"))
def _join_moments_op(
    partials: Tensor, running_mean: Tensor, running_var: Tensor, n_rows: int, chunk: int, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """(mean, rstd) of ``n_rows`` rows in chunks of ``chunk``; moves the running statistics."""
    mean, rstd = torch.empty_like(running_mean), torch.empty_like(running_var)
    _, n_cols, n_chunks = partials.shape
    with torch.cuda.device_of(partials):
        statistics_kernel[(n_cols,)](
            partials, running_mean, running_var, mean, rstd, n_rows, n_cols, n_chunks, momentum, eps,
            BLOCK_M=chunk, **join_options(n_chunks),
        )  # fmt: skip
    return mean, rstd


@_join_moments_op.register_fake
def _(partials, running_mean, running_var, n_rows, chunk, momentum, eps):
    return torch.empty_like(running_mean), torch.empty_like(running_var)


@torch.library.custom_op("fast_train::convolution_norm_gradients", mutates_args=())
def data_gradients_op(
    dout: Tensor, filters: Tensor, dy2: Tensor | None, x: Tensor, y: Tensor | None,
    mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, tile: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, dweight, dbias, dz), as of `gradients_op` with ReLU and ``store``, from the gradient of the convolution of
    stride 1 that comes after the ReLU."""
    dout, filters, x, chosen = channels_last(dout), channels_last(filters), channels_last(x), Tile(*tile)
    (depth, n_cols, size, _), (_, _, height, width) = filters.shape, x.shape
    dz, dx = (torch.empty_like(x, memory_format=torch.channels_last) for _ in range(2))
    dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
    tiles = tiling_of(x)
    n_chunks = cdiv(tiles.n_rows, chosen.chunk(tiles.n_rows, height * width))
    partials = empty_partials(n_cols, n_chunks, x)
    with torch.cuda.device_of(x):
        data_gradient_kernel[n_chunks, cdiv(n_cols, chosen.block_n)](
            *_operands(dout, filters, chosen, flipped=True),
            x if dy2 is None else channels_last(dy2), x, x if y is None else channels_last(y),
            mean, rstd, weight, bias, dz, partials, tiles.n_rows, n_cols, depth, height, width, n_chunks,
            SECOND=dy2 is not None, FROM_Y=y is not None, SIZE=size, UPCAST=_upcast(x), TMA=chosen.programs > 0,
            KEEP=chosen.keeps(depth), **chosen.options,
        )  # fmt: skip
        join_sums_kernel[(n_cols,)](
            partials, dbias, dweight, dbias, dweight, n_cols, n_chunks, SHORTCUT=False, **join_options(n_chunks)
        )
        input_gradient_kernel[tiles.tile_grid](
            dz, x, mean, rstd, weight, bias, dbias, dweight, dx, x, mean, rstd, weight, dweight, dx,
            tiles.n_rows, n_cols, RELU=False, SHORTCUT=False, **tiles.blocks,
        )  # fmt: skip
    return dx, dweight, dbias, dz


@data_gradients_op.register_fake
def _(dout, filters, dy2, x, y, mean, rstd, weight, bias, tile):
    dx, dz = (torch.empty_like(x, memory_format=torch.channels_last) for _ in range(2))
    return dx, torch.empty_like(weight), torch.empty_like(bias), dz


class _NormConvolutionFn(torch.autograd.Function):
    """(the convolution, the moments of its chunks, and y, which it read, if ``shared``)."""

    @staticmethod
    def forward(ctx: Any, x, weight, bias, residual, mean, rstd, filters, stride: int, shared: bool, tiles) -> Any:
        # y is kept for the filters' gradient, and so tells where the ReLU passed.
        y, _ = apply_op(x, mean, rstd, weight, bias, residual, [], True, False)
        # A list: torch.compile of torch 2.11 passes no named tuple on to an operator.
        out, partials = convolution_op(y, filters, stride, list(tiles.forward))
        ctx.residual, ctx.stride, ctx.tile = residual is not None, stride, tiles.gradient
        ctx.save_for_backward(x, y, mean, rstd, weight, bias, filters)
        ctx.mark_non_differentiable(partials)
        ctx.set_materialize_grads(False)
        return (out, partials, y) if shared else (out, partials)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, _: None, dy2: Tensor | None = None) -> Any:
        return *norm_convolution_backward(ctx, dout, dy2, data_gradients_op, list(ctx.tile)), None, None, None


def norm_convolution_backward(
    ctx: Any, dout: Tensor | None, dy2: Tensor | None, data_gradients: Callable[..., Any], *more: Any
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight, bias, residual, mean, rstd and filters, where ``ctx`` has what `_NormConvolutionFn`
    saves. data_gradients: `data_gradients_op`, which takes ``more`` besides, or one like it."""
    x, y, mean, rstd, weight, bias, filters = ctx.saved_tensors
    y_if_needed = y if ctx.residual else None
    norm = (mean, rstd, weight, bias)
    if dout is None:
        # Only the shared activation was used; autograd calls for neither only if a caller does.
        if dy2 is None:
            return (None,) * 7
        dx, dweight, dbias, dz = gradients_op(dy2, None, x, y_if_needed, *norm, [], True, ctx.residual)
        return dx, dweight, dbias, dz if ctx.residual else None, None, None, None
    stride, padding = [ctx.stride] * 2, [filters.shape[-1] // 2] * 2
    # cuDNN computes the gradient of the filters, and of y where the stride leaves gaps between the pixels read.
    dy, dfilters, _ = torch.ops.aten.convolution_backward(
        dout, y, filters, None, stride, padding, [1, 1], False, [0, 0], 1, [ctx.stride > 1, True, False]
    )
    if ctx.stride == 1:
        dx, dweight, dbias, dz = data_gradients(dout, filters, dy2, x, y_if_needed, *norm, *more)
    else:
        store = dy2 is not None or ctx.residual
        dx, dweight, dbias, dz = gradients_op(dy, dy2, x, y_if_needed, *norm, [], True, store)
    return dx, dweight, dbias, dz if ctx.residual else None, None, None, dfilters


def with_statistics_triton(x: Tensor, running_mean: Tensor, running_var: Tensor, *, momentum: float, eps: float) -> Raw:
    """`kernels.convolution.with_statistics` on a CUDA device (or, under Triton's interpreter, on the CPU)."""
    with torch.no_grad():
        return Raw(x, *statistics_op(x.detach(), running_mean, running_var, momentum, eps))


def normalise_triton(raw: Raw, weight: Tensor, bias: Tensor, residual: Tensor | None, *, relu: bool) -> Tensor:
    """`kernels.convolution.normalise` on a CUDA device (or, under Triton's interpreter, on the CPU)."""
    y: Tensor = BatchNormFn.apply(raw.x, weight, bias, residual, raw.mean, raw.rstd, relu, False)
    return y


def norm_relu_convolution_triton(
    raw: Raw, weight: Tensor, bias: Tensor, filters: Tensor, running_mean: Tensor, running_var: Tensor,
    residual: Tensor | None, *, stride: int, shared: bool, momentum: float, eps: float, tiles: Tiles | None,
) -> tuple[Raw, Tensor | None]:  # fmt: skip
    """`kernels.convolution.norm_relu_convolution` on a CUDA device (or, under Triton's interpreter, on the CPU).

    tiles: `kernels.tiling.tiles_of` the filters, or others to be tried; None for cuDNN's convolution.
    """
    if tiles is None:
        normed = BatchNormFn.apply(raw.x, weight, bias, residual, raw.mean, raw.rstd, True, shared)
        branch, second = normed if shared else (normed, None)
        out = F.conv2d(branch, filters, stride=stride, padding=filters.shape[-1] // 2)
        return with_statistics_triton(out, running_mean, running_var, momentum=momentum, eps=eps), second
    out, partials, *y = _NormConvolutionFn.apply(
        raw.x, weight, bias, residual, raw.mean, raw.rstd, filters, stride, shared, tiles
    )
    with torch.no_grad():
        n_rows = out.numel() // out.shape[1]
        chunk = tiles.forward.chunk(n_rows, out.shape[2] * out.shape[3])
        statistics = _join_moments_op(partials, running_mean, running_var, n_rows, chunk, momentum, eps)
    return Raw(out, *statistics), y[0] if shared else None
