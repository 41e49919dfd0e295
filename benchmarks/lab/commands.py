"""How the lab measures and reports; `benchmarks.lab.cli` parses, checks and calls."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fast_train.benchmarks.instrument.bench import build_bench, conclude
from fast_train.benchmarks.instrument.cost import batch_warnings
from fast_train.benchmarks.instrument.flags import Settings, repeat_seconds
from fast_train.benchmarks.lab import report
from fast_train.benchmarks.lab.records import ON_STEPS
from fast_train.benchmarks.lab.run import Lab, run
from fast_train.benchmarks.present.folder import report_folder
from fast_train.common.console import Display
from fast_train.pipeline.config.settings import Config

if TYPE_CHECKING:
    from fast_train.benchmarks.lab.cli import Flags


def measure(flags: Flags, command: Sequence[str], started: float) -> int:
    """Measure, write, print; returns the exit status. KeyboardInterrupt where a signal comes before any figure.

    started: when the command was, of time.monotonic().
    """
    stop: KeyboardInterrupt | None = None
    scratch = tempfile.TemporaryDirectory(prefix="step-lab-")
    with scratch:
        lab = _build(flags, command, Path(scratch.name), started)
        bench = lab.bench
        with report_folder(flags.out, Path("reports/step-lab"), report.JSON) as folder:
            bench.display.say(f"{bench.config.model.arch} by recipe {bench.config.recipe}; {bench.runtime.describe()}")
            try:
                run(lab)
            except KeyboardInterrupt as error:
                stop = error
                bench.result.complete = False
                bench.result.warnings.append("interrupted: what came later was not measured")
            return conclude(bench, stop, partial(_write, lab, folder, started), scratch)


def _build(flags: Flags, command: Sequence[str], scratch: Path, started: float) -> Lab:
    """What is to be measured, and with what; ValueError for flags that can't be."""

    def settings(_: Config, cuda: bool) -> Settings:
        seconds = repeat_seconds(quick=flags.quick, cuda=cuda)
        return Settings(repeats=flags.rounds, seconds=seconds, quick=flags.quick)

    bench = build_bench(flags, settings, command=command, display=Display(), scratch=scratch)
    cuda = bench.device.type == "cuda"
    points, sizes = flags.points(cpu=not cuda), flags.sizes()
    if sizes is None and not flags.quick and any(point in points for point in ON_STEPS):
        bench.result.warnings += batch_warnings(bench.recipe, bench.config)
    default = (1024, 512, 2048) if cuda else (32,) if flags.quick else (bench.config.data.batch_size,)
    return Lab(
        bench=bench,
        points=points,
        only=flags.only,
        batch_sizes=default if sizes is None else sizes,
        until=started + 60 * flags.minutes,
        steps=8 if flags.quick else 200,
        seeds=(0, 1) if flags.quick else (0, 1, 2),
        copy=flags.copy_bandwidth,
        matrix=flags.matrix_rate,
    )


def _write(lab: Lab, folder: Path, started: float) -> None:
    """Write the report, print it."""
    bench, say = lab.bench, lab.bench.display.say
    say("\n" + report.write(folder, lab))
    for warning in bench.result.warnings:
        say(f"warning: {warning}")
    say(f"{folder / report.JSON}: {len(bench.result.rows)} rows in {time.monotonic() - started:.0f} s")
    say(json.dumps(report.aims(lab)))
