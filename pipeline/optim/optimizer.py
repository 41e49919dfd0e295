"""Which parameter is moved how: groups, their rates as tensors, and the optimizer that moves them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fast_train.pipeline.config.settings import OptimizerConfig
from fast_train.pipeline.models.speednet import Whitening
from fast_train.pipeline.optim.muon import Muon


class _Kind(NamedTuple):
    """What parameters of one group share. peak: their rate at the schedule's peak."""

    peak: float
    decayed: bool
    muon: bool
    whitening: bool


def build_optimizer(model: nn.Module, config: OptimizerConfig, device: torch.device) -> torch.optim.Optimizer:
    """An optimizer of the parameters that want gradients, as ``config`` says (see `OptimizerConfig`).

    Each group's ``lr`` is a 0-D tensor on the device, shared with the groups of the same rate; `set_rates` moves them.
    The momentum buffers exist from the start, as zeros: a captured step must not create them, and the first step
    is the same either way (0 * momentum + gradient).
    """
    kinds: dict[_Kind, list[nn.Parameter]] = {}
    for kind, parameter in _kinds(model, config):
        kinds.setdefault(kind, []).append(parameter)
    rates: dict[tuple[float, bool], Tensor] = {}
    for kind in kinds:
        rates.setdefault((kind.peak, kind.whitening), torch.tensor(kind.peak, dtype=torch.float32, device=device))
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
    # The optimizer may have taken a copy of the tensor for each group.
    for kind, group in zip(kinds, optimizer.param_groups, strict=True):
        group["lr"] = rates[kind.peak, kind.whitening]
    return optimizer


def _kinds(model: nn.Module, config: OptimizerConfig) -> Iterator[tuple[_Kind, nn.Parameter]]:
    whitening = {id(m.bias) for m in model.modules() if isinstance(m, Whitening)}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # One dimension: normalisation scales and shifts, biases.
        flat = parameter.dim() == 1
        rate, whitens = config.lr, id(parameter) in whitening
        if whitens:
            rate = config.whiten_lr or rate
        elif flat:
            rate = config.bias_lr or rate
        elif name.startswith("fc."):
            rate = config.head_lr or rate
        muon = config.name == "muon" and parameter.dim() == 4
        decayed = (config.decay_all or not flat) and not muon
        yield _Kind(peak=rate, decayed=decayed, muon=muon, whitening=whitens), parameter


def _group(kind: _Kind, parameters: list[nn.Parameter], config: OptimizerConfig) -> dict[str, Any]:
    share = kind.peak / config.lr
    group: dict[str, Any] = {
        "params": parameters,
        # SGD multiplies decay by the rate: what a step takes off is to be the same at every rate.
        "weight_decay": config.weight_decay / share if kind.decayed else 0.0,
        "factor": kind.peak if kind.whitening else share,
        "whitening": kind.whitening,
    }
    if config.name == "muon":
        group |= {"muon": kind.muon, "nesterov": config.nesterov, "iterations": config.muon_iterations}
        group["momentum"] = config.muon_momentum if kind.muon else config.momentum
    return group


def set_rates(optimizer: torch.optim.Optimizer, rate: float, whitening: float) -> None:
    """Set the rate of every group of an optimizer from `build_optimizer`, queued on the device like any other work.

    rate: of parameters without a rate of their own; others move in proportion. whitening: the rate of a whitening
    layer's bias as a part of its peak.
    """
    filled = set()
    for group in optimizer.param_groups:
        if id(group["lr"]) not in filled:
            filled.add(id(group["lr"]))
            group["lr"].fill_(group["factor"] * (whitening if group["whitening"] else rate))


def has_whitening(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a group's rate is a whitening layer's, and `set_rates` looks at its share."""
    return any(group["whitening"] for group in optimizer.param_groups)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Every tensor of the optimizer's state."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
