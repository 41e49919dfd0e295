"""What each format costs: seconds of `prep-data` from start to end of the process, and bytes on the disk."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import replace

from fast_train.benchmarks.instrument.bench import Bench, Measured
from fast_train.benchmarks.instrument.result import Row
from fast_train.benchmarks.throughput.records import PreparationDetails
from fast_train.benchmarks.throughput.settings import ThroughputSettings
from fast_train.benchmarks.throughput.suites.startup import package_environment
from fast_train.data_prep.formats import WRITERS
from fast_train.data_prep.manifest import PreparedSet

SUITE = "preparation"
_TIMEOUT = 1800


def run(bench: Bench[ThroughputSettings]) -> None:
    """Formats in turn, a set of one format each."""
    rows = bench.measure(
        SUITE, "preparation", [_case(bench, name) for name in WRITERS], repeats=bench.settings.slow_repeats
    )
    for row in rows:
        name = row.details.format
        prepared = PreparedSet.open(bench.scratch / f"set-{name}")
        size = sum(entry.bytes for entry in prepared.manifest.files)
        details = replace(row.details, images=sum(prepared.size(split) for split in prepared.splits))
        bench.amend(row, details)
        bytes_row = f"{name}, bytes"
        bench.add(
            Row(suite=SUITE, name=bytes_row, unit="bytes", better="lower", repeats=(float(size),), details=details)
        )


def _case(bench: Bench[ThroughputSettings], name: str) -> Measured[PreparationDetails]:
    out = bench.scratch / f"set-{name}"
    command = [sys.executable, "-m", "fast_train.data_prep.cli", "--dataset", bench.settings.prep_dataset]
    command += ["--formats", name, "--out", str(out)]

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

    details = PreparationDetails(format=name, dataset=bench.settings.prep_dataset)
    return Measured(name=f"{name}, seconds", run=prepare, unit="s", better="lower", details=details)
