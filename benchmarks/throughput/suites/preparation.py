"""What each format costs: seconds of `prep-data` from start to end of the process, and bytes on the disk."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace

from fast_train.benchmarks.instrument.bench import Bench, Measured
from fast_train.benchmarks.instrument.result import Row
from fast_train.benchmarks.peers.written import class_folders
from fast_train.benchmarks.throughput.records import OWN_FILES, PreparationDetails
from fast_train.benchmarks.throughput.suites import ThroughputSettings
from fast_train.benchmarks.throughput.suites.startup import run_module
from fast_train.data_prep.formats import WRITERS
from fast_train.data_prep.manifest import PreparedSet

SUITE = "preparation"
_TIMEOUT = 1800


def run(bench: Bench[ThroughputSettings]) -> None:
    """Formats in turn, a set of one format each."""
    given = bench.settings.prep_dataset
    if given == OWN_FILES:
        given = f"folder:{class_folders(bench.prepared, bench.scratch)}"
    cases = [_case(bench, name, given) for name in WRITERS]
    rows = bench.measure(SUITE, "preparation", cases, repeats=bench.settings.slow_repeats)
    for row in rows:
        name = row.details.format
        prepared = PreparedSet.open(bench.scratch / f"set-{name}")
        size = float(sum(entry.bytes for entry in prepared.manifest.files))
        details = replace(row.details, images=sum(prepared.size(split) for split in prepared.splits))
        bench.amend(row, details)
        bench.add(
            Row(suite=SUITE, name=f"{name}, bytes", unit="bytes", better="lower", repeats=(size,), details=details)
        )


def _case(bench: Bench[ThroughputSettings], name: str, given: str) -> Measured[PreparationDetails]:
    out = bench.scratch / f"set-{name}"
    arguments = ["fast_train.data_prep.cli", "--dataset", given, "--formats", name, "--out", str(out)]

    def prepare() -> float:
        if out.exists():
            shutil.rmtree(out)
        began = time.perf_counter()
        run_module("prep-data", arguments, timeout=_TIMEOUT, late="prep-data was not done")
        return time.perf_counter() - began

    details = PreparationDetails(format=name, dataset=bench.settings.prep_dataset)
    return Measured(name=f"{name}, seconds", run=prepare, unit="s", better="lower", details=details)
