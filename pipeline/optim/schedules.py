"""Learning-rate schedules: each a function of the step, one registry.

A schedule gives the rate of step 0..total-1 and may look at each epoch's training loss. It counts steps, not epochs, so
that a run that stops inside an epoch continues at the same rate.
"""

from __future__ import annotations

import math
from typing import Any

from fast_train.pipeline.config.settings import ScheduleConfig


class Schedule:
    """A rate for each step; subclasses give the curve. It holds no state unless a subclass says so."""

    def __init__(self, config: ScheduleConfig, *, peak: float, total_steps: int) -> None:
        self.config, self.peak, self.total = config, peak, total_steps

    def rate(self, step: int) -> float:
        """The learning rate of ``step``, 0-based."""
        return self.peak * self._warmed(step / self.total)

    def _warmed(self, done: float) -> float:
        """A linear rise over the warm-up, then the schedule's own curve over what is left."""
        warmup = self.config.warmup
        if done < warmup:
            # Half a step ahead, so that the first step moves too.
            share = min((done + 0.5 / self.total) / warmup, 1.0)
            return self.config.start + (1 - self.config.start) * share
        return self._curve((done - warmup) / (1 - warmup))

    def _curve(self, done: float) -> float:
        """The fraction of the peak after the fraction ``done`` of the steps that follow the warm-up, both in [0, 1]."""
        return 1.0

    def epoch_end(self, train_loss: float) -> None:
        """Called once an epoch with its mean training loss."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


class Constant(Schedule):
    """The peak throughout."""


class Multistep(Schedule):
    """Times gamma at each milestone, a fraction of the run, warm-up included (He et al. 2015, section 4.2)."""

    def _warmed(self, done: float) -> float:
        if done < self.config.warmup:
            return super()._warmed(done)
        return self.config.gamma ** sum(done >= m for m in self.config.milestones)


class Triangular(Schedule):
    """Linear from the peak to its final fraction (Smith 2017, "Cyclical learning rates", section 3.1, one cycle)."""

    def _curve(self, done: float) -> float:
        return 1 - (1 - self.config.final) * done


class Cosine(Schedule):
    """Half a cosine from the peak to its final fraction (Loshchilov and Hutter 2017, equation 5, no restart)."""

    def _curve(self, done: float) -> float:
        return self.config.final + (1 - self.config.final) * 0.5 * (1 + math.cos(math.pi * done))


class OneCycle(Cosine):
    """Cosine up from 1/25 of the peak over the warm-up, cosine down (Smith and Topin 2018; the rise as in
    torch.optim.lr_scheduler.OneCycleLR, without its cycle of the momentum)."""

    def _warmed(self, done: float) -> float:
        warmup = self.config.warmup
        if done < warmup:
            return 1 / 25 + (1 - 1 / 25) * 0.5 * (1 - math.cos(math.pi * done / warmup))
        return self._curve((done - warmup) / (1 - warmup))


class Plateau(Schedule):
    """Times gamma when the training loss has not fallen by the fraction ``threshold`` for more than ``patience``
    epochs (torch.optim.lr_scheduler.ReduceLROnPlateau in its relative mode). It reads the training loss: the
    test split takes no part in training."""

    def __init__(self, config: ScheduleConfig, *, peak: float, total_steps: int) -> None:
        super().__init__(config, peak=peak, total_steps=total_steps)
        self.best, self.bad_epochs, self.factor = math.inf, 0, 1.0

    def _curve(self, done: float) -> float:
        return self.factor

    def epoch_end(self, train_loss: float) -> None:
        if train_loss < self.best * (1 - self.config.threshold):
            self.best, self.bad_epochs = train_loss, 0
        else:
            self.bad_epochs += 1
        if self.bad_epochs > self.config.patience:
            self.factor, self.bad_epochs = self.factor * self.config.gamma, 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "bad_epochs": self.bad_epochs, "factor": self.factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.bad_epochs, self.factor = state["best"], state["bad_epochs"], state["factor"]


_REGISTRY: dict[str, type[Schedule]] = {
    "constant": Constant,
    "multistep": Multistep,
    "plateau": Plateau,
    "onecycle": OneCycle,
    "triangular": Triangular,
    "cosine": Cosine,
}


def build_schedule(config: ScheduleConfig, *, peak: float, total_steps: int) -> Schedule:
    return _REGISTRY[config.name](config, peak=peak, total_steps=total_steps)
