"""Training-mode BatchNorm fused with what follows it: an optional residual addition and an optional ReLU.

``y = relu((x - mean) / sqrt(var + eps) * weight + bias + residual)``, mean and var of the batch (Ioffe and Szegedy
2015, algorithm 1), computed in float32 and rounded once. Passes over an activation's memory, of the Triton kernels
(a residual block's output serves the next convolution and the next shortcut, so it gets two gradients):

| | reads | writes |
| --- | --- | --- |
| forward, statistics | x | |
| forward, result | x, residual if any | y |
| backward, sums; neither residual nor second gradient | dy, x | |
| backward, dx | dy, x | dx |
| backward, sums; otherwise | dy, second dy if any, x, y if residual and ReLU | gradient behind the ReLU (g) |
| backward, dx | g, x | dx |

So 8 without and 11 with a residual, one or two more for a second gradient. No mask is stored: the sign of y, or of y
computed anew, tells where the ReLU passed. g is the residual's gradient too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fast_train.kernels.batchnorm_reference import batch_norm_reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise by the batch's statistics, add ``residual``, apply ReLU; differentiable, any of the two left out.

    x: float32, bfloat16 or float16 [N, C, H, W], best in channels_last memory; residual: the same shape and type.
    weight, bias: float32 [C]. running_mean, running_var: float32 [C], moved towards the batch's mean and unbiased
    variance by the share ``momentum``, in place, as torch.nn.functional.batch_norm does.

    Returns [N, C, H, W] of x's type. Raises ValueError on shapes, types or devices that don't fit, and where a channel
    has but one value. Triton runs it on CUDA devices, PyTorch elsewhere; both sum in a fixed order, so that a result
    repeats bit for bit.
    """
    arguments = (x, weight, bias, running_mean, running_var, residual)
    _check_inputs(*arguments)
    if x.is_cuda:
        from fast_train.kernels.batchnorm_triton import batch_norm_triton

        return batch_norm_triton(*arguments, relu=relu, momentum=momentum, eps=eps)
    return batch_norm_reference(*arguments, relu=relu, momentum=momentum, eps=eps)


def batch_norm_twice(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """`batch_norm`, its result under two names for two uses.

    The gradients of the two then reach the kernel apart, which adds them while it reads; of one name, PyTorch would add
    them in a pass of its own (two reads and a write of the whole activation). Neither may be changed in place.
    """
    arguments = (x, weight, bias, running_mean, running_var, residual)
    _check_inputs(*arguments)
    if x.is_cuda:
        from fast_train.kernels.batchnorm_triton import batch_norm_twice_triton

        return batch_norm_twice_triton(*arguments, relu=relu, momentum=momentum, eps=eps)
    y = batch_norm_reference(*arguments, relu=relu, momentum=momentum, eps=eps)
    return y, y


def _check_inputs(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, residual: Tensor | None
) -> None:
    check_activation(x, residual)
    check_channels(x.shape[1], x.device, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)


def check_activation(x: Tensor, residual: Tensor | None = None) -> None:
    """Raise ValueError unless x is what a norm takes, and ``residual`` can be added to it."""
    if x.dim() != 4 or x.dtype not in DTYPES:
        raise ValueError(f"x must be float32, bfloat16 or float16 [N, C, H, W], not {x.dtype} {tuple(x.shape)}")
    if x.shape[1] == 0 or x.numel() <= x.shape[1]:
        raise ValueError(f"x {tuple(x.shape)} has no variance; give more than one value per channel")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype or residual.device != x.device):
        raise ValueError(
            f"residual must be {x.dtype} {tuple(x.shape)} on {x.device}, not {residual.dtype} "
            f"{tuple(residual.shape)} on {residual.device}"
        )


def check_channels(channels: int, device: torch.device, **vectors: Tensor) -> None:
    """Raise ValueError unless each of ``vectors`` has a float32 value for each channel, one after the other."""
    for name, value in vectors.items():
        if value.dtype != torch.float32 or value.shape != (channels,) or value.device != device:
            raise ValueError(
                f"{name} must be float32 [{channels}] on {device}, not {value.dtype} {tuple(value.shape)} "
                f"on {value.device}"
            )
        if not value.is_contiguous():
            raise ValueError(f"{name} must be contiguous, not of stride {value.stride(0)}")
