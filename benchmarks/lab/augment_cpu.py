"""Augmentation on the CPU: images/s of the reference and of the code that runs, in turn.

The metric: images per second of wall time of `kernels.augment`, batches gathered out of a resident split of 50,000
images of 32x32x3, as the resident loader does. A round times one pass of `--images` images through each case, both
implementations one after the other, so what else the machine does meets them alike. The first round warms up and does
not count. The table gives the median and the best round: on a shared machine they can be far apart.

    python -m fast_train.benchmarks.lab.augment_cpu

Prints a table; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fast_train.kernels.augment import normalisation_table
from fast_train.kernels.augment_cpu import augment_cpu
from fast_train.kernels.augment_reference import augment_reference
from fast_train.kernels.spec import NO_AUGMENT, AugmentSpec

SPLIT_IMAGES = 50_000
CASES = {
    "normalisation only": NO_AUGMENT,
    "crop 4, flip": AugmentSpec(pad=4, flip=True),
    "crop 4, flip, cutout 8": AugmentSpec(pad=4, flip=True, cutout=8),
    "reflect crop 4, flip": AugmentSpec(pad=4, pad_mode="reflect", flip=True),
    "reflect crop 4, flip, cutout 8": AugmentSpec(pad=4, pad_mode="reflect", flip=True, cutout=8),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {"reference": augment_reference, "cpu": augment_cpu}


def measure(*, batch_size: int, images: int, rounds: int) -> list[dict[str, Any]]:
    """One row per type and case: for each implementation the images/s of every round, in order."""
    split = torch.randint(0, 256, (SPLIT_IMAGES, 32, 32, 3), dtype=torch.uint8)
    rows = []
    for dtype_name, dtype in DTYPES.items():
        table = normalisation_table([0.5] * 3, [0.25] * 3, dtype)
        for name, spec in CASES.items():
            rates: dict[str, list[float]] = {implementation: [] for implementation in IMPLEMENTATIONS}
            for epoch in range(rounds + 1):
                options = dict(spec=spec, seed=0, epoch=torch.tensor(epoch), gather=True)
                batches = torch.randperm(SPLIT_IMAGES)[:images].split(batch_size)
                for implementation, run in IMPLEMENTATIONS.items():
                    started = time.perf_counter()
                    for indices in batches:
                        run(split, indices, table, **options)
                    rates[implementation].append(images / (time.perf_counter() - started))
            rows.append({"type": dtype_name, "case": name, **{k: v[1:] for k, v in rates.items()}})
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure, print; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m fast_train.benchmarks.lab.augment_cpu", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--batch-size", type=int, default=512, help="images a call (default: 512)")
    parser.add_argument("--images", type=int, default=25_600, help="images a round, at most 50,000 (default: 25,600)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default: 7)")
    parser.add_argument("--threads", type=int, help="PyTorch's threads (default: its own choice)")
    flags = parser.parse_args(arguments)
    for name, value in vars(flags).items():
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}; give 1 or more")
    if flags.images > SPLIT_IMAGES:
        parser.error(f"--images is {flags.images}; give at most {SPLIT_IMAGES}")
    if flags.threads is not None:
        torch.set_num_threads(flags.threads)
    rows = measure(batch_size=flags.batch_size, images=flags.images, rounds=flags.rounds)
    print(f"{'images/s: median (best)':<42} {'reference':>19} {'cpu':>19}")
    for row in rows:
        figures = [f"{statistics.median(row[k]):,.0f} ({max(row[k]):,.0f})" for k in IMPLEMENTATIONS]
        print(f"{row['type'] + ', ' + row['case']:<42} {figures[0]:>19} {figures[1]:>19}")
    print(json.dumps({"threads": torch.get_num_threads(), "batch_size": flags.batch_size, "rows": rows}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
