"""Variants of the step's kernels: `benchmarks.lab` measures each with and without."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager


@dataclasses.dataclass
class Switches:
    """relu_bits: a norm with residual and ReLU keeps a bit a value for its backward pass, which otherwise reads y.
    joined_shortcut: a projection's norm is applied by the norm that adds it, in the same kernels. dependent_launch: a
    kernel of a norm is started while the norm's kernel before it ends, from compute capability 9.0 on. tma: fused
    convolutions of stride 1 with 64 or 128 channels load by TMA (`kernels.convolution_tma`). shared_table: each program
    of the augmentation has the table of normalised values in shared memory."""

    relu_bits: bool = True
    joined_shortcut: bool = True
    dependent_launch: bool = False
    tma: bool = False
    shared_table: bool = False


SWITCHES = Switches()


@contextmanager
def switched(**values: bool) -> Iterator[None]:
    """Other `SWITCHES` for what is built in the block: a compiled function and a CUDA graph keep what they were built
    with."""
    before = vars(SWITCHES).copy()
    vars(SWITCHES).update(vars(Switches(**values)))
    try:
        yield
    finally:
        vars(SWITCHES).update(before)
