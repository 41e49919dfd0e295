"""What the records of a training's epochs say of the split that it is judged by.

That is the validation split of a set that has one, else the test split: a record has ``validation_accuracy`` and
``validation_loss``, or ``test_accuracy`` and ``test_loss``, which are None where the epoch was not evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

JUDGES = ("validation", "test")


def judge(record: Mapping[str, Any]) -> str:
    """The split that a record's training is judged by."""
    return next(split for split in JUDGES if f"{split}_accuracy" in record)


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
