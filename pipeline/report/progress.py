"""What the terminal shows while a run goes on: a live bar, or plain lines where it is no terminal."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fast_train.pipeline.engine.metrics import Totals


class Display:
    """Shows one epoch at a time: `begin`, `update` as often as one likes, `end` with the epoch's record."""

    def __init__(self, console: Console, *, epochs: int, note: str = "") -> None:
        self._console, self._epochs, self._note = console, epochs, note
        self._progress = self._build() if console.is_terminal else None
        self._task: TaskID | None = None
        self._total = self._before = self._already = 0
        self._began = 0.0
        if self._progress:
            self._progress.start()

    def _build(self) -> Progress:
        return Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
        )

    def begin(self, epoch: int, *, already: int, images_left: int) -> None:
        """epoch: 1-based. already: how many of its images a resumed run has done. images_left: of the whole run, all
        of this epoch included, for the time that is left."""
        self._began, self._already = time.monotonic(), already
        if self._progress is None:
            return
        if self._task is None:
            self._total = images_left
            self._task = self._progress.add_task("", total=images_left, figures="")
        self._before = self._total - images_left
        self._progress.update(self._task, description=f"epoch {epoch}/{self._epochs}")

    def update(self, sums: Totals, rate: float) -> None:
        """sums: of the epoch so far. rate: the learning rate."""
        if self._progress is None or not sums.images:
            return
        speed = (sums.images - self._already) / max(time.monotonic() - self._began, 1e-9)
        figures = (
            f"{speed:,.0f} images/s  loss {sums.loss / sums.images:.3f}  "
            f"acc {sums.correct / sums.images:.1%}  lr {rate:.4g}"
        )
        assert self._task is not None, "begin comes before update"
        self._progress.update(self._task, completed=self._before + sums.images, figures=figures)

    def end(self, record: dict[str, Any]) -> None:
        """One line that stays."""
        tested = record["test_accuracy"]
        test = f"test {record['test_loss']:.3f} {tested:.2%}  " if tested is not None else ""
        speed = record["images_per_second"]
        rate = f"{speed:,.0f} images/s  " if speed is not None else ""
        self._console.print(
            f"epoch {record['epoch']:>3}/{self._epochs}  train {record['train_loss']:.3f} "
            f"{record['train_accuracy']:.2%}  {test}lr {record['lr']:.4g}  "
            f"{rate}{record['seconds']:.1f} s{self._note}",
            soft_wrap=True,
        )

    def close(self) -> None:
        if self._progress:
            self._progress.stop()
