"""A run's figures, once as JSON lines and once for TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"
_CURVES = {
    "loss/train": "train_loss",
    "loss/test": "test_loss",
    "accuracy/train": "train_accuracy",
    "accuracy/test": "test_accuracy",
    "learning_rate": "lr",
    "images_per_second": "images_per_second",
}


class RunLog:
    """Appends one record an epoch. ``history`` is what an earlier part of the run has recorded: records after
    it (an epoch that a crash left without a checkpoint) are dropped. note: what to say of the data, if anything."""

    def __init__(self, folder: Path, history: list[dict[str, Any]], *, note: str = "") -> None:
        self.history = list(history)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / METRICS
        self._path.write_text("".join(json.dumps(r) + "\n" for r in self.history), encoding="utf-8")
        purge = self.history[-1]["step"] + 1 if self.history else 0
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
        if note:
            self._board.add_text("data", note.strip())

    def add(self, record: dict[str, Any]) -> None:
        """record: plain numbers, with ``step``; None where something was not measured."""
        self.history.append(record)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        for tag, key in _CURVES.items():
            if record.get(key) is not None:
                self._board.add_scalar(tag, record[key], record["step"])
        self._board.flush()

    def close(self) -> None:
        self._board.close()
