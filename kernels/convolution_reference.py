"""Convolutions joined with BatchNorms in plain PyTorch; see `kernels.convolution`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Raw(NamedTuple):
    """A convolution's result, and the statistics that the norm after it needs.

    x: [N, C, H, W]. mean, rstd: float32 [C], the batch's mean and 1 / sqrt(biased variance + eps).
    """

    x: Tensor
    mean: Tensor
    rstd: Tensor


def with_statistics_reference(
    x: Tensor, running_mean: Tensor, running_var: Tensor, *, momentum: float, eps: float
) -> Raw:
    """`kernels.convolution.with_statistics` in plain PyTorch; gradients of x flow through mean and rstd."""
    var, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
    count = x.numel() // x.shape[1]
    with torch.no_grad():
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (count / (count - 1)), momentum)
    return Raw(x, mean, (var + eps).rsqrt())


def normalise_reference(raw: Raw, weight: Tensor, bias: Tensor, residual: Tensor | None, *, relu: bool) -> Tensor:
    """`kernels.convolution.normalise` in plain PyTorch."""

    # Each from [C] to [C, 1, 1], to go with x [N, C, H, W].
    mean, rstd, weight, bias = (vector[:, None, None] for vector in (raw.mean, raw.rstd, weight, bias))
    x_hat = (raw.x.float() - mean) * rstd
    y = x_hat * weight + bias
    if residual is not None:
        y = y + residual
    return (y.relu() if relu else y).to(raw.x.dtype)


def norm_relu_convolution_reference(
    raw: Raw,
    weight: Tensor,
    bias: Tensor,
    filters: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    residual: Tensor | None,
    *,
    stride: int,
    shared: bool,
    momentum: float,
    eps: float,
) -> tuple[Raw, Tensor | None]:
    """`kernels.convolution.norm_relu_convolution` in plain PyTorch, on any device: the definition.

    The Triton kernels agree with it up to rounding.
    """
    y = normalise_reference(raw, weight, bias, residual, relu=True)
    out = F.conv2d(y, filters, stride=stride, padding=filters.shape[-1] // 2)
    statistics = with_statistics_reference(out, running_mean, running_var, momentum=momentum, eps=eps)
    return statistics, y if shared else None
