"""How much a training step computes and moves: operations by torch's counter, bytes operation by operation."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pipeline.loaders import Batch
from pipeline.step import TrainStep


class Work(NamedTuple):
    """Of one image. flops: floating-point operations of convolutions and matrix products, forward and backward, a
    multiply-add counts as two. bytes: what the step moves where each operation reads its inputs and writes its
    outputs once, as eager execution does; fused operations move less."""

    flops: float
    bytes: float


def count_work(step: TrainStep, batch: Batch) -> Work:
    """Run one eager step, undo it, and say what it did. step: not compiled."""
    images = len(batch.indices)
    counter, traffic = FlopCounterMode(display=False), _Traffic()
    with step.unchanged(), counter, traffic:
        step(batch)
    return Work(counter.get_total_flops() / images, traffic.bytes / images)


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of the tensors that each operation reads and writes; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not func.is_view:
            # A gather reads the rows that it takes, not the whole split.
            touched = (result, result) if func in _GATHERS else (args, kwargs, result)
            self.bytes += sum(_bytes(leaf) for leaf in tree_leaves(touched) if isinstance(leaf, Tensor))
        return result


_GATHERS = (torch.ops.aten.index.Tensor, torch.ops.aten.index_select.default)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
