"""Philox4x32-10, a counter-based random generator: the same (seed, counter) gives the same numbers anywhere.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3.
A counter-based generator has no state, so what a sample draws depends on neither the batch it is in, nor the
worker that loads it, nor what was drawn before.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10

# The third word of the counter says what the numbers are for, so that two uses never share a number.
STREAM_AUGMENT = 0
STREAM_CUTOUT = 1
STREAM_ORDER = 2
STREAM_CROP = 3
STREAM_COLOUR = 4
STREAM_ERASE = 5


def multiply(factor: int, words: Tensor) -> tuple[Tensor, Tensor]:
    # The 64-bit product wraps around the sign of int64, but its bits are those of the unsigned product.
    product = words * factor
    return (product >> 32) & _MASK, product & _MASK


def philox4x32(seed: int, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> tuple[Tensor, ...]:
    """Four independent uniform 32-bit words for each counter (c0, c1, c2, c3).

    Counters are int64 tensors that broadcast together, with values in [0, 2**32); ``seed`` is the 64-bit key.
    Returns four int64 tensors of the broadcast shape with values in [0, 2**32).
    """
    k0, k1 = seed & _MASK, seed >> 32
    for _ in range(_ROUNDS):
        high_a, low_a = multiply(_ROUND_A, c0)
        high_b, low_b = multiply(_ROUND_B, c2)
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0, k1 = (k0 + _KEY_A) & _MASK, (k1 + _KEY_B) & _MASK
    return c0, c1, c2, c3


def sample_words(seed: int, epoch: Tensor | int, indices: Tensor, stream: int, attempt: int = 0) -> tuple[Tensor, ...]:
    """Four words for each sample: the counter is (index, epoch, stream, attempt).

    indices: int64 [N]. epoch: int or int64 0-D tensor. Of both the lower 32 bits count, as in Triton's Philox. Returns
    four int64 tensors [N].
    """
    zeros = torch.zeros_like(indices)
    return philox4x32(seed, indices & _MASK, zeros + epoch & _MASK, zeros + stream, zeros + attempt)


def below(words: Tensor, bound: Tensor | int) -> Tensor:
    """Map words in [0, 2**32) to whole numbers in [0, bound) by multiply and shift (bias under bound / 2**32)."""
    return (words * bound) >> 32
