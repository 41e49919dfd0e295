"""A run's figures, once as JSON lines and once for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from fast_train.data_prep.manifest import data_note
from fast_train.pipeline.engine.listener import Listener, Ready, Start

METRICS = "metrics.jsonl"
_CURVES = {
    "loss/train": "train_loss",
    "loss/test": "test_loss",
    "accuracy/train": "train_accuracy",
    "accuracy/test": "test_accuracy",
    "learning_rate": "lr",
    "images_per_second": "images_per_second",
}


class RunLog(Listener):
    """Appends one record an epoch to ``metrics.jsonl`` and to TensorBoard's files; a context manager.

    Records after the part of the run that it goes on from (an epoch that a crash left without a checkpoint) are
    dropped.
    """

    def __init__(self) -> None:
        self._path = Path()
        self._note = ""
        self._board: SummaryWriter | None = None

    def on_start(self, start: Start) -> None:
        self._path, self._note = start.folder / METRICS, data_note(start.prepared)

    def on_ready(self, ready: Ready) -> None:
        self._path.write_text("".join(json.dumps(r) + "\n" for r in ready.history), encoding="utf-8")
        purge = ready.history[-1]["step"] + 1 if ready.history else 0
        self._board = SummaryWriter(str(self._path.parent / "tensorboard"), purge_step=purge)
        if self._note:
            self._board.add_text("data", self._note.strip())

    def on_epoch_end(self, record: Mapping[str, Any]) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        assert self._board is not None, "on_ready comes before the first epoch"
        for tag, key in _CURVES.items():
            if record.get(key) is not None:
                self._board.add_scalar(tag, record[key], record["step"])
        self._board.flush()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *error: object) -> None:
        if self._board is not None:
            self._board.close()


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The records in a run's folder, one an epoch; none where it has no log. ValueError for a damaged one."""
    try:
        text = (folder / METRICS).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    # A process that was killed may have left a line without its end.
    whole, _, _ = text.rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
