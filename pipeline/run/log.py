"""A run's figures, once as JSON lines and once for TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from fast_train.common.files import whole_file
from fast_train.common.text import one_line, show_path
from fast_train.data_prep.manifest import data_note
from fast_train.pipeline.engine.history import JUDGES
from fast_train.pipeline.engine.listener import Listener, Ready, Start
from fast_train.pipeline.paths import METRICS

_CURVES = {
    "loss/train": "train_loss",
    **{f"loss/{split}": f"{split}_loss" for split in JUDGES},
    "accuracy/train": "train_accuracy",
    **{f"accuracy/{split}": f"{split}_accuracy" for split in JUDGES},
    "learning_rate": "lr",
    "images_per_second": "images_per_second",
}


class RunLog(Listener):
    """Keeps one record an epoch in ``metrics.jsonl`` and in TensorBoard's files; a context manager.

    Records after the part of the run that it goes on from (an epoch that a crash left without a checkpoint) are
    dropped. What can't be written costs the training nothing: ``warn`` gets a line that names it.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._path = Path()
        self._note = ""
        self._records: list[Mapping[str, Any]] = []
        self._whole = True
        self._board: SummaryWriter | None = None
        self._clock = 0.0

    def on_start(self, start: Start) -> None:
        self._path, self._note = start.folder / METRICS, data_note(start.prepared)

    def on_ready(self, ready: Ready) -> None:
        self._records = [*ready.history]
        self._write_records()
        # The time of day may be set while the run goes on; its curves must not go back.
        self._clock = time.time() - time.monotonic()
        purge = ready.history[-1]["step"] + 1 if ready.history else 0
        with self._board_or_warning():
            self._board = SummaryWriter(str(self._path.parent / "tensorboard"), purge_step=purge)
            if self._note:
                self._board.add_text("data", self._note.strip(), walltime=self._clock + time.monotonic())

    def on_epoch_end(self, record: Mapping[str, Any]) -> None:
        self._records.append(record)
        self._write_records(from_number=len(self._records) - 1)
        if self._board is None:
            return
        with self._board_or_warning():
            now = self._clock + time.monotonic()
            for tag, key in _CURVES.items():
                if record.get(key) is not None:
                    self._board.add_scalar(tag, record[key], record["step"], walltime=now)
            self._board.flush()

    def _write_records(self, from_number: int = 0) -> None:
        """Append the records from a number on; all of them anew, beside the old file, where one is missing there: an
        append that failed may have left a part of a line."""
        anew = from_number == 0 or not self._whole
        try:
            with whole_file(self._path) if anew else open(self._path, "ab") as file:
                for record in self._records[0 if anew else from_number :]:
                    file.write(json.dumps(record).encode() + b"\n")
            self._whole = True
        except OSError as error:
            if self._whole:
                self._warn(f"{show_path(self._path)} can't be written ({error.strerror}); the training goes on")
            self._whole = False

    @contextmanager
    def _board_or_warning(self) -> Iterator[None]:
        """In the block TensorBoard is written; where that fails, it is given up."""
        try:
            yield
        except OSError as error:
            self._board = None
            place = show_path(self._path.parent / "tensorboard")
            self._warn(
                f"{place} can't be written ({error.strerror or one_line(error)}); the training goes on without it"
            )

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._whole:
            self._write_records()
        if self._board is not None:
            with self._board_or_warning():
                self._board.close()


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The records in a run's folder, one an epoch; none where it has no log. ValueError for a damaged one."""
    try:
        text = (folder / METRICS).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    # A process that was killed may have left a line without its end.
    whole, _, _ = text.rpartition("\n")
    records = [json.loads(line) for line in whole.splitlines()]
    for record in records:
        if not isinstance(record, dict) or not all(type(record.get(name)) is int for name in ("epoch", "step")):
            raise ValueError(f"a line of {METRICS} is no record of an epoch")
    return records
