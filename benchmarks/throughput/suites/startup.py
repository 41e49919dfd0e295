"""From the start of the process to the first trained step: eager, and compiled with an empty and a filled cache."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from fast_train.benchmarks.instrument.bench import Bench, Measured
from fast_train.benchmarks.instrument.records import Details
from fast_train.benchmarks.throughput.records import StartDetails
from fast_train.benchmarks.throughput.suites import ThroughputSettings
from fast_train.pipeline.engine.runtime import resolve_runtime

SUITE = "startup"
EAGER, COLD, WARM = "eager", "compiled, empty cache", "compiled, filled cache"
_TIMEOUT = 600
_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def run(bench: Bench[ThroughputSettings]) -> None:
    """Processes in turn. The warm-up round fills the cache of those that find it filled."""
    parts: dict[str, list[Mapping[str, float]]] = {EAGER: [], COLD: [], WARM: []}
    cases = [_case(bench, EAGER, parts[EAGER])]
    try:
        resolve_runtime(dataclasses.replace(bench.config.run, compile=True))
        cases += [_case(bench, name, parts[name]) for name in (COLD, WARM)]
    except ValueError as error:
        bench.skip(SUITE, "compiled", str(error))
    for row in bench.measure(SUITE, "start", cases, repeats=bench.settings.slow_repeats):
        # Those of the warm-up come first.
        kept = parts[row.name][-len(row.repeats) :]
        seconds = {part: median(taken.get(part, 0.0) for taken in kept) for part in kept[0]}
        bench.amend(row, StartDetails(seconds=seconds))


def package_environment() -> dict[str, str]:
    """The environment, with this project on the path of a child's Python."""
    root = str(Path(__file__).absolute().parents[4])
    there = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{there}" if there else root}


def run_module(
    what: str, arguments: Sequence[str], *, timeout: int, late: str, environment: Mapping[str, str] | None = None
) -> str:
    """Run a module of this project in a process of its own: its output. ValueError where that fails: it begins with
    ``what``, or with ``late`` after ``timeout`` seconds. environment: variables besides this process's."""
    command = [sys.executable, "-m", *arguments]
    variables = {**package_environment(), **(environment or {})}
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{late} after {timeout} s") from error
    if done.returncode:
        raise ValueError(f"{what} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return done.stdout


def _case(bench: Bench[ThroughputSettings], name: str, parts: list[Mapping[str, float]]) -> Measured[Details]:
    """parts: gets the seconds of each start by what they went into."""
    compiled = name != EAGER
    run = dataclasses.replace(bench.config.run, compile=compiled, graph=None if compiled else False)
    path = bench.scratch / f"start-{'compiled' if compiled else 'eager'}.json"
    path.write_text(json.dumps(dataclasses.replace(bench.config, run=run).to_dict()), encoding="utf-8")
    arguments = ["fast_train.benchmarks.throughput.child", str(path)]
    filled = tempfile.mkdtemp(dir=bench.scratch)

    def start() -> float:
        cache = filled if name == WARM else tempfile.mkdtemp(dir=bench.scratch)
        caches = {variable: str(Path(cache, variable)) for variable in _CACHES} if compiled else {}
        began = time.time()
        said = run_module("the process", arguments, timeout=_TIMEOUT, late="no step", environment=caches)
        ended, told = time.time(), json.loads(said.strip().splitlines()[-1])
        seconds, value = told["seconds"], float(told["done_at"]) - began
        # The process knows only its processor time before it came to our code.
        start = seconds["start"] + value - sum(seconds.values())
        parts.append({**seconds, "start": start, "exit": ended - told["done_at"]})
        return value

    return Measured(name=name, run=start, unit="s", better="lower", details=Details())
