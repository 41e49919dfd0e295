"""What the terminal shows while a run goes on: a live bar, or plain lines where it is no terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fast_train.common.console import Advance, Display
from fast_train.common.text import show, show_path
from fast_train.data_prep.manifest import data_note
from fast_train.pipeline.engine.history import accuracy, judge
from fast_train.pipeline.engine.listener import Listener, Ready, Start
from fast_train.pipeline.engine.metrics import Totals


class Terminal(Listener):
    """Says what is trained, shows one epoch at a time, and leaves a line of each. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._note, self._epochs = "", 0
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._total = self._before = self._already = 0
        self._began = 0.0
        self._loading, self._loaded = ExitStack(), 0
        self._advance: Advance = lambda count: None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        self._loading.close()
        if self._progress:
            self._progress.stop()

    def on_start(self, start: Start) -> None:
        config, prepared, runtime = start.config, start.prepared, start.runtime
        self._note = data_note(prepared)
        for note in start.notes:
            self._console.print(note, soft_wrap=True)
        # A run of few epochs takes the last sizes.
        steps_per_epoch = max(prepared.size("train") // config.data.batch_size, 1)
        sizes = config.crop.sizes[-config.run.epochs_begun(steps_per_epoch) :]
        crops = f", crops of {' then '.join(map(str, sizes))} pixels" if sizes else ""
        self._console.print(
            f"{config.model.arch} by recipe {show(config.recipe)} on {prepared.size('train'):,} images of "
            f"{show(prepared.source_name)}{self._note}; loader {config.data.loader}, batch "
            f"{config.data.batch_size}{crops}\n{runtime.describe()}\nrun folder: {show_path(start.folder)}",
            soft_wrap=True,
        )

    def on_loading(self, label: str, done: int, total: int) -> None:
        if not done:
            self._loaded = 0
            self._advance = self._loading.enter_context(Display(self._console).progress(label, total))
        self._advance(done - self._loaded)
        self._loaded = done
        if done == total:
            self._loading.close()

    def on_ready(self, ready: Ready) -> None:
        self._epochs = ready.epochs
        if ready.done_steps:
            self._console.print(f"going on after step {ready.done_steps:,} of {ready.total_steps:,}")
        if ready.compiled and round(ready.seconds, 1):
            self._console.print(f"compiled in {ready.seconds:.1f} s")
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[figures]}"),
                TextColumn("left"),
                TimeRemainingColumn(compact=True),
                console=self._console,
                transient=True,
            )
            self._progress.start()

    def on_epoch_begin(self, epoch: int, *, already: int, images_left: int) -> None:
        self._began, self._already = time.monotonic(), already
        if self._progress is None:
            return
        if self._task is None:
            self._total = images_left
            self._task = self._progress.add_task("", total=images_left, figures="")
        self._before = self._total - images_left
        self._progress.update(self._task, description=f"epoch {epoch}/{self._epochs}")

    def on_progress(self, sums: Totals, rate: float) -> None:
        if self._progress is None or not sums.images:
            return
        speed = (sums.images - self._already) / max(time.monotonic() - self._began, 1e-9)
        figures = (
            f"{speed:,.0f} images/s  loss {sums.loss / sums.images:.3f}  "
            f"acc {sums.correct / sums.images:.1%}  lr {rate:.4g}"
        )
        assert self._task is not None, "on_epoch_begin comes before on_progress"
        self._progress.update(self._task, completed=self._before + sums.images, figures=figures)

    def on_note(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)

    def on_epoch_end(self, record: Mapping[str, Any]) -> None:
        split, judged = judge(record), accuracy(record)
        test = f"{split} {record[f'{split}_loss']:.3f} {judged:.2%}  " if judged is not None else ""
        speed = record["images_per_second"]
        rate = f"{speed:,.0f} images/s  " if speed is not None else ""
        self._console.print(
            f"epoch {record['epoch']:>3}/{self._epochs}  train {record['train_loss']:.3f} "
            f"{record['train_accuracy']:.2%}  {test}lr {record['lr']:.4g}  "
            f"{rate}{record['seconds']:.1f} s{self._note}",
            soft_wrap=True,
        )
