"""What `bench-throughput` does; `benchmarks.cli` parses and calls."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import re
import shlex
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import Bench, Settings
from benchmarks.cli import known_names, names_in
from benchmarks.compare import compare, describe
from benchmarks.machine import Watch, fingerprint
from benchmarks.mllog import log_lines
from benchmarks.output import report_folder
from benchmarks.report import JSON, device_of, write_report
from benchmarks.result import Result, read_result
from benchmarks.signals import exit_status, termination_as_interrupt
from benchmarks.sizes import batch_warnings, fit_batch
from benchmarks.suites import NEEDS, SUITES, accuracy, end_to_end, ladder, preparation, startup
from data_prep.display import Display
from data_prep.manifest import PreparedSet
from data_prep.sources import SourceOptions, build_source
from pipeline.cli import show_path
from pipeline.commands import default_recipe, fit_to_data
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.interrupt import Interrupt
from pipeline.recipe import resolve
from pipeline.runtime import apply_global_flags, device_name, resolve_runtime

SPREAD_LIMIT = 0.05
_NAMED_ROWS = 5
_MAX_LOSS = 0.1
# Suites that measure steps, in batches that a CPU takes in.
_ON_STEPS = (ladder.SUITE, end_to_end.SUITE, startup.SUITE)
# What one suite alone looks at, by argparse's names. --quick leaves these suites out.
_FLAGS_OF = {accuracy.SUITE: ("target_accuracy", "runs", "epochs"), preparation.SUITE: ("prep_dataset",)}


def compare_reports(flags: argparse.Namespace) -> int:
    """Print the ratios; 1 where a row lost more than ``--max-loss``."""
    max_loss = _MAX_LOSS if flags.max_loss is None else flags.max_loss
    if not 0 <= max_loss < 1:
        raise ValueError(f"--max-loss {max_loss} is not a fraction in [0, 1)")
    comparison = compare(*map(read_result, flags.compare))
    print("\n".join(describe(comparison, max_loss)))
    return 1 if comparison.losses(max_loss) else 0


def measure(flags: argparse.Namespace, command: Sequence[str]) -> int:
    """Measure, write the report, say where it is. KeyboardInterrupt where a signal came before there was a figure."""
    chosen = choose_suites(flags.only, flags.skip)
    check_used(flags, chosen)
    display = Display()
    # Part of the notes' recipe: four workers, whatever the cores.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    scratch = tempfile.TemporaryDirectory(prefix="bench-throughput-")
    with termination_as_interrupt(), scratch:
        bench = build_bench(flags, command, display, Path(scratch.name))
        if any(suite in chosen for suite in _ON_STEPS):
            for recipe, fitted in ((bench.recipe, bench.config), (bench.notes_recipe, bench.notes)):
                bench.result.warnings += batch_warnings(recipe, fitted)
        with report_folder(flags.out, _default_folder(bench), JSON) as folder:
            display.say(f"{bench.config.model.arch} by recipe {bench.config.recipe}; {bench.runtime.describe()}")
            display.say(f"report folder: {show_path(folder)}")
            stop = _run_suites(bench, chosen)
            return conclude(bench, stop, lambda: _write(bench, folder, mllog=flags.mllog), scratch)


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


def choose_suites(only: str | None, skip: str | None) -> list[str]:
    """The suites to run, in their order; ValueError for unknown names, none left, or one that another one needs."""
    kept, left_out = (
        [] if text is None else known_names(flag, text, "suite", SUITES)
        for flag, text in (("--only", only), ("--skip", skip))
    )
    wanted = {name for name in SUITES if (only is None or name in kept) and name not in left_out}
    if not wanted:
        raise ValueError("--only and --skip leave no suite; name one that is not skipped")
    for name in left_out:
        needing = [suite for suite in SUITES if suite in wanted and NEEDS.get(suite) == name]
        if needing:
            compare = "compare" if len(needing) > 1 else "compares"
            raise ValueError(f"--skip {name}: {' and '.join(needing)} {compare} with it; skip {','.join(needing)} too")
    needed = {NEEDS[name] for name in wanted if name in NEEDS}
    return [name for name in SUITES if name in wanted | needed]


def check_used(flags: argparse.Namespace, chosen: Sequence[str]) -> None:
    """ConfigError for a flag of a suite that will not run."""
    for suite, names in _FLAGS_OF.items():
        for flag in (f"--{name.replace('_', '-')}" for name in names if getattr(flags, name) is not None):
            if suite not in chosen:
                raise ConfigError(f"{flag} means nothing without the suite {suite}; leave it out, or run the suite")
            if flags.quick:
                raise ConfigError(f"{flag} means nothing to --quick, which leaves out {suite}; leave one of them out")


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
        or accuracy.SUITE in names_in(flags.only or ""),
        prep_dataset=prep_dataset,
    )


def check_dataset(name: str) -> None:
    """ValueError for a --prep-dataset that prep-data does not know, or a folder in which it finds no images."""
    try:
        build_source(name, SourceOptions(), Display()).identity()
    except ValueError as error:
        raise ValueError(str(error).replace("--dataset", "--prep-dataset")) from error


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


def _default_folder(bench: Bench) -> Path:
    device = device_name(bench.device) if bench.device.type == "cuda" else "cpu"
    return Path("reports") / f"{bench.config.model.arch}-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}"


def _run_suites(bench: Bench, chosen: Sequence[str]) -> KeyboardInterrupt | None:
    """Run them in turn; the signal where one ended it. What an unfinished suite had measured is left out."""
    for name in SUITES:
        if name not in chosen:
            bench.skip(name, "the suite", "left out by --only or --skip")
    waiting, done = list(chosen), len(bench.result.rows)
    try:
        while waiting:
            _run_suite(bench, waiting[0])
            del waiting[0]
            done = len(bench.result.rows)
    except KeyboardInterrupt as stop:
        del bench.result.rows[done:]
        bench.result.complete = False
        for left in waiting:
            bench.skip(left, "the suite", "interrupted before it was finished")
        return stop
    return None


def _run_suite(bench: Bench, name: str) -> None:
    done, started = len(bench.result.rows), time.monotonic()
    bench.display.say(f"{name} ...")
    try:
        try:
            SUITES[name](bench)
        finally:
            clean_up(bench.device)
    except Exception as error:
        # Whatever it is: the figures of half an hour must not be lost with one suite.
        bench.fail(name, "the rest of the suite", error)
    bench.display.say(f"{name}: {len(bench.result.rows) - done} rows in {time.monotonic() - started:.0f} s")


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


def _write(bench: Bench, folder: Path, *, mllog: bool) -> None:
    """Write the report, say where it is."""
    result = bench.result
    write_report(folder, result, mllog="\n".join(log_lines(result)) + "\n" if mllog else None)
    for warning in result.warnings:
        bench.display.say(f"warning: {warning}")
    if not result.complete:
        bench.display.say("interrupted: the report holds the suites that were finished, and says so")
    bench.display.say(f"{len(result.rows)} rows on {device_of(result)}; report: {show_path(folder / 'report.html')}")
