"""What `bench-throughput` does; `benchmarks.throughput.cli` parses and calls."""

from __future__ import annotations

import argparse
import re
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from fast_train.benchmarks.instrument.bench import Bench, build_bench, clean_up, conclude
from fast_train.benchmarks.instrument.cost import batch_warnings
from fast_train.benchmarks.instrument.flags import known_names
from fast_train.benchmarks.instrument.result import read_result
from fast_train.benchmarks.present.folder import report_folder
from fast_train.benchmarks.throughput.compare import compare, describe
from fast_train.benchmarks.throughput.mllog import log_lines
from fast_train.benchmarks.throughput.report import JSON, device_of, write_report
from fast_train.benchmarks.throughput.suites import NEEDS, SUITES, accuracy, end_to_end, ladder, preparation, startup
from fast_train.common.console import Display
from fast_train.common.signals import termination_as_interrupt
from fast_train.common.text import show_path
from fast_train.pipeline.device import device_name
from fast_train.pipeline.errors import ConfigError

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


def _write(bench: Bench, folder: Path, *, mllog: bool) -> None:
    """Write the report, say where it is."""
    result = bench.result
    write_report(folder, result, mllog="\n".join(log_lines(result)) + "\n" if mllog else None)
    for warning in result.warnings:
        bench.display.say(f"warning: {warning}")
    if not result.complete:
        bench.display.say("interrupted: the report holds the suites that were finished, and says so")
    bench.display.say(f"{len(result.rows)} rows on {device_of(result)}; report: {show_path(folder / 'report.html')}")
