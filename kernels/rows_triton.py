"""What Triton kernels over rows of channels share."""

# Triton's functions take its own values, which have no Python types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Elements of a tile, 16 to each of a program's 128 threads. Of twice as many, a program that sums gradients would take
# 128 to 162 registers a thread instead of 94, and three or four instead of five would fit on one processor of an H100
# (`benchmarks.lab.registers`).
_TILE = 2048


# 64 channels in bfloat16 are one cache line of 128 bytes.
_MOST_CHANNELS = 64


# Programs that sum: nearly 8 for each of the 132 processors, and few enough for one program to add up their sums.
_PROGRAMS = 1024


class Tiling(NamedTuple):
    """A tile is block_rows x block_channels. ``chunks`` programs sum a column of them, ``steps`` each."""

    block_rows: int
    block_channels: int
    chunks: int
    steps: int


def tiling(rows: int, channels: int) -> Tiling:
    """How an activation of this shape is divided: a function of the shape alone, so that results repeat."""
    block_channels = min(triton.next_power_of_2(channels), _MOST_CHANNELS)
    block_rows = _TILE // block_channels
    tiles = triton.cdiv(rows, block_rows)
    steps = triton.cdiv(tiles, max(_PROGRAMS // triton.cdiv(channels, block_channels), 1))
    return Tiling(block_rows, block_channels, triton.cdiv(tiles, steps), steps)


@triton.jit
def _rows_of(chunk, chunks, rows, BLOCK_R: tl.constexpr):
    """How many rows the tiles chunk, chunk + chunks, chunk + 2 * chunks ... hold; the last tile may be cut off."""
    tiles = tl.cdiv(rows, BLOCK_R)
    has_last = (tiles - 1) % chunks == chunk
    return tl.cdiv(tiles - chunk, chunks) * BLOCK_R - tl.where(has_last, tiles * BLOCK_R - rows, 0)


@triton.jit
def _statistics_kernel(
    partial, running_mean, running_var, mean_out, inv_std_out, rows, channels, chunks, momentum, eps,
    BLOCK_R: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Join one channel's chunks (Chan et al. 1983, equation 1.5) and move its running statistics."""
    channel = tl.program_id(0)
    chunk = tl.arange(0, CHUNKS)
    used = chunk < chunks
    place = partial + channel * chunks + chunk
    means = tl.load(place, mask=used, other=0.0)
    squares = tl.load(place + channels * chunks, mask=used, other=0.0)
    count = tl.where(used, _rows_of(chunk, chunks, rows, BLOCK_R), 0).to(tl.float32)
    mean = tl.sum(means * count, axis=0) / rows
    squares = tl.sum(squares + count * (means - mean) * (means - mean), axis=0)
    tl.store(mean_out + channel, mean)
    tl.store(inv_std_out + channel, 1.0 / tl.sqrt(squares / rows + eps))
    old_mean = tl.load(running_mean + channel)
    old_var = tl.load(running_var + channel)
    tl.store(running_mean + channel, old_mean + momentum * (mean - old_mean))
    tl.store(running_var + channel, old_var + momentum * (squares / (rows - 1) - old_var))


@triton.jit
def _behind_relu(gradient, normal, weight, bias, channel, column, y, element, inside, FROM_Y: tl.constexpr):
    """The gradient where the ReLU passed: y is above zero. FROM_Y reads y; without, it is computed from x anew."""
    if FROM_Y:
        result = tl.load(y + element, mask=inside, other=0.0)
    else:
        gain = tl.load(weight + channel, mask=column, other=0.0)[None, :]
        result = normal * gain + tl.load(bias + channel, mask=column, other=0.0)[None, :]
    return tl.where(result > 0.0, gradient, 0.0)


@triton.jit
def _join_sums_kernel(partial, bias_gradient, weight_gradient, channels, chunks, CHUNKS: tl.constexpr):
    channel = tl.program_id(0)
    chunk = tl.arange(0, CHUNKS)
    place = partial + channel * chunks + chunk
    total = tl.load(place, mask=chunk < chunks, other=0.0)
    products = tl.load(place + channels * chunks, mask=chunk < chunks, other=0.0)
    tl.store(bias_gradient + channel, tl.sum(total, axis=0))
    tl.store(weight_gradient + channel, tl.sum(products, axis=0))


def _channels_last(tensor: Tensor) -> Tensor:
    """As the kernels read it; the same tensor where it lies so already."""
    return tensor.contiguous(memory_format=torch.channels_last)


def _matrix(x: Tensor) -> tuple[int, int, Tiling]:
    """(rows, channels, how they are divided) of an activation."""
    rows, channels = x.numel() // x.shape[1], x.shape[1]
    return rows, channels, tiling(rows, channels)


def _grids(rows: int, channels: int, tiles: Tiling) -> tuple[tuple[int, int], tuple[int, int]]:
    """(of kernels that sum, of kernels with a program for each tile)."""
    columns = triton.cdiv(channels, tiles.block_channels)
    return (tiles.chunks, columns), (triton.cdiv(rows, tiles.block_rows), columns)
