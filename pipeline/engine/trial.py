"""A trial of Apple's GPU before it is trusted: what PyTorch can do there grows, and some of it has been wrong."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from fast_train.common.text import one_line
from fast_train.pipeline.config.settings import ModelConfig, OptimizerConfig
from fast_train.pipeline.engine.step import TrainStep
from fast_train.pipeline.loaders import AnyBatch, Batch
from fast_train.pipeline.models import build_model

_STEPS, _IMAGES = 3, 32
# By how much the losses of two correct devices may differ, relatively: rounding to bfloat16 makes 0.0005 of it.
_TOLERANCE = 0.02


class _Ready:
    """The augmentation of images that need none."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def set_epoch(self, epoch: int) -> None: ...

    def __call__(self, batch: AnyBatch, /) -> Tensor:
        return self._images


@cache
def fault(amp: torch.dtype | None = None, *, device: str = "mps") -> str | None:
    """Why ``device`` can't train, in a few words; None where a few eager steps on it give the losses that they give on
    the CPU. amp: the autocast type, None for float32."""
    try:
        theirs, ours = (_mean_loss(torch.device(name), amp) for name in (device, "cpu"))
    except Exception as error:
        # Of any kind: whatever a step lacks there, the CPU has it.
        return f"a step fails there ({one_line(error)[:200]})"
    if abs(theirs - ours) <= _TOLERANCE * ours:
        return None
    return f"it computes a wrong loss, {theirs:.3f} where the CPU computes {ours:.3f}"


def _mean_loss(device: torch.device, amp: torch.dtype | None) -> float:
    """Over the first steps of a small network; the process's random numbers stay as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(ModelConfig(arch="resnet8", shortcut="B")).to(device)
        images, labels = torch.randn(_IMAGES, 3, 32, 32), torch.arange(_IMAGES) % 10
    augmentation = _Ready(images.to(device, amp or torch.float32))
    step = TrainStep(model, augmentation, OptimizerConfig(name="muon", lr=0.1), device=device, amp=amp)
    for _ in range(_STEPS):
        step(Batch(images, labels, labels))
    return step.metrics.read().loss / (_STEPS * _IMAGES)
