"""Averages of a model's weights: over steps for evaluation, and between steps to steer the training."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """An exponential moving average of a model's parameters and floating-point buffers.

    ``model`` is a copy that evaluation uses instead of the trained one. torch.optim.swa_utils.AveragedModel does not
    serve: each of its updates reads a counter on the host, which waits for the device and breaks a captured step.
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


class Lookahead:
    """Slow weights that follow the trained ones, and to which the trained ones are set back (Zhang et al. 2019,
    "Lookahead Optimizer: k steps forward, 1 step back", algorithm 1).

    The decay rises as in Jordan 2024, arXiv 2404.00498, section 3.4: every ``period`` steps the slow weights keep the
    share decay**period * t**3 of themselves, where t is the fraction of the run that is done. So they hardly matter at
    first and are a long average at the end. ``slow``: one tensor for each parameter and floating-point buffer.
    """

    def __init__(self, model: nn.Module, period: int, decay: float) -> None:
        self._fast = [value for value in _values(model) if value.is_floating_point()]
        self.slow = [value.detach().clone() for value in self._fast]
        self._period, self._decay = period, decay

    @torch.no_grad()
    def after_step(self, done: int, total: int) -> None:
        """Correct the model after step number ``done`` (1-based) of ``total``: every ``period`` steps, and at the end,
        so that the model ends the run with the slow weights. It only queues work on the device."""
        due = done % self._period == 0
        if due:
            kept = self._decay**self._period * (done / total) ** 3
            torch._foreach_lerp_(self.slow, self._fast, 1 - kept)
        if due or done == total:
            torch._foreach_copy_(self._fast, self.slow)


def _values(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
