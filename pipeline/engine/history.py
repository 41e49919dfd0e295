"""What the records of a training's epochs say of the split that it is judged by.

That is the validation split of a set that has one, else the test split: a record has ``validation_accuracy`` and
``validation_loss``, or ``test_accuracy`` and ``test_loss``, which are None where the epoch was not evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fast_train.pipeline.config.settings import RunConfig

JUDGES = ("validation", "test")


def judge(*records: Mapping[str, Any]) -> str:
    """The split that the training of these records is judged by."""
    return "validation" if any("validation_accuracy" in record for record in records) else "test"


def accuracy(record: Mapping[str, Any]) -> float | None:
    """A record's accuracy on that split, a fraction; None where there is none."""
    value: float | None = record[f"{judge(record)}_accuracy"]
    return value


def accuracies(history: Sequence[Mapping[str, Any]]) -> list[float]:
    """Those of all evaluations so far."""
    return [value for value in map(accuracy, history) if value is not None]


def stale(history: Sequence[Mapping[str, Any]]) -> int:
    """How many evaluations there were since the first one of the best accuracy."""
    values = accuracies(history)
    return len(values) - 1 - values.index(max(values)) if values else 0


def target_reached(run: RunConfig, history: Sequence[Mapping[str, Any]]) -> bool:
    """By the last epoch, where it was evaluated. A run that goes on may have been given another target."""
    last = accuracy(history[-1]) if history else None
    return run.target_accuracy is not None and last is not None and last >= run.target_accuracy


def out_of_patience(run: RunConfig, history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the accuracy has not risen for as many evaluations as the configuration waits."""
    return run.patience is not None and stale(history) >= run.patience


def is_over(run: RunConfig, history: Sequence[Mapping[str, Any]], done_steps: int, steps_per_epoch: int) -> bool:
    """Whether the last epoch, with its evaluation, is behind us."""
    whole = len(history) >= run.epochs_begun(steps_per_epoch) and done_steps >= run.total_steps(steps_per_epoch)
    return whole or target_reached(run, history) or out_of_patience(run, history)
