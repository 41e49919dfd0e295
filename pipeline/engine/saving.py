"""When a run is saved, and which of its checkpoints are kept."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fast_train.common.text import one_line, show_path
from fast_train.pipeline.config.settings import RunConfig
from fast_train.pipeline.engine.checkpoint import save_checkpoint
from fast_train.pipeline.paths import BEST, CHECKPOINT, KEPT, kept_steps, of_step
from fast_train.pipeline.ranks import current

# A small model's epoch takes a second on a GPU: saving each one would cost as much as training it.
_SECONDS_BETWEEN_SAVES = 10.0


class Checkpoints:
    """Those of one run's folder. A disk that takes no more costs no training: ``warn`` gets a line, the first time, and
    the next save tries again. step: how far the run is. Of several ranks the first one writes them."""

    def __init__(self, folder: Path, run: RunConfig, step: int, warn: Callable[[str], None]) -> None:
        self._folder, self._run, self._warn = folder, run, warn
        self._every = run.save_interval
        self._step, self._saved_at = step, time.monotonic()
        # The last one, the best one, the kept ones: which could not be written when they were tried last.
        self._failing: set[str] = set()

    @property
    def by_steps(self) -> bool:
        """Whether `due` looks at the steps alone, and not at the clock."""
        return isinstance(self._every, int)

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
        if not current().first:
            return
        path, kept = self._folder / CHECKPOINT, of_step(self._folder, self._step)
        keeps = self._run.keep > 0 and self._written(kept, KEPT, state)
        if keeps:
            self._drop_old()
        try:
            save_checkpoint(path, state)
            self._failing.discard(CHECKPOINT)
        except OSError as error:
            if keeps:
                # It took the room, and is the same.
                os.replace(kept, path)
                self._complain(kept, KEPT, error)
            elif final:
                raise
            else:
                self._complain(path, CHECKPOINT, error)

    def save_best(self, state: dict[str, Any]) -> None:
        """Write the checkpoint of the best test accuracy so far."""
        if current().first:
            self._written(self._folder / BEST, BEST, state)

    def _drop_old(self) -> None:
        # Those of later steps stay: a run that goes on from an earlier one has not come to them yet.
        done = [kept for step, kept in kept_steps(self._folder).items() if step <= self._step]
        for old in done[: -self._run.keep]:
            with suppress(OSError):
                old.unlink()

    def _written(self, path: Path, kind: str, state: dict[str, Any]) -> bool:
        try:
            save_checkpoint(path, state)
        except OSError as error:
            self._complain(path, kind, error)
            return False
        self._failing.discard(kind)
        return True

    def _complain(self, path: Path, kind: str, error: OSError) -> None:
        if kind not in self._failing:
            why = error.strerror or one_line(error)
            self._warn(f"{show_path(path)} can't be written ({why}); the training goes on, the next save tries again")
        self._failing.add(kind)
