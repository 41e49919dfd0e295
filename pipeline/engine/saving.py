"""When a run is saved, and which of its checkpoints are kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from fast_train.common.text import one_line, show_path
from fast_train.pipeline.config.settings import RunConfig
from fast_train.pipeline.engine.checkpoint import save_checkpoint
from fast_train.pipeline.paths import BEST, CHECKPOINT, kept_steps, of_step

# A small model's epoch takes a second on a GPU: saving each one would cost as much as training it.
_SECONDS_BETWEEN_SAVES = 10.0


class Checkpoints:
    """Those of one run's folder. A disk that takes no more costs no training: ``warn`` gets a line, and the next save
    tries again. step: how far the run is."""

    def __init__(self, folder: Path, run: RunConfig, step: int, warn: Callable[[str], None]) -> None:
        self._folder, self._run, self._warn = folder, run, warn
        self._every = run.save_interval
        self._step, self._saved_at = step, time.monotonic()
        self._said = ""

    def due(self, step: int, *, epoch_end: bool = False) -> bool:
        """Whether to save after a step, number ``step`` of the run."""
        seconds = time.monotonic() - self._saved_at
        if self._every is None:
            return epoch_end and seconds > _SECONDS_BETWEEN_SAVES
        if isinstance(self._every, int):
            return step // self._every > self._step // self._every
        return seconds >= self._every

    def save(self, state: dict[str, Any], *, final: bool = False) -> None:
        """Write the last checkpoint, and before it the one to keep, if any: a run that is killed in between comes to
        the same step again. final: OSError where the last one can't be written."""
        self._step, self._saved_at = state["done_steps"], time.monotonic()
        path, kept = self._folder / CHECKPOINT, of_step(self._folder, self._step)
        if self._run.keep:
            with self._going_on(kept):
                save_checkpoint(kept, state)
                self._drop_old()
        with nullcontext() if final else self._going_on(path):
            save_checkpoint(path, state)
            self._said = ""

    def save_best(self, state: dict[str, Any]) -> None:
        """Write the checkpoint of the best test accuracy so far."""
        path = self._folder / BEST
        with self._going_on(path):
            save_checkpoint(path, state)

    def _drop_old(self) -> None:
        # Those of later steps stay: a run that goes on from an earlier one has not come to them yet.
        done = [kept for step, kept in kept_steps(self._folder).items() if step <= self._step]
        for old in done[: -self._run.keep]:
            old.unlink(missing_ok=True)

    @contextmanager
    def _going_on(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = error.strerror or one_line(error)
            line = f"{show_path(path)} can't be written ({why}); the training goes on, the next save tries again"
            if line != self._said:
                self._warn(line)
            self._said = line
