"""Training by several ranks, each on a GPU of its own: how the rate grows with their number."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import torch

from fast_train.benchmarks.instrument.bench import Bench, Measured
from fast_train.benchmarks.instrument.cost import in_batches
from fast_train.benchmarks.throughput.records import RanksDetails
from fast_train.benchmarks.throughput.suites import ThroughputSettings
from fast_train.benchmarks.throughput.suites.startup import run_module
from fast_train.pipeline.errors import ConfigError

SUITE = "ranks"
_TIMEOUT = 900
_ALONE = "one process, without torchrun"


def run(bench: Bench[ThroughputSettings]) -> None:
    """One process, and each number of ranks: with the recipe's batch, and with as many images a rank as it has."""
    if bench.device.type != "cuda":
        bench.skip(SUITE, "scaling", "there is no NVIDIA GPU, and on a CPU ranks share the cores that one process has")
        return
    devices = torch.cuda.device_count()
    counts = bench.settings.ranks or sorted({*(1 << k for k in range(devices.bit_length())), devices})
    if max(counts) > devices:
        raise ConfigError(f"--ranks {max(counts)} on {devices} GPU{'s'[: devices != 1]}; give {devices} or fewer")
    if devices == 1:
        bench.skip(SUITE, "scaling", "there is one GPU; one rank on it is compared with a process without torchrun")
    measure(bench, counts)


def measure(bench: Bench[ThroughputSettings], counts: Sequence[int]) -> None:
    batch = bench.config.data.batch_size
    cases = [_case(bench, _ALONE, None, batch)]
    for count in counts:
        name = f"{count} rank{'s'[: count != 1]}"
        if batch % count:
            bench.skip(SUITE, f"{name}, batch {batch:,}", f"the batch does not divide by {count}")
        else:
            cases.append(_case(bench, f"{name}, batch {batch:,}", count, batch))
        if count > 1:
            cases.append(_case(bench, f"{name}, batch {batch * count:,}", count, batch * count))
    rows = bench.measure(SUITE, "training", cases, repeats=bench.settings.slow_repeats)
    alone = next((row.value for row in rows if row.name == _ALONE), None)
    for row in rows:
        if alone is not None:
            efficiency = row.value / (alone * row.details.ranks)
            bench.amend(row, dataclasses.replace(row.details, efficiency=efficiency))


def _case(bench: Bench[ThroughputSettings], name: str, count: int | None, batch: int) -> Measured[RanksDetails]:
    """count: of ranks that torchrun starts; None for a process without it."""
    path = bench.scratch / f"ranks-{count}-{batch}.json"
    path.write_text(json.dumps(in_batches(bench.config, batch).to_dict()), encoding="utf-8")
    start = ["fast_train.benchmarks.throughput.child", str(path), str(bench.settings.seconds)]
    if count is not None:
        start = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", *start]

    def rate() -> float:
        said = run_module("training", start, timeout=_TIMEOUT, late="no rate")
        return float(json.loads(said.strip().splitlines()[-1])["rate"])

    return Measured(name=name, run=rate, details=RanksDetails(ranks=count or 1, batch_size=batch))
