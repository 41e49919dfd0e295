"""How `bench-throughput` measures; `benchmarks.throughput.cli` parses and calls."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fast_train.benchmarks.instrument.bench import Bench, build_bench, conclude
from fast_train.benchmarks.instrument.cost import batch_warnings
from fast_train.benchmarks.instrument.folder import report_folder
from fast_train.benchmarks.present.tables import device_of
from fast_train.benchmarks.throughput.report import write_report
from fast_train.benchmarks.throughput.suites import SUITES, ThroughputSettings, settings_of
from fast_train.common.console import Display
from fast_train.common.text import show_path
from fast_train.pipeline.device import device_name

if TYPE_CHECKING:
    from fast_train.benchmarks.throughput.cli import Flags


def measure(flags: Flags, command: Sequence[str]) -> int:
    """Measure, write the report, say where it is. KeyboardInterrupt where a signal came before there was a figure."""
    chosen = flags.chosen_suites()
    display = Display()
    # Part of the baseline: four workers, whatever the cores.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    scratch = tempfile.TemporaryDirectory(prefix="bench-throughput-")
    with scratch:
        bench = open_bench(flags, command, display, Path(scratch.name))
        if any(SUITES[name].steps for name in chosen):
            for recipe, fitted in ((bench.recipe, bench.config), (bench.baseline_recipe, bench.baseline)):
                bench.result.warnings += batch_warnings(recipe, fitted)
        with report_folder(flags.out, _default_folder(bench)) as folder:
            display.say(f"{bench.config.model.arch} by recipe {bench.config.recipe}; {bench.runtime.describe()}")
            display.say(f"report folder: {show_path(folder)}")
            stop = _run_suites(bench, chosen)
            return conclude(bench, stop, partial(_write, bench, folder), scratch)


def open_bench(flags: Flags, command: Sequence[str], display: Display, scratch: Path) -> Bench[ThroughputSettings]:
    """What every suite is given; ConfigError or PreparedSetError for what can't be measured."""
    return build_bench(flags, partial(settings_of, flags), command=command, display=display, scratch=scratch)


def _default_folder(bench: Bench[ThroughputSettings]) -> Path:
    device = device_name(bench.device) if bench.device.type == "cuda" else "cpu"
    return Path("reports") / f"{bench.config.model.arch}-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}"


def _run_suites(bench: Bench[ThroughputSettings], chosen: Sequence[str]) -> KeyboardInterrupt | None:
    """Run them in turn; the signal where one ended it. What an unfinished suite had measured is left out."""
    for name in SUITES:
        if name not in chosen:
            bench.skip(name, "the suite", "left out by --only, --skip or --quick")
    waiting, done = list(chosen), len(bench.result.rows)
    try:
        while waiting:
            suite = SUITES[waiting[0]]
            bench.attempt(suite.name, "the rest of the suite", partial(suite.run, bench))
            del waiting[0]
            done = len(bench.result.rows)
    except KeyboardInterrupt as stop:
        del bench.result.rows[done:]
        bench.result.complete = False
        for left in waiting:
            bench.skip(left, "the suite", "interrupted before it was finished")
        return stop
    return None


def _write(bench: Bench[ThroughputSettings], folder: Path) -> None:
    result = bench.result
    undrawn = write_report(folder, result)
    for warning in [*result.warnings, *undrawn]:
        bench.display.say(f"warning: {warning}")
    if not result.complete:
        bench.display.say("interrupted: the report holds the suites that were finished, and says so")
    where = show_path(folder / "report.html")
    bench.display.say(f"{len(result.rows)} rows on {device_of(result.machine)}; report: {where}")
