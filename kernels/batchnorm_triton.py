"""BatchNorm with residual and ReLU as Triton kernels; see `kernels.batchnorm` for what they compute and move.

In all of them x_hat = (x - mean) * rstd is the normalised input, z = x_hat * weight + bias + residual what goes into
the ReLU, y = relu(z) the result; dz, dy, dx are the gradients of the loss with respect to them. `kernels.rows_triton`
tells how activations are laid out and sums divided.
"""

# Triton's decorators have no types, nor have the values in its functions; torch.cuda.device_of has none either.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fast_train.kernels.batchnorm_reference import Unnormalised
from fast_train.kernels.rows_triton import (
    channels_last,
    dependent_launch,
    empty_partials,
    join_sums_kernel,
    relu_backward,
    rows_in_chunk,
    statistics_kernel,
    tiling_of,
)
from fast_train.kernels.switches import SWITCHES
from fast_train.kernels.tiling import cdiv, join_options


@triton.jit
def moments_kernel(
    x_ptr, partials_ptr, n_rows, n_cols, n_chunks, n_steps,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """The moments of one chunk: its mean, and its sum of squared deviations from that mean.

    Sums are of differences from the chunk's first row. Sums of plain squares would cost the variance its digits where
    the mean is large (Chan, Golub and LeVeque 1983, section 3).
    """
    chunk = tl.program_id(0)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < n_cols
    first_row = chunk.to(tl.int64) * BLOCK_M
    shift = tl.load(x_ptr + first_row * n_cols + cols, mask=col_mask, other=0.0).to(tl.float32)  # [BLOCK_N]
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    squares = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(n_steps):
        # Load a tile, [BLOCK_M, BLOCK_N].
        rows = first_row + step * n_chunks * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (rows < n_rows)[:, None] & col_mask[None, :]
        x = tl.load(x_ptr + rows[:, None] * n_cols + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        # Accumulate, each element of the tile by itself.
        shifted = tl.where(mask, x - shift[None, :], 0.0)
        sums += shifted
        squares += shifted * shifted

    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    # Reduce over rows, to [BLOCK_N], and take the shift back.
    total = tl.sum(sums, axis=0)
    mean_shifted = total / rows_in_chunk(chunk, n_chunks, n_rows, BLOCK_M)
    ptrs = partials_ptr + cols * n_chunks + chunk
    tl.store(ptrs, shift + mean_shifted, mask=col_mask)
    tl.store(ptrs + n_cols * n_chunks, tl.sum(squares, axis=0) - total * mean_shifted, mask=col_mask)


@triton.jit
def _last_tile_first(n_rows, n_cols, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """rows [BLOCK_M], cols, col_mask [BLOCK_N] and offsets, mask [BLOCK_M, BLOCK_N] of a program's one tile.

    The first program takes the last rows, and so on: what the kernel before it read last is still in the cache.
    """
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < n_cols
    rows = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = (rows < n_rows)[:, None] & col_mask[None, :]
    return rows, cols, col_mask, rows[:, None] * n_cols + cols[None, :], mask


@triton.jit
def _vector(ptr, cols, col_mask):
    """A number for each channel, [1, BLOCK_N]."""
    return tl.load(ptr + cols, mask=col_mask, other=0.0)[None, :]


@triton.jit
def _normalised(x_ptr, mean, rstd, offsets, mask):
    """x_hat of a tile, float32 [BLOCK_M, BLOCK_N]; mean, rstd [1, BLOCK_N]."""
    return (tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32) - mean) * rstd


@triton.jit
def _bytes_of_tile(rows, n_rows, n_cols, BLOCK_N: tl.constexpr):
    """Offsets and mask [BLOCK_M, BLOCK_N // 8] of a tile's bits: a byte holds 8 channels, the first one lowest."""
    groups = tl.program_id(1) * (BLOCK_N // 8) + tl.arange(0, BLOCK_N // 8)
    mask = (rows < n_rows)[:, None] & (groups * 8 < n_cols)[None, :]
    return rows[:, None] * tl.cdiv(n_cols, 8) + groups[None, :], mask


@triton.jit
def _passed(bits_ptr, rows, n_rows, n_cols, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether the ReLU passed each value of a tile, [BLOCK_M, BLOCK_N], by the bits of `apply_kernel`."""
    offsets, mask = _bytes_of_tile(rows, n_rows, n_cols, BLOCK_N)
    bits = tl.load(bits_ptr + offsets, mask=mask, other=0).to(tl.int32)[:, :, None]
    return tl.reshape((bits >> tl.arange(0, 8)[None, None, :]) & 1, [BLOCK_M, BLOCK_N]) > 0


@triton.jit
def apply_kernel(
    x_ptr, residual_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr,
    shortcut_mean_ptr, shortcut_rstd_ptr, shortcut_weight_ptr, shortcut_bias_ptr, y_ptr, bits_ptr, n_rows, n_cols,
    RESIDUAL: tl.constexpr, SHORTCUT: tl.constexpr, RELU: tl.constexpr, BITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """y = relu(x_hat * weight + bias + residual) of one tile; x, residual, y [n_rows, n_cols], the others [n_cols].

    SHORTCUT: normalise the residual too, by its own statistics. BITS: write whether y > 0 as well, bits [n_rows,
    n_cols / 8].
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
    # Load, normalise, scale and shift.
    rows, cols, col_mask, offsets, mask = _last_tile_first(n_rows, n_cols, BLOCK_M, BLOCK_N)
    mean, rstd = _vector(mean_ptr, cols, col_mask), _vector(rstd_ptr, cols, col_mask)
    x_hat = _normalised(x_ptr, mean, rstd, offsets, mask)
    z = x_hat * _vector(weight_ptr, cols, col_mask) + _vector(bias_ptr, cols, col_mask)

    # Add, clip.
    if SHORTCUT:
        mean, rstd = _vector(shortcut_mean_ptr, cols, col_mask), _vector(shortcut_rstd_ptr, cols, col_mask)
        x_hat = _normalised(residual_ptr, mean, rstd, offsets, mask)
        z += x_hat * _vector(shortcut_weight_ptr, cols, col_mask) + _vector(shortcut_bias_ptr, cols, col_mask)
    elif RESIDUAL:
        z += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        # Not tl.maximum, which would turn a NaN into zero.
        z = tl.where(z < 0.0, 0.0, z)

    # Store, rounded to y's type.
    y = z.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + offsets, y, mask=mask)
    if BITS:
        # A thread has 8 neighbours of a row, a byte's worth.
        bits = tl.reshape((y > 0.0).to(tl.int32), [BLOCK_M, BLOCK_N // 8, 8]) << tl.arange(0, 8)[None, None, :]
        offsets, mask = _bytes_of_tile(rows, n_rows, n_cols, BLOCK_N)
        tl.store(bits_ptr + offsets, tl.sum(bits, axis=2).to(tl.uint8), mask=mask)


@triton.jit
def gradient_sums_kernel(
    dy_ptr, dy2_ptr, x_ptr, y_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr,
    shortcut_ptr, shortcut_mean_ptr, shortcut_rstd_ptr, dz_ptr, partials_ptr, n_rows, n_cols, n_chunks, n_steps,
    SECOND: tl.constexpr, RELU: tl.constexpr, FROM_Y: tl.constexpr, BITS: tl.constexpr, STORE: tl.constexpr,
    SHORTCUT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """The sums of one chunk, of dz and of dz * x_hat.

    SECOND: y was used twice, its gradient is dy + dy2. FROM_Y: see `relu_backward`. BITS: y_ptr holds the bits of
    `apply_kernel`. STORE: write dz as well. SHORTCUT: a third sum, of dz times the shortcut's x_hat.
    """
    chunk = tl.program_id(0)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < n_cols
    mean, rstd = _vector(mean_ptr, cols, col_mask), _vector(rstd_ptr, cols, col_mask)
    if SHORTCUT:
        shortcut_mean = _vector(shortcut_mean_ptr, cols, col_mask)
        shortcut_rstd = _vector(shortcut_rstd_ptr, cols, col_mask)
    sums_dz = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    sums_dz_x_hat = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    sums_shortcut = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(n_steps):
        # Load a tile, [BLOCK_M, BLOCK_N], and normalise once more.
        rows = (chunk + step * n_chunks).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (rows < n_rows)[:, None] & col_mask[None, :]
        offsets = rows[:, None] * n_cols + cols[None, :]
        dz = tl.load(dy_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        if SECOND:
            dz += tl.load(dy2_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        x_hat = _normalised(x_ptr, mean, rstd, offsets, mask)
        # Back through the ReLU.
        if BITS:
            dz = tl.where(_passed(y_ptr, rows, n_rows, n_cols, BLOCK_M, BLOCK_N), dz, 0.0)
        elif RELU:
            dz = relu_backward(dz, x_hat, weight_ptr, bias_ptr, cols, col_mask, y_ptr, offsets, mask, FROM_Y)
        if STORE:
            # Sum what is stored, after rounding: `input_gradient_kernel` then sees the same dz.
            stored = dz.to(dz_ptr.dtype.element_ty)
            tl.store(dz_ptr + offsets, stored, mask=mask)
            dz = stored.to(tl.float32)
        # Accumulate, each element of the tile by itself.
        sums_dz += dz
        sums_dz_x_hat += dz * x_hat
        if SHORTCUT:
            sums_shortcut += dz * _normalised(shortcut_ptr, shortcut_mean, shortcut_rstd, offsets, mask)

    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    # Reduce over rows, to [BLOCK_N], and store.
    ptrs = partials_ptr + cols * n_chunks + chunk
    tl.store(ptrs, tl.sum(sums_dz, axis=0), mask=col_mask)
    tl.store(ptrs + n_cols * n_chunks, tl.sum(sums_dz_x_hat, axis=0), mask=col_mask)
    if SHORTCUT:
        tl.store(ptrs + 2 * n_cols * n_chunks, tl.sum(sums_shortcut, axis=0), mask=col_mask)


@triton.jit
def input_gradient_kernel(
    dz_ptr, x_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, dbias_ptr, dweight_ptr, dx_ptr,
    shortcut_ptr, shortcut_mean_ptr, shortcut_rstd_ptr, shortcut_weight_ptr, shortcut_dweight_ptr, dshortcut_ptr,
    n_rows, n_cols, RELU: tl.constexpr, SHORTCUT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """dx = (dz - mean(dz) - x_hat * mean(dz * x_hat)) * weight * rstd of one tile.

    Ioffe and Szegedy 2015, section 3, the chain rule through mean and variance. RELU: dz_ptr holds dy instead.
    SHORTCUT: the same for the shortcut's norm, which has the same dz.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
    # Load what belongs to channels, all [1, BLOCK_N].
    _, cols, col_mask, offsets, mask = _last_tile_first(n_rows, n_cols, BLOCK_M, BLOCK_N)
    mean, rstd = _vector(mean_ptr, cols, col_mask), _vector(rstd_ptr, cols, col_mask)
    weight = _vector(weight_ptr, cols, col_mask)
    mean_dz = _vector(dbias_ptr, cols, col_mask) / n_rows
    mean_dz_x_hat = _vector(dweight_ptr, cols, col_mask) / n_rows

    # Load a tile, [BLOCK_M, BLOCK_N], and normalise once more.
    dz = tl.load(dz_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    x_hat = _normalised(x_ptr, mean, rstd, offsets, mask)

    # Back through the ReLU, then through the norm.
    if RELU:
        dz = tl.where(x_hat * weight + _vector(bias_ptr, cols, col_mask) > 0.0, dz, 0.0)
    tl.store(dx_ptr + offsets, (dz - mean_dz - x_hat * mean_dz_x_hat) * (weight * rstd), mask=mask)
    if SHORTCUT:
        mean, rstd = _vector(shortcut_mean_ptr, cols, col_mask), _vector(shortcut_rstd_ptr, cols, col_mask)
        weight = _vector(shortcut_weight_ptr, cols, col_mask)
        mean_dz_x_hat = _vector(shortcut_dweight_ptr, cols, col_mask) / n_rows
        x_hat = _normalised(shortcut_ptr, mean, rstd, offsets, mask)
        tl.store(dshortcut_ptr + offsets, (dz - mean_dz - x_hat * mean_dz_x_hat) * (weight * rstd), mask=mask)


# The operators launch on the device of their tensors: Triton by itself would take the current one.
# They are three, joined by `BatchNormFn`. A single one would have to change the running statistics, and an operator
# that changes its arguments can have no gradient; nor can one with a gradient return a tensor under two names.
@torch.library.custom_op("fast_train::batch_norm_statistics", mutates_args=("running_mean", "running_var"))
def statistics_op(
    x: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """(mean, rstd = 1 / sqrt(biased variance + eps)) of the batch, float32 [C]; moves the running statistics."""
    x, tiles = channels_last(x), tiling_of(x)
    mean, rstd = torch.empty_like(running_mean), torch.empty_like(running_var)
    partials = empty_partials(tiles.n_cols, tiles.n_chunks, x)
    with torch.cuda.device_of(x):
        dependent = dependent_launch(x)
        moments_kernel[tiles.chunk_grid](
            x, partials, tiles.n_rows, tiles.n_cols, tiles.n_chunks, tiles.n_steps, **tiles.blocks, PDL=bool(dependent)
        )
        statistics_kernel[(tiles.n_cols,)](
            partials, running_mean, running_var, mean, rstd, tiles.n_rows, tiles.n_cols, tiles.n_chunks, momentum, eps,
            BLOCK_M=tiles.block_m, **join_options(tiles.n_chunks), **dependent,
        )  # fmt: skip
    return mean, rstd


@statistics_op.register_fake
def _(x, running_mean, running_var, momentum, eps):
    return torch.empty_like(running_mean), torch.empty_like(running_var)


@torch.library.custom_op("fast_train::batch_norm_apply", mutates_args=())
def apply_op(
    x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None,
    shortcut: Sequence[Tensor], relu: bool, keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(y [N, C, H, W] of x's type in channels_last memory; whether y > 0 if ``keep``, a bit a value: uint8 [N*H*W,
    C / 8 rounded up], else empty).

    shortcut: mean, rstd, weight and bias of the residual, where it is to be normalised too.
    """
    x, tiles = channels_last(x), tiling_of(x)
    y, bits = torch.empty_like(x, memory_format=torch.channels_last), _empty_bits(x, keep)
    with torch.cuda.device_of(x):
        apply_kernel[tiles.tile_grid](
            x, x if residual is None else channels_last(residual), mean, rstd, weight, bias,
            *(shortcut or (mean, rstd, weight, bias)), y, bits, tiles.n_rows, tiles.n_cols,
            RESIDUAL=residual is not None, SHORTCUT=len(shortcut) > 0, RELU=relu, BITS=keep, **tiles.blocks,
            **dependent_launch(x),
        )  # fmt: skip
    return y, bits


@apply_op.register_fake
def _(x, mean, rstd, weight, bias, residual, shortcut, relu, keep):
    return torch.empty_like(x, memory_format=torch.channels_last), _empty_bits(x, keep)


def _empty_bits(x: Tensor, keep: bool) -> Tensor:
    count, channels, height, width = x.shape
    return x.new_empty((count * height * width, cdiv(channels, 8)) if keep else 0, dtype=torch.uint8)


@torch.library.custom_op("fast_train::batch_norm_gradients", mutates_args=())
def gradients_op(
    dy: Tensor, dy2: Tensor | None, x: Tensor, y: Tensor | None,
    mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, shortcut: Sequence[Tensor], relu: bool, store: bool,
) -> list[Tensor]:  # fmt: skip
    """[dx, dweight, dbias, dz or, unless ``store``, an empty tensor]; with ``shortcut`` its dx, dweight and dbias too.

    y, or bits of `apply_op` in its place: given where a residual went into it, so that x alone does not tell where the
    ReLU passed. shortcut: x, mean, rstd and weight of a norm whose result was added as the residual. store: needed with
    y, with dy2 and with shortcut.
    """
    dy, x, tiles, joined = channels_last(dy), channels_last(x), tiling_of(x), len(shortcut) > 0
    gradients = _empty_gradients(x, weight, joined, store)
    dx, dweight, dbias, dz = gradients[:4]
    # Where there is no shortcut, its places in the kernels' arguments hold what they do not touch.
    dshortcut, shortcut_dweight, shortcut_dbias = gradients[4:] or gradients[:3]
    shortcut_x, *shortcut_norm = shortcut or (x, mean, rstd, weight)
    shortcut_x = channels_last(shortcut_x)
    partials = empty_partials(tiles.n_cols, tiles.n_chunks, x, sums=2 + joined)
    bits = y is not None and y.dtype == torch.uint8
    with torch.cuda.device_of(x):
        dependent = dependent_launch(x)
        gradient_sums_kernel[tiles.chunk_grid](
            dy, dy if dy2 is None else channels_last(dy2), x, x if y is None else y if bits else channels_last(y),
            mean, rstd, weight, bias, shortcut_x, *shortcut_norm[:2], dz, partials,
            tiles.n_rows, tiles.n_cols, tiles.n_chunks, tiles.n_steps,
            SECOND=dy2 is not None, RELU=relu, FROM_Y=y is not None and not bits, BITS=bits, STORE=store,
            SHORTCUT=joined, **tiles.blocks, PDL=bool(dependent),
        )  # fmt: skip
        join_sums_kernel[(tiles.n_cols,)](
            partials, dbias, dweight, shortcut_dbias, shortcut_dweight, tiles.n_cols, tiles.n_chunks,
            SHORTCUT=joined, **join_options(tiles.n_chunks), **dependent,
        )  # fmt: skip
        input_gradient_kernel[tiles.tile_grid](
            dz if store else dy, x, mean, rstd, weight, bias, dbias, dweight, dx,
            shortcut_x, *shortcut_norm, shortcut_dweight, dshortcut, tiles.n_rows, tiles.n_cols,
            RELU=relu and not store, SHORTCUT=joined, **tiles.blocks, **dependent,
        )  # fmt: skip
    return gradients


@gradients_op.register_fake
def _(dy, dy2, x, y, mean, rstd, weight, bias, shortcut, relu, store):
    return _empty_gradients(x, weight, len(shortcut) > 0, store)


def _empty_gradients(x: Tensor, weight: Tensor, joined: bool, store: bool) -> list[Tensor]:
    """Room for what `gradients_op` returns."""
    own, *others = [
        [torch.empty_like(x, memory_format=torch.channels_last), torch.empty_like(weight), torch.empty_like(weight)]
        for _ in range(1 + joined)
    ]
    return [*own, torch.empty_like(own[0]) if store else x.new_empty(0), *(others[0] if joined else ())]


class BatchNormFn(torch.autograd.Function):
    """y, under one name or two. Its gradient with respect to x includes the ways through mean and rstd.

    shortcut: nothing, or mean, rstd, weight and bias of the residual's norm.
    """

    @staticmethod
    def forward(ctx: Any, x, weight, bias, residual, mean, rstd, relu: bool, twice: bool, *shortcut: Tensor) -> Any:
        ctx.relu, ctx.residual = relu, residual is not None
        needs_y = relu and ctx.residual
        keep = needs_y and SWITCHES.relu_bits
        y, bits = apply_op(x, mean, rstd, weight, bias, residual, list(shortcut), relu, keep)
        saved_y = bits if keep else y if needs_y else None
        ctx.save_for_backward(x, saved_y, mean, rstd, weight, bias, *((residual, *shortcut[:3]) if shortcut else ()))
        ctx.set_materialize_grads(False)
        return (y, y.view_as(y)) if twice else y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dy2: Tensor | None = None) -> Any:
        x, y, mean, rstd, weight, bias, *shortcut = ctx.saved_tensors
        # One of the two names may have gone unused.
        if dy is None:
            dy, dy2 = dy2, None
        if dy is None:
            return (None,) * (12 if shortcut else 8)
        store = dy2 is not None or y is not None or bool(shortcut)
        dx, dweight, dbias, dz, *of_shortcut = gradients_op(
            dy, dy2, x, y, mean, rstd, weight, bias, shortcut, ctx.relu, store
        )
        none = (None,) * 4
        if shortcut:
            dresidual, *weight_and_bias = of_shortcut
            return dx, dweight, dbias, dresidual, *none, None, None, *weight_and_bias
        return dx, dweight, dbias, (dz if store else dy) if ctx.residual else None, *none


def batch_norm_triton(*arguments: Any, **options: Any) -> Tensor:
    """`kernels.batchnorm.batch_norm` on a CUDA device (or, under Triton's interpreter, on the CPU)."""
    y: Tensor = _batch_norm(*arguments, twice=False, **options)
    return y


def batch_norm_twice_triton(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """`kernels.batchnorm.batch_norm_twice` on a CUDA device (or, under Triton's interpreter, on the CPU)."""
    both: tuple[Tensor, Tensor] = _batch_norm(*arguments, twice=True, **options)
    return both


def _batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor,
    residual: Tensor | Unnormalised | None, *, relu: bool, momentum: float, eps: float, twice: bool,
) -> Any:  # fmt: skip
    shortcut: tuple[Tensor, ...] = ()
    with torch.no_grad():
        mean, rstd = statistics_op(x.detach(), running_mean, running_var, momentum, eps)
        if isinstance(residual, Unnormalised):
            statistics = statistics_op(residual.x.detach(), *residual[3:])
            shortcut = (*statistics, residual.weight, residual.bias)
    added = residual.x if isinstance(residual, Unnormalised) else residual
    return BatchNormFn.apply(x, weight, bias, added, mean, rstd, relu, twice, *shortcut)
