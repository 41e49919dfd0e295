"""Convolutions joined with the BatchNorms around them: no pass of its own sums up what a convolution wrote.

A norm needs sums over all of its input before it can write anything, and over all of its gradient before it can pass
that on. A convolution has both in registers, tile by tile, as it writes them. So a network of convolution, norm and
ReLU is cut here between a convolution and its norm: a `Raw` goes from layer to layer, and `norm_relu_convolution` is
what lies between two of them. Beside the convolutions' own passes over an activation's memory, the Triton kernels make:

| | reads | writes |
| --- | --- | --- |
| forward, statistics | none: in the convolution before | |
| forward, result | x, residual if any | y |
| backward, sums, in the data gradient of the next convolution | x, second dy if any, y if residual | |
| backward, dx | dz (the gradient before the ReLU), x | dx |

So 6 where `kernels.batchnorm` makes 8, and 9 where it makes 12 (with a residual and a second gradient). Graphs of cuDNN
make the same passes (`kernels.convolution_cudnn`).
"""

from __future__ import annotations

from torch import Tensor

from fast_train.kernels.checks import check_activation, check_channels
from fast_train.kernels.convolution_reference import (
    Raw,
    norm_relu_convolution_reference,
    normalise_reference,
    with_statistics_reference,
)
from fast_train.kernels.tiling import tiles_of

# Values of one image: the kernels' offsets have 32 bits and count from the image that a tile begins in.
_LARGEST_IMAGE = 1 << 30

# Triton is imported where it runs: not every build of torch brings it, and it takes a while.


def with_statistics(
    x: Tensor, running_mean: Tensor, running_var: Tensor, *, momentum: float = 0.1, eps: float = 1e-5
) -> Raw:
    """``x`` with the batch's statistics, computed in a pass of its own; the running ones move as in `batch_norm`.

    x: float32, bfloat16 or float16 [N, C, H, W]. running_mean, running_var: float32 [C]. Raises ValueError on others.
    """
    check_activation(x)
    check_channels(x.shape[1], x.device, running_mean=running_mean, running_var=running_var)
    if x.is_cuda:
        from fast_train.kernels.convolution_triton import with_statistics_triton

        return with_statistics_triton(x, running_mean, running_var, momentum=momentum, eps=eps)
    return with_statistics_reference(x, running_mean, running_var, momentum=momentum, eps=eps)


def normalise(raw: Raw, weight: Tensor, bias: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
    """Apply the norm whose statistics ``raw`` has, add ``residual``, apply ReLU: the rest of `batch_norm`.

    weight, bias: float32 [C]. residual: as ``raw.x``. Returns [N, C, H, W] of x's type.
    """
    _check_norm(raw, weight, bias, residual)
    if raw.x.is_cuda:
        from fast_train.kernels.convolution_triton import normalise_triton

        return normalise_triton(raw, weight, bias, residual, relu=relu)
    return normalise_reference(raw, weight, bias, residual, relu=relu)


def norm_relu_convolution(
    raw: Raw,
    weight: Tensor,
    bias: Tensor,
    filters: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    residual: Tensor | None = None,
    stride: int = 1,
    shared: bool = False,
    cudnn: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Raw, Tensor | None]:
    """Norm, addition of ``residual``, ReLU and a convolution, with the statistics that the norm after it needs.

    weight, bias: float32 [C], of the norm of ``raw``. filters: [O, C, K, K] of x's type, K odd; the image is padded by
    K // 2. running_mean, running_var: float32 [O], of the norm after the convolution, moved as in `batch_norm`.

    Returns the convolution's result and, if ``shared``, the activation that it read, for a shortcut: the kernel that
    reads the two gradients of that activation adds them. It must not be changed in place.

    Raises ValueError on shapes, types or devices that don't fit. Triton runs it on CUDA devices, or ``cudnn`` where
    `kernels.convolution_cudnn.why_not` has nothing against it; PyTorch elsewhere.
    """
    _check_norm(raw, weight, bias, residual)
    _check_convolution(raw.x, filters, stride)
    check_channels(filters.shape[0], raw.x.device, running_mean=running_mean, running_var=running_var)
    arguments = (raw, weight, bias, filters, running_mean, running_var, residual)
    if raw.x.is_cuda and cudnn:
        from fast_train.kernels.convolution_cudnn import norm_relu_convolution_cudnn

        return norm_relu_convolution_cudnn(*arguments, stride=stride, shared=shared, momentum=momentum, eps=eps)
    if raw.x.is_cuda:
        from fast_train.kernels.convolution_tma import tiles_by_tma
        from fast_train.kernels.convolution_triton import norm_relu_convolution_triton

        tiles = tiles_by_tma(raw.x, filters, stride)
        tiles = tiles or tiles_of(filters.shape[0], filters.shape[1], filters.element_size())
        return norm_relu_convolution_triton(
            *arguments, stride=stride, shared=shared, momentum=momentum, eps=eps, tiles=tiles
        )
    return norm_relu_convolution_reference(*arguments, stride=stride, shared=shared, momentum=momentum, eps=eps)


def _check_norm(raw: Raw, weight: Tensor, bias: Tensor, residual: Tensor | None) -> None:
    check_activation(raw.x, residual)
    check_channels(raw.x.shape[1], raw.x.device, weight=weight, bias=bias, mean=raw.mean, rstd=raw.rstd)


def _check_convolution(x: Tensor, filters: Tensor, stride: int) -> None:
    count, channels, height, width = x.shape
    shape = list(filters.shape)
    if len(shape) != 4 or shape[0] == 0 or shape[1:] != [channels, shape[3], shape[3]] or shape[3] % 2 == 0:
        raise ValueError(f"filters must be [O, {channels}, K, K] with an odd K, not {shape}")
    if filters.dtype != x.dtype or filters.device != x.device:
        raise ValueError(f"filters must be {x.dtype} on {x.device}, not {filters.dtype} on {filters.device}")
    if stride < 1:
        raise ValueError(f"stride must be 1 or more, not {stride}")
    if max(channels, shape[0]) * height * width > _LARGEST_IMAGE:
        raise ValueError(f"an image of x {tuple(x.shape)} or of its result has more than {_LARGEST_IMAGE:,} values")
    if count * -(-height // stride) * -(-width // stride) == 1:
        raise ValueError(
            f"x {tuple(x.shape)} leaves one value per channel at stride {stride}, which has no variance; it must "
            "leave more"
        )
