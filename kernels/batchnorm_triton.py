"""BatchNorm with residual and ReLU as Triton kernels; see `kernels.batchnorm` for what they compute and move.

An activation is a matrix of N*H*W rows and C columns. Sums over rows go two ways down: a program adds up every
``chunks``-th tile of rows, a second kernel adds up the programs' sums, in a fixed order and without atomics.
"""

# Triton's functions take its own values, which have no Python types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fast_train.kernels.rows_triton import (
    _behind_relu,
    _channels_last,
    _grids,
    _join_sums_kernel,
    _matrix,
    _rows_of,
    _statistics_kernel,
)


@triton.jit
def _moments_kernel(
    x, partial, rows, channels, chunks, steps, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of one chunk: partial float32 [2, C, chunks].

    Sums are of differences from the chunk's first row: squares of a large mean would cost the variance its digits
    (Chan, Golub and LeVeque 1983, section 3).
    """
    chunk = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    column = channel < channels
    first = chunk.to(tl.int64) * BLOCK_R
    shift = tl.load(x + first * channels + channel, mask=column, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for step in range(steps):
        row = first + step * chunks * BLOCK_R + tl.arange(0, BLOCK_R)
        inside = (row < rows)[:, None] & column[None, :]
        value = tl.load(x + row[:, None] * channels + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        deviation = tl.where(inside, value - shift[None, :], 0.0)
        total += deviation
        squares += deviation * deviation
    summed = tl.sum(total, axis=0)
    deviation = summed / _rows_of(chunk, chunks, rows, BLOCK_R)
    place = partial + channel * chunks + chunk
    tl.store(place, shift + deviation, mask=column)
    tl.store(place + channels * chunks, tl.sum(squares, axis=0) - summed * deviation, mask=column)


@triton.jit
def _tile(rows, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """(channel, is it one, element, is it one) of a program that has one tile.

    The tiles come from the last to the first: what the pass before read last still lies in the cache.
    """
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    column = channel < channels
    row = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = (row < rows)[:, None] & column[None, :]
    return channel, column, row[:, None] * channels + channel[None, :], inside


@triton.jit
def _apply_kernel(
    x, residual, mean, inv_std, weight, bias, out, rows, channels,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    channel, column, element, inside = _tile(rows, channels, BLOCK_R, BLOCK_C)
    value = tl.load(x + element, mask=inside, other=0.0).to(tl.float32)
    normal = (value - tl.load(mean + channel, mask=column, other=0.0)[None, :]) * tl.load(
        inv_std + channel, mask=column, other=0.0
    )[None, :]
    result = normal * tl.load(weight + channel, mask=column, other=0.0)[None, :]
    result += tl.load(bias + channel, mask=column, other=0.0)[None, :]
    if RESIDUAL:
        result += tl.load(residual + element, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        # Not a maximum, which would make a NaN zero.
        result = tl.where(result < 0.0, 0.0, result)
    tl.store(out + element, result, mask=inside)


@triton.jit
def _gradient_sums_kernel(
    dy, dy2, x, y, mean, inv_std, weight, bias, behind, partial, rows, channels, chunks, steps,
    SECOND: tl.constexpr, RELU: tl.constexpr, FROM_Y: tl.constexpr, STORE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums of one chunk: of the gradient behind the ReLU, and of it times normalised x; float32 [2, C, chunks]."""
    chunk = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    column = channel < channels
    centre = tl.load(mean + channel, mask=column, other=0.0)[None, :]
    scale = tl.load(inv_std + channel, mask=column, other=0.0)[None, :]
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    products = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for step in range(steps):
        row = (chunk + step * chunks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
        inside = (row < rows)[:, None] & column[None, :]
        element = row[:, None] * channels + channel[None, :]
        gradient = tl.load(dy + element, mask=inside, other=0.0).to(tl.float32)
        if SECOND:
            gradient += tl.load(dy2 + element, mask=inside, other=0.0).to(tl.float32)
        normal = (tl.load(x + element, mask=inside, other=0.0).to(tl.float32) - centre) * scale
        if RELU:
            gradient = _behind_relu(gradient, normal, weight, bias, channel, column, y, element, inside, FROM_Y)
        if STORE:
            # Summed as it is stored: both passes then see one gradient.
            stored = gradient.to(behind.dtype.element_ty)
            tl.store(behind + element, stored, mask=inside)
            gradient = stored.to(tl.float32)
        total += gradient
        products += gradient * normal
    place = partial + channel * chunks + chunk
    tl.store(place, tl.sum(total, axis=0), mask=column)
    tl.store(place + channels * chunks, tl.sum(products, axis=0), mask=column)


@triton.jit
def _input_gradient_kernel(
    gradient, x, mean, inv_std, weight, bias, bias_gradient, weight_gradient, dx, rows, channels,
    RELU: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Ioffe and Szegedy 2015, section 3, the chain rule behind algorithm 1. RELU: ``gradient`` is the one before it."""
    channel, column, element, inside = _tile(rows, channels, BLOCK_R, BLOCK_C)
    centre = tl.load(mean + channel, mask=column, other=0.0)[None, :]
    scale = tl.load(inv_std + channel, mask=column, other=0.0)[None, :]
    gain = tl.load(weight + channel, mask=column, other=0.0)[None, :]
    mean_gradient = tl.load(bias_gradient + channel, mask=column, other=0.0)[None, :] / rows
    mean_product = tl.load(weight_gradient + channel, mask=column, other=0.0)[None, :] / rows
    behind = tl.load(gradient + element, mask=inside, other=0.0).to(tl.float32)
    normal = (tl.load(x + element, mask=inside, other=0.0).to(tl.float32) - centre) * scale
    if RELU:
        offset = tl.load(bias + channel, mask=column, other=0.0)[None, :]
        behind = tl.where(normal * gain + offset > 0.0, behind, 0.0)
    tl.store(dx + element, (behind - mean_gradient - normal * mean_product) * (gain * scale), mask=inside)


# Each launches on the device of its tensors: Triton by itself would take the current one.
# Not one operator with a formula for its gradient: one that changes its arguments (the running statistics) can have
# none, and one that has one can't return a tensor under two names. `_BatchNorm` joins these three.
@torch.library.custom_op("fast_train::batch_norm_statistics", mutates_args=("running_mean", "running_var"))
def _statistics_op(
    x: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """(mean, 1 / sqrt(biased variance + eps)), float32 [C]."""
    x = _channels_last(x)
    rows, channels, tiles = _matrix(x)
    mean, inv_std = torch.empty_like(running_mean), torch.empty_like(running_var)
    partial = torch.empty((2, channels, tiles.chunks), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _moments_kernel[_grids(rows, channels, tiles)[0]](
            x, partial, rows, channels, tiles.chunks, tiles.steps,
            BLOCK_R=tiles.block_rows, BLOCK_C=tiles.block_channels,
        )  # fmt: skip
        _statistics_kernel[(channels,)](
            partial, running_mean, running_var, mean, inv_std, rows, channels, tiles.chunks, momentum, eps,
            BLOCK_R=tiles.block_rows, CHUNKS=triton.next_power_of_2(tiles.chunks),
        )  # fmt: skip
    return mean, inv_std


@_statistics_op.register_fake
def _(x, running_mean, running_var, momentum, eps):
    return torch.empty_like(running_mean), torch.empty_like(running_var)


@torch.library.custom_op("fast_train::batch_norm_apply", mutates_args=())
def _apply_op(
    x: Tensor, mean: Tensor, inv_std: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool
) -> Tensor:
    """y, in channels_last memory."""
    x = _channels_last(x)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    rows, channels, tiles = _matrix(x)
    with torch.cuda.device_of(x):
        _apply_kernel[_grids(rows, channels, tiles)[1]](
            x, x if residual is None else _channels_last(residual), mean, inv_std, weight, bias, out, rows, channels,
            RESIDUAL=residual is not None, RELU=relu, BLOCK_R=tiles.block_rows, BLOCK_C=tiles.block_channels,
        )  # fmt: skip
    return out


@_apply_op.register_fake
def _(x, mean, inv_std, weight, bias, residual, relu):
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op("fast_train::batch_norm_gradients", mutates_args=())
def _gradients_op(
    dy: Tensor, dy2: Tensor | None, x: Tensor, y: Tensor | None,
    mean: Tensor, inv_std: Tensor, weight: Tensor, bias: Tensor, relu: bool, store: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, weight's, bias's, the gradient behind the ReLU or, unless ``store``, an empty tensor).

    y: where the ReLU passed, if it can't be told from x. store: needed with y and with a second gradient.
    """
    dy, x = _channels_last(dy), _channels_last(x)
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    behind = torch.empty_like(dx) if store else x.new_empty(0)
    weight_gradient, bias_gradient = torch.empty_like(weight), torch.empty_like(bias)
    rows, channels, tiles = _matrix(x)
    partial = torch.empty((2, channels, tiles.chunks), dtype=torch.float32, device=x.device)
    by_chunk, by_tile = _grids(rows, channels, tiles)
    blocks: dict[str, Any] = {"BLOCK_R": tiles.block_rows, "BLOCK_C": tiles.block_channels}
    with torch.cuda.device_of(x):
        _gradient_sums_kernel[by_chunk](
            dy, dy if dy2 is None else _channels_last(dy2), x, x if y is None else _channels_last(y),
            mean, inv_std, weight, bias, behind, partial, rows, channels, tiles.chunks, tiles.steps,
            SECOND=dy2 is not None, RELU=relu, FROM_Y=y is not None, STORE=store, **blocks,
        )  # fmt: skip
        _join_sums_kernel[(channels,)](
            partial, bias_gradient, weight_gradient, channels, tiles.chunks, CHUNKS=triton.next_power_of_2(tiles.chunks)
        )
        _input_gradient_kernel[by_tile](
            behind if store else dy, x, mean, inv_std, weight, bias, bias_gradient, weight_gradient, dx, rows, channels,
            RELU=relu and not store, **blocks,
        )  # fmt: skip
    return dx, weight_gradient, bias_gradient, behind


@_gradients_op.register_fake
def _(dy, dy2, x, y, mean, inv_std, weight, bias, relu, store):
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    return dx, torch.empty_like(weight), torch.empty_like(bias), torch.empty_like(dx) if store else x.new_empty(0)


class _BatchNorm(torch.autograd.Function):
    """Result, under one name or two, and its gradient with regard to x through mean and inv_std as well."""

    @staticmethod
    def forward(ctx: Any, x, weight, bias, residual, mean, inv_std, relu: bool, twice: bool) -> Any:
        y = _apply_op(x, mean, inv_std, weight, bias, residual, relu)
        ctx.relu, ctx.residual = relu, residual is not None
        ctx.save_for_backward(x, y if relu and ctx.residual else None, mean, inv_std, weight, bias)
        ctx.set_materialize_grads(False)
        return (y, y.view_as(y)) if twice else y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dy2: Tensor | None = None) -> Any:
        x, y, mean, inv_std, weight, bias = ctx.saved_tensors
        if dy is None:
            dy, dy2 = dy2, None
        if dy is None:
            return (None,) * 8
        store = dy2 is not None or y is not None
        dx, weight_gradient, bias_gradient, behind = _gradients_op(
            dy, dy2, x, y, mean, inv_std, weight, bias, ctx.relu, store
        )
        residual_gradient = (behind if store else dy) if ctx.residual else None
        return dx, weight_gradient, bias_gradient, residual_gradient, None, None, None, None


def batch_norm_triton(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, residual: Tensor | None, *,
    relu: bool, momentum: float, eps: float,
) -> Tensor:  # fmt: skip
    """`kernels.batchnorm.batch_norm` on a CUDA device (or, under Triton's interpreter, on the CPU)."""
    with torch.no_grad():
        mean, inv_std = _statistics_op(x.detach(), running_mean, running_var, momentum, eps)
    return _BatchNorm.apply(x, weight, bias, residual, mean, inv_std, relu, False)


def batch_norm_twice_triton(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, residual: Tensor | None, *,
    relu: bool, momentum: float, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`kernels.batchnorm.batch_norm_twice` on a CUDA device (or, under Triton's interpreter, on the CPU)."""
    with torch.no_grad():
        mean, inv_std = _statistics_op(x.detach(), running_mean, running_var, momentum, eps)
    return _BatchNorm.apply(x, weight, bias, residual, mean, inv_std, relu, True)
