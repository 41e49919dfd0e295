"""The order of an epoch: a permutation that is a pure function of (seed, epoch, number of samples)."""

from __future__ import annotations

import torch
from torch import Tensor

from fast_train.kernels.philox import STREAM_ORDER, sample_words
from fast_train.kernels.spec import check_seed


def epoch_order(count: int, *, seed: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
    """A uniformly random permutation of ``range(count)``, int64 [count] on ``device``, equal on every device.

    Each sample draws a 62-bit key from its own counter and the keys are sorted: no pass depends on another, so a
    GPU does it as well as a CPU. The sort is stable, which settles equal keys the same way everywhere.
    """
    if count < 0:
        raise ValueError(f"cannot order {count} samples; give a count of 0 or more")
    check_seed(seed)
    indices = torch.arange(count, dtype=torch.int64, device=device)
    high, low, _, _ = sample_words(seed, epoch, indices, STREAM_ORDER)
    keys = (high >> 1 << 31) | (low >> 1)
    return torch.argsort(keys, stable=True)
