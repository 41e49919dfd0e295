"""What every suite is given: the set, the configurations, how long to measure, and where results go."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import shlex
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fast_train.benchmarks.instrument.cost import fit_batch
from fast_train.benchmarks.instrument.flags import names_in
from fast_train.benchmarks.instrument.machine import Watch, fingerprint
from fast_train.benchmarks.instrument.result import ImpossibleError, Result, Row, Skipped
from fast_train.benchmarks.instrument.statistics import check_counts
from fast_train.benchmarks.instrument.timing import FAILURES, Case, interleave
from fast_train.common.console import Display
from fast_train.common.signals import Interrupt, exit_status
from fast_train.common.text import one_line
from fast_train.data_prep.manifest import PreparedSet
from fast_train.data_prep.sources import SourceOptions, build_source
from fast_train.pipeline.config.recipe import resolve
from fast_train.pipeline.config.settings import Config
from fast_train.pipeline.engine.runtime import Runtime, apply_global_flags, resolve_runtime
from fast_train.pipeline.run.plan import default_recipe, fit_to_data


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


SPREAD_LIMIT = 0.05


_NAMED_ROWS = 5


def conclude(
    bench: Bench,
    stop: KeyboardInterrupt | None,
    write: Callable[[], None],
    scratch: tempfile.TemporaryDirectory[str],
) -> int:
    """Finish the result, ``write`` the report, remove ``scratch``; returns the exit status. A signal meanwhile waits.

    stop: the signal that ended the measuring, which is raised where there is no figure to write.
    """
    result = bench.result
    if stop is not None and not result.rows:
        raise stop
    with Interrupt() as held:
        result.machine["watch"] = bench.watch.record()
        result.warnings += [*bench.watch.warnings(), *spread_warnings(result)]
        write()
        scratch.cleanup()
    if held.signum is not None:
        return 128 + held.signum
    if stop is not None:
        return exit_status(stop)
    return 1 if bench.impossible else 0


def build_bench(flags: argparse.Namespace, command: Sequence[str], display: Display, scratch: Path) -> Bench:
    """Everything that suites need. ConfigError or PreparedSetError for what can't be measured."""
    given: dict[str, Any] = {"data": {"path": flags.data}}
    if flags.device:
        given["run"] = {"device": flags.device}
    if flags.arch:
        given["model"] = {"arch": flags.arch}
    config = resolve(flags.recipe or default_recipe(given), given)
    given["model"] = {"arch": config.model.arch}
    notes = resolve("notes", given)
    prepared = PreparedSet.open(flags.data)
    config, notes = (fit_to_data(c, prepared) for c in (config, notes))
    # A step is measured alone on the resident split, whatever loader the recipe names.
    config, notes = (
        dataclasses.replace(c, data=dataclasses.replace(c.data, loader="resident")) for c in (config, notes)
    )
    runtime = resolve_runtime(config.run)
    apply_global_flags(config.run, runtime.device)
    cuda = runtime.device.type == "cuda"
    recipe, notes_recipe = config, notes
    if not cuda:
        config, notes = map(fit_batch, (recipe, notes_recipe))
    settings = build_settings(flags, config, cuda=cuda)
    result = Result(
        settings={**dataclasses.asdict(settings), "command": shlex.join(command), "started_at": time.time()},
        config=config.to_dict(),
        data=_describe(prepared),
        machine=fingerprint(runtime.device),
    )
    return Bench(
        prepared=prepared,
        recipe=recipe,
        notes_recipe=notes_recipe,
        config=config,
        notes=notes,
        runtime=runtime,
        notes_runtime=resolve_runtime(notes.run),
        settings=settings,
        result=result,
        display=display,
        watch=Watch(runtime.device),
        scratch=scratch,
        debug=flags.debug,
    )


def _describe(prepared: PreparedSet) -> dict[str, Any]:
    manifest = prepared.manifest
    return {
        "source": prepared.source_name,
        "synthetic": prepared.synthetic,
        "classes": len(manifest.classes),
        "image_shape": list(manifest.image_shape),
        "train_images": prepared.size("train"),
        "test_images": prepared.size("test") if "test" in prepared.splits else 0,
        "formats": list(dict.fromkeys(entry.format for entry in manifest.files)),
        "files": {entry.path: entry.sha256 for entry in manifest.files},
    }


def clean_up(device: torch.device) -> None:
    """Compiled code and device memory of a suite do not weigh on the next one."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def spread_warnings(result: Result) -> list[str]:
    """One line on the rows whose repeats differ by more than a twentieth."""
    wide = sorted((row for row in result.rows if row.spread > SPREAD_LIMIT), key=lambda row: -row.spread)
    if not wide:
        return []
    named = ", ".join(f"{row.suite}: {row.name} ({row.spread:.0%})" for row in wide[:_NAMED_ROWS])
    more = f" and {len(wide) - _NAMED_ROWS} more" if len(wide) > _NAMED_ROWS else ""
    return [
        f"the repeats of {len(wide)} of {len(result.rows)} rows spread over more than {SPREAD_LIMIT:.0%}: "
        f"{named}{more}; trust their intervals, not their medians"
    ]


def build_settings(flags: argparse.Namespace, config: Config, *, cuda: bool) -> Settings:
    """How much to measure: on a CPU less of it, so that two cores end within a quarter of an hour."""
    cores, quick, main = os.cpu_count() or 1, flags.quick, config.data.batch_size
    repeats = flags.repeats if flags.repeats is not None else (2 if quick else 5)
    runs = flags.runs if flags.runs is not None else (5 if cuda else 2)
    workers = cores if flags.workers is None else flags.workers
    if workers < 1:
        raise ValueError(f"--workers {workers} is too few; give 1 or more")
    epochs = config.run.epochs if flags.epochs is None else flags.epochs
    # Of a training and of prep-data, which come last: what they would refuse is refused before anything is measured.
    dataclasses.replace(config.run, target_accuracy=flags.target_accuracy, epochs=epochs)
    prep_dataset = flags.prep_dataset or "synthetic"
    check_dataset(prep_dataset)
    return Settings(
        repeats=repeats,
        warm_up=flags.warm_up,
        seconds=0.1 if quick else 0.5 if cuda else 0.3,
        quick=quick,
        scaling=not quick,
        batch_sizes=tuple(sorted({128, main, 2048} if cuda else {main, 1024})),
        worker_counts=tuple(sorted({*(1 << k for k in range(workers.bit_length())), workers})),
        workers=workers,
        slow_repeats=repeats if cuda or flags.repeats is not None else min(repeats, 2),
        target_accuracy=flags.target_accuracy,
        runs=runs,
        epochs=flags.epochs if flags.epochs is not None else (None if cuda else 2),
        accuracy_asked=bool({flags.target_accuracy, flags.runs, flags.epochs} - {None})
        or "accuracy" in names_in(flags.only or ""),
        prep_dataset=prep_dataset,
    )


def check_dataset(name: str) -> None:
    """ValueError for a --prep-dataset that prep-data does not know, or a folder in which it finds no images."""
    try:
        build_source(name, SourceOptions(), Display()).identity()
    except ValueError as error:
        raise ValueError(str(error).replace("--dataset", "--prep-dataset")) from error
