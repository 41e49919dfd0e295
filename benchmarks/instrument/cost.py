"""What a training step costs: its operations, the bytes that it moves, and how much of it a CPU is asked to do."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fast_train.pipeline.config.settings import Config, ModelConfig
from fast_train.pipeline.engine.step import TrainStep
from fast_train.pipeline.loaders import RaggedView, SplitView
from fast_train.pipeline.models import build_model


class Work(NamedTuple):
    """What one image takes. flops: floating-point operations of convolutions and matrix products, forward and backward,
    a multiply-add counts as two. bytes: what the step moves where each operation reads its inputs and writes its
    outputs once, as eager execution does; fused operations move less."""

    flops: float
    bytes: float


def count_work(step: TrainStep, batch: SplitView | RaggedView, *, batch_size: int) -> Work:
    """Run eager steps on a batch and on half of it, undo them, and say what a step on ``batch_size`` images does for
    each of them. step: not compiled.

    Two, because the optimizer does the same whatever the batch: Muon's matrix products would count for much on few.
    """
    few = len(batch.indices) // 2
    half, whole = (_count(step, batch._replace(indices=batch.indices[:n])) for n in (few, 2 * few))
    # Each is what a step does once, and as much for every image.
    return Work(*((b - a) / few + (2 * a - b) / batch_size for a, b in zip(half, whole, strict=True)))


def _count(step: TrainStep, batch: SplitView | RaggedView) -> Work:
    counter, traffic = FlopCounterMode(display=False), _Traffic()
    with step.unchanged(), counter, traffic:
        step(batch)
    return Work(counter.get_total_flops(), traffic.bytes)


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of the tensors that each operation reads and writes; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not func.is_view:
            # A gather reads the rows that it takes, not the whole split; the kernel takes bytes and writes its type.
            if str(func) in _AUGMENTATIONS:
                self.bytes += result.nbytes + result.numel()
                return result
            # The optimizer's operations on lists return nothing: what they write is what they were given.
            written = _overwritten(func, args) if result is None else result
            touched = (result, result) if func in _GATHERS else (args, kwargs, written)
            self.bytes += sum(leaf.nbytes for leaf in tree_leaves(touched) if isinstance(leaf, Tensor))
        return result


def _overwritten(func: Any, args: Any) -> list[Any]:
    """The arguments that an operation changes, by its schema; gradients it would change only to scale them."""
    known = zip(args, func._schema.arguments, strict=False)
    return [arg for arg, argument in known if argument.is_write and argument.name != "grads"]


# By name: the kernels are imported where there is a GPU. A crop reads about a byte for each value that it writes.
_AUGMENTATIONS = ("fast_train.augment.default", "fast_train.resized_crop.default")
_GATHERS = (torch.ops.aten.index.Tensor, torch.ops.aten.index_select.default)


# A sixth of a second on two cores that do 300 GFLOP/s.
STEP_FLOPS = 55e9
# Two minutes on such cores, which reach less with small networks.
TRAINING_FLOPS = 30e12


def training_flops(model: ModelConfig) -> float:
    """Floating-point operations of one training step for one image, a multiply-add counts as two: three times those of
    the forward pass, since the backward pass has two gradients for each product."""
    with torch.device("meta"):
        network = build_model(model).eval()
        image = torch.empty(1, model.in_channels, model.image_size, model.image_size)
    counter = FlopCounterMode(display=False)
    with counter:
        network(image)
    return 3.0 * counter.get_total_flops()


def fit_batch(config: Config) -> Config:
    """The same with a batch, a power of two, whose step takes no more than `STEP_FLOPS`, where it would take more."""
    most = STEP_FLOPS / training_flops(config.model)
    if config.data.batch_size <= most:
        return config
    return in_batches(config, 1 << max(int(most), 1).bit_length() - 1)


def in_batches(config: Config, size: int) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=size))


def batch_warnings(recipe: Config, fitted: Config) -> list[str]:
    """A line where `fit_batch` gave smaller batches: for reports in which steps are measured."""
    if fitted.data.batch_size == recipe.data.batch_size:
        return []
    return [
        f"steps of recipe {recipe.recipe} take {fitted.data.batch_size} images instead of {recipe.data.batch_size}: "
        f"a CPU takes long over {recipe.model.arch}"
    ]
