"""SGD and weight averaging, arranged so that a captured step finds all of its state in place."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pipeline.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig, device: torch.device) -> torch.optim.SGD:
    """Fused SGD whose learning rate is one 0-D tensor on the device, shared by all groups.

    The momentum buffers exist from the start, as zeros: a captured step must not create them, and the first step
    is the same either way (0 * momentum + gradient).
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        # One dimension: normalisation scales and shifts, biases.
        (plain if parameter.dim() == 1 and not config.decay_all else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    rate = torch.tensor(config.lr, dtype=torch.float32, device=device)
    optimizer = torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=True,
    )
    if config.momentum:
        for parameter in model.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    # The optimizer may have taken a copy of the tensor for each group.
    for group in optimizer.param_groups:
        group["lr"] = rate
    return optimizer


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Every tensor of the optimizer's state."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


class WeightAverage:
    """An exponential moving average of a model's parameters and floating-point buffers.

    ``model`` is a copy that evaluation uses in place of the trained one.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._weight = 1 - decay
        pairs = list(zip(_values(self.model), _values(model), strict=True))
        self._averages = [mine for mine, _ in pairs if mine.is_floating_point()]
        self._values = [theirs for _, theirs in pairs if theirs.is_floating_point()]
        self._counters = [(mine, theirs) for mine, theirs in pairs if not mine.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the trained model's present values by the share 1 - decay."""
        torch._foreach_lerp_(self._averages, self._values, self._weight)
        for mine, theirs in self._counters:
            mine.copy_(theirs)


def _values(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
