"""How `bench-throughput` measures; `benchmarks.throughput.cli` parses and calls."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fast_train.benchmarks.instrument.bench import Bench, build_bench, measure_and_report
from fast_train.benchmarks.instrument.cost import batch_warnings
from fast_train.benchmarks.present.tables import device_of
from fast_train.benchmarks.throughput.report import write_report
from fast_train.benchmarks.throughput.suites import SUITES, ThroughputSettings, settings_of
from fast_train.common.console import Display
from fast_train.common.text import show_path
from fast_train.pipeline.device import device_name
from fast_train.pipeline.errors import ConfigError

if TYPE_CHECKING:
    from fast_train.benchmarks.throughput.cli import Flags


def measure(flags: Flags, command: Sequence[str]) -> int:
    """Measure, write the report, say where it is; see `measure_and_report`."""
    # Part of the baseline: four workers, whatever the cores.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    with tempfile.TemporaryDirectory(prefix="bench-throughput-") as scratch:
        bench = open_bench(flags, command, Display(), Path(scratch))
        run, write = partial(_run_suites, bench, flags.chosen_suites()), partial(_write, bench)
        return measure_and_report(bench, run, write, out=flags.out, default=_default_folder(bench))


def open_bench(flags: Flags, command: Sequence[str], display: Display, scratch: Path) -> Bench[ThroughputSettings]:
    """What every suite is given; ConfigError or PreparedSetError for what can't be measured."""
    bench = build_bench(flags, partial(settings_of, flags), command=command, display=display, scratch=scratch)
    if bench.config.crop.sizes and bench.prepared.manifest.ragged is None:
        raise ConfigError(
            "images of one shape are measured as they are; leave out --image-size, and a recipe's crop.size"
        )
    return bench


def _default_folder(bench: Bench[ThroughputSettings]) -> Path:
    device = device_name(bench.device) if bench.device.type == "cuda" else bench.device.type
    return Path("reports") / f"{bench.config.model.arch}-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}"


def _run_suites(bench: Bench[ThroughputSettings], chosen: Sequence[str]) -> None:
    """Run them in turn. What a suite had measured that a signal ends is left out."""
    if any(SUITES[name].steps for name in chosen):
        for recipe, fitted in ((bench.recipe, bench.config), (bench.baseline_recipe, bench.baseline)):
            bench.result.warnings += batch_warnings(recipe, fitted)
    for name in SUITES:
        if name not in chosen:
            bench.skip(name, "the suite", "left out by --only, --skip or --quick")
    for number, name in enumerate(chosen):
        done = len(bench.result.rows)
        try:
            bench.attempt(name, "the rest of the suite", partial(SUITES[name].run, bench))
        except KeyboardInterrupt:
            del bench.result.rows[done:]
            for left in chosen[number:]:
                bench.skip(left, "the suite", "interrupted before it was finished")
            raise


def _write(bench: Bench[ThroughputSettings], folder: Path) -> list[str]:
    bench.result.warnings += write_report(folder, bench.result)
    where = show_path(folder / "report.html")
    return [f"{len(bench.result.rows)} rows on {device_of(bench.result.machine)}; report: {where}"]
