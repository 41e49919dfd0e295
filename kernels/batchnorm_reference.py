"""The fused BatchNorm in plain PyTorch; see `kernels.batchnorm`."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Unnormalised(NamedTuple):
    """A residual whose own norm is applied as it is added: x [N, C, H, W] and what `batch_norm` takes with an x."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    momentum: float = 0.1
    eps: float = 1e-5


def batch_norm_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    residual: Tensor | Unnormalised | None,
    *,
    relu: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """`kernels.batchnorm.batch_norm` in plain PyTorch, on any device: the definition.

    The Triton kernels agree with it up to rounding.
    """
    y = F.batch_norm(x.float(), running_mean, running_var, weight, bias, True, momentum, eps)
    if isinstance(residual, Unnormalised):
        x2, weight, bias, running_mean, running_var, momentum, eps = residual
        y = y + F.batch_norm(x2.float(), running_mean, running_var, weight, bias, True, momentum, eps)
    elif residual is not None:
        y = y + residual
    return (y.relu() if relu else y).to(x.dtype)
