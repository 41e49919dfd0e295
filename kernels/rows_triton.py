"""What Triton kernels over the rows of an activation share.

An activation [N, C, H, W] in channels_last memory is a matrix of ``n_rows`` = N*H*W rows and ``n_cols`` = C columns.
Sums over its rows take two kernels: each program sums one chunk of the rows (`kernels.tiling.Tiling`) into
``partials``, float32 [2 or 3, C, n_chunks], and the kernels here join a channel's chunks. The order is fixed and no
addition is atomic, so a result repeats bit for bit.

PDL, of a kernel: programmatic dependent launch (CUDA programming guide, section of this name). It starts while the
kernel before it still runs, and waits until that one has written everything: the launch and that one's end overlap.
"""

# Triton's decorators have no types, nor have the values in its functions; torch.cuda.device_of has none either.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fast_train.kernels.switches import SWITCHES
from fast_train.kernels.tiling import Tiling, tiling


@triton.jit
def rows_in_chunk(chunk, n_chunks, n_rows, BLOCK_M: tl.constexpr):
    """How many rows lie in the tiles chunk, chunk + n_chunks, chunk + 2 * n_chunks ...; the last tile may be partial.

    chunk: a number or a vector.
    """
    row_tiles = tl.cdiv(n_rows, BLOCK_M)
    has_last_tile = (row_tiles - 1) % n_chunks == chunk
    return tl.cdiv(row_tiles - chunk, n_chunks) * BLOCK_M - tl.where(has_last_tile, row_tiles * BLOCK_M - n_rows, 0)


@triton.jit
def statistics_kernel(
    partials_ptr, running_mean_ptr, running_var_ptr, mean_ptr, rstd_ptr,
    n_rows, n_cols, n_chunks, momentum, eps,
    BLOCK_M: tl.constexpr, CHUNKS: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """Mean and 1 / sqrt(var + eps) of one channel out of its chunks' moments; running statistics moved.

    partials: each chunk's mean, and its sum of squared deviations from that mean (`moments_kernel`). Joined as in Chan,
    Golub and LeVeque 1983, equation 1.5. mean, rstd, running_mean, running_var: float32 [C].
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    # Load the chunks' moments, all [CHUNKS].
    channel = tl.program_id(0)
    chunks = tl.arange(0, CHUNKS)
    mask = chunks < n_chunks
    ptrs = partials_ptr + channel * n_chunks + chunks
    chunk_means = tl.load(ptrs, mask=mask, other=0.0)
    chunk_squares = tl.load(ptrs + n_cols * n_chunks, mask=mask, other=0.0)
    counts = tl.where(mask, rows_in_chunk(chunks, n_chunks, n_rows, BLOCK_M), 0).to(tl.float32)

    # Reduce: the mean of means, weighted by rows; squares within chunks, and between chunks.
    mean = tl.sum(chunk_means * counts, axis=0) / n_rows
    squares = tl.sum(chunk_squares + counts * (chunk_means - mean) * (chunk_means - mean), axis=0)

    # Store the batch's statistics: the biased variance normalises.
    tl.store(mean_ptr + channel, mean)
    tl.store(rstd_ptr + channel, 1.0 / tl.sqrt(squares / n_rows + eps))

    # Move the running statistics: the unbiased variance is kept.
    running_mean = tl.load(running_mean_ptr + channel)
    running_var = tl.load(running_var_ptr + channel)
    tl.store(running_mean_ptr + channel, running_mean + momentum * (mean - running_mean))
    tl.store(running_var_ptr + channel, running_var + momentum * (squares / (n_rows - 1) - running_var))


@triton.jit
def join_sums_kernel(
    partials_ptr, dbias_ptr, dweight_ptr, shortcut_dbias_ptr, shortcut_dweight_ptr, n_cols, n_chunks,
    SHORTCUT: tl.constexpr, CHUNKS: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """The gradients of one channel's bias and weight: the sums of its chunks' sums of dz, and of dz * x_hat.

    SHORTCUT: those of a shortcut's norm as well; the third of the chunks' sums is of dz times its x_hat.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    # Load the chunks' sums, [CHUNKS].
    channel = tl.program_id(0)
    chunks = tl.arange(0, CHUNKS)
    mask = chunks < n_chunks
    ptrs = partials_ptr + channel * n_chunks + chunks
    sums_dz = tl.load(ptrs, mask=mask, other=0.0)
    sums_dz_x_hat = tl.load(ptrs + n_cols * n_chunks, mask=mask, other=0.0)

    # Reduce and store.
    tl.store(dbias_ptr + channel, tl.sum(sums_dz, axis=0))
    tl.store(dweight_ptr + channel, tl.sum(sums_dz_x_hat, axis=0))
    if SHORTCUT:
        tl.store(shortcut_dbias_ptr + channel, tl.sum(sums_dz, axis=0))
        sums_shortcut = tl.load(ptrs + 2 * n_cols * n_chunks, mask=mask, other=0.0)
        tl.store(shortcut_dweight_ptr + channel, tl.sum(sums_shortcut, axis=0))


@triton.jit
def relu_backward(dy, x_hat, weight_ptr, bias_ptr, cols, col_mask, y_ptr, offsets, mask, FROM_Y: tl.constexpr):
    """dz, the gradient before the ReLU: dy [BLOCK_M, BLOCK_N] where y is above zero, else 0.

    FROM_Y: read y, which a residual went into; without it, compute y from x_hat once more.
    """
    if FROM_Y:
        y = tl.load(y_ptr + offsets, mask=mask, other=0.0)
    else:
        weight = tl.load(weight_ptr + cols, mask=col_mask, other=0.0)[None, :]
        y = x_hat * weight + tl.load(bias_ptr + cols, mask=col_mask, other=0.0)[None, :]
    return tl.where(y > 0.0, dy, 0.0)


def dependent_launch(x: Tensor) -> dict[str, bool]:
    """Options that make a kernel on the device of x, the current one, a dependent launch (PDL); none where it is not.

    It needs compute capability 9.0, and a Triton that has it.
    """
    if not (SWITCHES.dependent_launch and x.is_cuda and hasattr(tl.extra.cuda, "gdc_wait")):
        return {}
    target = triton.runtime.driver.active.get_current_target()
    return {"PDL": True, "launch_pdl": True} if target.backend == "cuda" and target.arch >= 90 else {}


def channels_last(tensor: Tensor) -> Tensor:
    """A tensor [N, C, H, W] as the kernels read it; the same one where it lies so already."""
    return tensor.contiguous(memory_format=torch.channels_last)


def tiling_of(x: Tensor) -> Tiling:
    """How an activation [N, C, H, W] is divided."""
    return tiling(x.numel() // x.shape[1], x.shape[1])


def empty_partials(n_cols: int, n_chunks: int, x: Tensor, *, sums: int = 2) -> Tensor:
    """Room for ``sums`` float32 sums of each channel and chunk, on the device of x."""
    return x.new_empty((sums, n_cols, n_chunks), dtype=torch.float32)
