"""Which parameter is moved how: groups, their rates as tensors, and the optimizer that moves them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from fast_train.pipeline.config.settings import OptimizerConfig
from fast_train.pipeline.models.speednet import Whitening
from fast_train.pipeline.optim.muon import Muon

#: (the schedule's rate, epochs done so far, a fraction included) -> the learning rate of a group of parameters.
Rate: TypeAlias = Callable[[float, float], float]


@dataclass(frozen=True)
class InProportion:
    """The scheduled rate times ``factor``."""

    factor: float

    def __call__(self, scheduled: float, epochs: float) -> float:
        return self.factor * scheduled


@dataclass(frozen=True)
class FadesOut:
    """Whatever the schedule: linear from ``peak`` to zero over the first ``over`` epochs, and zero from then on."""

    peak: float
    over: int

    def __call__(self, scheduled: float, epochs: float) -> float:
        return self.peak * max(1 - epochs / self.over, 0.0)


class Rates:
    """The learning rates of an optimizer's groups: a 0-D float32 tensor on the device for each `Rate`, shared by the
    groups that follow it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tensors: dict[Rate, Tensor] = {}
        self._values: dict[Rate, float] = {}

    def tensor(self, rate: Rate) -> Tensor:
        return self._tensors.setdefault(rate, torch.zeros((), dtype=torch.float32, device=self._device))

    def set(self, scheduled: float, epochs: float = 0.0) -> None:
        """Write the rates of the next step, as far as they change; queued on the device like any other work.

        scheduled: the schedule's rate. epochs: done before that step, a fraction included.
        """
        for rate, tensor in self._tensors.items():
            value = rate(scheduled, epochs)
            if value != self._values.get(rate):
                tensor.fill_(value)
                self._values[rate] = value


class _Kind(NamedTuple):
    """What parameters of one group share. peak: their rate at the schedule's peak."""

    peak: float
    rate: Rate
    decayed: bool
    muon: bool


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, device: torch.device
) -> tuple[torch.optim.Optimizer, Rates]:
    """An optimizer of the parameters that want gradients, as ``config`` says (see `OptimizerConfig`), and its rates.

    The rates stand at their peaks. The momentum buffers exist from the start, as zeros: a captured step must not create
    them, and the first step is the same either way (0 * momentum + gradient).
    """
    kinds: dict[_Kind, list[nn.Parameter]] = {}
    for kind, parameter in _kinds(model, config):
        kinds.setdefault(kind, []).append(parameter)
    groups = [_group(kind, parameters, config) for kind, parameters in kinds.items()]
    optimizer: torch.optim.Optimizer
    if config.name == "muon":
        optimizer = Muon(groups)
    else:
        optimizer = torch.optim.SGD(
            groups, lr=torch.tensor(config.lr, device=device), momentum=config.momentum, nesterov=config.nesterov,
            fused=True,
        )  # fmt: skip
        if config.momentum:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    rates = Rates(device)
    # Now, and not as the optimizer is made: it may take a copy of the tensor for each group.
    for kind, group in zip(kinds, optimizer.param_groups, strict=True):
        group["lr"] = rates.tensor(kind.rate)
    rates.set(config.lr)
    return optimizer, rates


def _kinds(model: nn.Module, config: OptimizerConfig) -> Iterator[tuple[_Kind, nn.Parameter]]:
    whitening = {id(m.bias) for m in model.modules() if isinstance(m, Whitening)}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # One dimension: normalisation scales and shifts, biases.
        flat = parameter.dim() == 1
        peak, whitens = config.lr, id(parameter) in whitening
        if whitens:
            peak = config.whiten_lr or peak
        elif flat:
            peak = config.bias_lr or peak
        elif name.startswith("fc."):
            peak = config.head_lr or peak
        # A whitening layer's bias is trained in the first epochs only (Jordan 2024, arXiv 2404.00498, section 3.2).
        rate: Rate = FadesOut(peak, config.whiten_epochs) if whitens else InProportion(peak / config.lr)
        muon = config.name == "muon" and parameter.dim() == 4
        decayed = (config.decay_all or not flat) and not muon
        yield _Kind(peak=peak, rate=rate, decayed=decayed, muon=muon), parameter


def _group(kind: _Kind, parameters: list[nn.Parameter], config: OptimizerConfig) -> dict[str, Any]:
    # SGD multiplies decay by the rate: what a step takes off is to be the same at every rate.
    decay = config.weight_decay / (kind.peak / config.lr) if kind.decayed else 0.0
    group: dict[str, Any] = {"params": parameters, "weight_decay": decay}
    if config.name == "muon":
        group |= {"muon": kind.muon, "nesterov": config.nesterov, "iterations": config.muon_iterations}
        group["momentum"] = config.muon_momentum if kind.muon else config.momentum
    return group


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
