"""What each format costs: seconds of `prep-data` from start to end of the process, and bytes on the disk."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time

from fast_train.benchmarks.instrument.bench import Bench, Measured
from fast_train.benchmarks.instrument.result import Row
from fast_train.benchmarks.throughput.suites.startup import package_environment
from fast_train.data_prep.formats import WRITERS
from fast_train.data_prep.manifest import PreparedSet

SUITE = "preparation"
_TIMEOUT = 1800


def run(bench: Bench) -> None:
    """Formats in turn, a set of one format each."""
    if bench.settings.quick:
        bench.skip(SUITE, "formats", "left out by --quick")
        return
    rows = bench.measure(
        SUITE, "preparation", [_case(bench, name) for name in WRITERS], repeats=bench.settings.slow_repeats
    )
    for row in rows:
        name = row.details["format"]
        prepared = PreparedSet.open(bench.scratch / f"set-{name}")
        size = sum(entry.bytes for entry in prepared.manifest.files)
        images = sum(prepared.size(split) for split in prepared.splits)
        bench.amend(row, images=images)
        bench.add(
            Row(
                suite=SUITE,
                name=f"{name}, bytes",
                unit="bytes",
                better="lower",
                repeats=(float(size),),
                details={"format": name, "images": images, "dataset": bench.settings.prep_dataset},
            )
        )


def _case(bench: Bench, name: str) -> Measured:
    out = bench.scratch / f"set-{name}"
    command = [
        sys.executable,
        "-m",
        "fast_train.data_prep.cli",
        "--dataset",
        bench.settings.prep_dataset,
        "--formats",
        name,
    ]
    command += ["--out", str(out)]

    def prepare() -> float:
        if out.exists():
            shutil.rmtree(out)
        began = time.perf_counter()
        try:
            done = subprocess.run(
                command, env=package_environment(), capture_output=True, text=True, timeout=_TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"prep-data was not done after {_TIMEOUT} s") from error
        seconds = time.perf_counter() - began
        if done.returncode:
            raise ValueError(f"prep-data failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        return seconds

    details = {"format": name, "dataset": bench.settings.prep_dataset}
    return Measured(name=f"{name}, seconds", run=prepare, unit="s", better="lower", details=details)
