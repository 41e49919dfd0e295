"""The fused BatchNorm in plain PyTorch; see `kernels.batchnorm`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def batch_norm_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    residual: Tensor | None,
    *,
    relu: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """`kernels.batchnorm.batch_norm` in plain PyTorch, on any device: the definition.

    The Triton kernels agree with it up to rounding.
    """
    y = F.batch_norm(x.float(), running_mean, running_var, weight, bias, training=True, momentum=momentum, eps=eps)
    if residual is not None:
        y = y + residual
    return (y.relu() if relu else y).to(x.dtype)
