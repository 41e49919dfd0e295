"""What the launchers ask of their tensors. Each check raises ValueError with one line: what came, what is needed."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_activation(x: Tensor, residual: Tensor | None = None) -> None:
    """Raise ValueError unless a norm can take x, and ``residual`` can be added to it."""
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
    """Raise ValueError unless each of ``vectors`` is contiguous float32 [channels] on ``device``."""
    for name, value in vectors.items():
        if value.dtype != torch.float32 or value.shape != (channels,) or value.device != device:
            raise ValueError(
                f"{name} must be float32 [{channels}] on {device}, not {value.dtype} {tuple(value.shape)} "
                f"on {value.device}"
            )
        if not value.is_contiguous():
            raise ValueError(f"{name} must be contiguous, not of stride {value.stride(0)}")
