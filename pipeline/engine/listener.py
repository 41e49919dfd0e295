"""Who wants to know how a training goes: the terminal, a log, a benchmark's clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.config.settings import Config
from fast_train.pipeline.engine.metrics import Totals
from fast_train.pipeline.engine.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class Start:
    """What is to be trained, on what, how, and where it is written. resumed: a run goes on. notes: what was
    changed to fit the images or the machine, and what it does in another way than before, a line each."""

    config: Config
    prepared: PreparedSet
    runtime: Runtime
    folder: Path
    resumed: bool = False
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The step is ready, ``compiled`` or captured where it can be. epochs, total_steps: of the whole run. done_steps,
    history: of the part before this one, where the run goes on. seconds: of compilation and capture."""

    epochs: int
    total_steps: int
    done_steps: int
    history: Sequence[Mapping[str, Any]]
    seconds: float
    compiled: bool = False


class Listener:
    """What a training tells, in this order. A subclass overrides what it wants to hear."""

    def on_start(self, start: Start) -> None:
        """Before anything is built."""

    def on_loading(self, label: str, done: int, total: int) -> None:
        """Before the first step, of what takes long there: that ``done`` images of ``total`` are; first 0, last all."""

    def on_ready(self, ready: Ready) -> None:
        """Before the first step."""

    def on_epoch_begin(self, epoch: int, *, already: int, images_left: int) -> None:
        """epoch: 1-based. already: how many of its images a resumed run has done. images_left: of the whole run, all of
        this epoch included."""

    def on_progress(self, sums: Totals, rate: float) -> None:
        """A few times a second at most. sums: of the epoch so far. rate: the learning rate."""

    def on_epoch_end(self, record: Mapping[str, Any]) -> None:
        """record: plain numbers, as metrics.jsonl holds them; None where something was not measured."""

    def on_note(self, line: str) -> None:
        """Something that a person should know, at any moment; a line of text that is said once."""


def note(listeners: Sequence[Listener], line: str) -> None:
    """Tell all of them."""
    for listener in listeners:
        listener.on_note(line)


@contextmanager
def loading(listeners: Sequence[Listener], label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Tell all of them how far something is: the block calls what it is given with how many images more are done."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        for listener in listeners:
            listener.on_loading(label, done, total)

    advance(0)
    yield advance


def warn(listeners: Sequence[Listener], line: str) -> None:
    """Tell all of them what the training goes on without."""
    note(listeners, f"warning: {line}")
