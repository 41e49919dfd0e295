"""What the records of a training's epochs say of the split that it is judged by.

That is the validation split of a set that has one, else the test split: a record has ``validation_accuracy`` and
``validation_loss``, or ``test_accuracy`` and ``test_loss``, which are None where the epoch was not evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
