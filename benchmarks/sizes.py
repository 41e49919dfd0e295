"""How much a CPU is asked to do, so that a report ends within minutes: by the operations of the network."""

from __future__ import annotations

import dataclasses

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import Config
from pipeline.models import ModelConfig, build_model

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
    batch = 1 << max(int(most), 1).bit_length() - 1
    return dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=batch))


def batch_warnings(recipe: Config, fitted: Config) -> list[str]:
    """A line where `fit_batch` gave smaller batches: for reports in which steps are measured."""
    if fitted == recipe:
        return []
    return [
        f"steps of recipe {recipe.recipe} take {fitted.data.batch_size} images instead of {recipe.data.batch_size}: "
        f"a CPU takes long over {recipe.model.arch}"
    ]
