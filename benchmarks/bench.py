"""What every suite is given: the set, the configurations, how long to measure, and where results go."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import Watch
from benchmarks.measure import FAILURES, Case, check_counts, interleave
from benchmarks.result import ImpossibleError, Result, Row, Skipped
from data_prep.display import Display
from data_prep.errors import one_line
from data_prep.manifest import PreparedSet
from pipeline.config import Config
from pipeline.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure. seconds: of one repeat. scaling: also over batch sizes and worker counts. slow_repeats: of
    what takes many seconds a repeat (starts, preparations). target_accuracy, runs, epochs: of time to accuracy;
    epochs None for the recipe's. accuracy_asked: whether a flag asks for time to accuracy. prep_dataset: what to
    prepare, as `prep-data --dataset` takes it."""

    repeats: int = 5
    warm_up: int = 1
    seconds: float = 0.5
    quick: bool = False
    scaling: bool = True
    batch_sizes: tuple[int, ...] = (128, 512, 2048)
    worker_counts: tuple[int, ...] = (1, 2)
    workers: int = 2
    slow_repeats: int = 5
    target_accuracy: float | None = None
    runs: int = 5
    epochs: int | None = None
    accuracy_asked: bool = False
    prep_dataset: str = "synthetic"

    def __post_init__(self) -> None:
        check_counts(self.repeats, self.warm_up)
        if self.runs < 1:
            raise ValueError(f"--runs {self.runs} is too few; give 1 or more")


@dataclass(kw_only=True)
class Measured:
    """A case and what its row says besides the repeats. details may be filled in while it runs."""

    name: str
    run: Callable[[], float]
    unit: str = "images/s"
    better: str = "higher"
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class Bench:
    """recipe: what fast-train would run. notes_recipe: the study notes' baseline, on the same network and set. config,
    notes: the same, with smaller batches where a CPU would take long over a step. runtime: of ``config``. scratch: an
    empty folder that goes away. debug: show the trace of an error that ends a suite. impossible: why the command fails
    though it wrote a report."""

    prepared: PreparedSet
    recipe: Config
    notes_recipe: Config
    config: Config
    notes: Config
    runtime: Runtime
    notes_runtime: Runtime
    settings: Settings
    result: Result
    display: Display
    watch: Watch
    scratch: Path
    debug: bool = False
    impossible: list[str] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where the recipe's step runs."""
        return self.runtime.device

    def skip(self, suite: str, name: str, reason: str) -> None:
        """List what is not measured, and why."""
        self.result.skipped.append(Skipped(suite, name, reason))
        self.display.say(f"  not measured: {suite}, {name}: {reason}")

    def fail(self, suite: str, name: str, error: Exception) -> None:
        """List what an error kept from being measured; the command goes on, and fails at its end."""
        if self.debug:
            traceback.print_exception(error)
        # Where the message was not made to be read alone, with the type: that of a KeyError is a key.
        expected = isinstance(error, FAILURES)
        text = one_line(error) if expected else " ".join("".join(traceback.format_exception_only(error)).split())
        reason = f"failed: {text}"
        self.impossible.append(reason)
        self.result.warnings.append(f"{suite} {reason}")
        self.skip(suite, name, reason)

    def add(self, row: Row) -> Row:
        """A finished row."""
        self.result.rows.append(row)
        return row

    def amend(self, row: Row, **details: Any) -> None:
        """Give a row more details. If they can't be true, the row goes, the reason is listed, and the command fails."""
        place = self.result.rows.index(row)
        try:
            self.result.rows[place] = dataclasses.replace(row, details={**row.details, **details})
        except ImpossibleError as error:
            del self.result.rows[place]
            self.impossible.append(str(error))
            self.result.warnings.append(str(error))
            self.skip(row.suite, row.name, str(error))

    def measure(self, suite: str, label: str, cases: Sequence[Measured], *, repeats: int | None = None) -> list[Row]:
        """Measure cases in turn, and add a row for each; one that fails is listed with its reason."""
        repeats = repeats or self.settings.repeats
        by_name = {case.name: case for case in cases}
        total = len(cases) * (repeats + self.settings.warm_up)
        failures: list[tuple[str, str]] = []
        with self.display.progress(label, total) as advance:

            def after_each() -> None:
                self.watch.sample()
                advance(1)

            samples = interleave(
                [Case(case.name, case.run) for case in cases],
                repeats=repeats,
                warm_up=self.settings.warm_up,
                after_each=after_each,
                on_failure=lambda name, reason: failures.append((name, reason)),
            )
        for name, reason in failures:
            self.skip(suite, name, reason)
        return [
            self.add(
                Row(
                    suite=suite,
                    name=name,
                    unit=by_name[name].unit,
                    better=by_name[name].better,
                    repeats=taken.repeats,
                    warm_up=taken.warm_up,
                    details=by_name[name].details,
                )
            )
            for name, taken in samples.items()
        ]


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """TF32 in convolutions and matrix products on or off inside the block. torch's default is on in convolutions and
    off in matrix products."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = enabled
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products
