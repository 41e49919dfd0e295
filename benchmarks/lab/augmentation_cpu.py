"""The augmentation on the CPU: the code that runs beside the PyTorch reference, in turn.

A repeat augments batches that are gathered out of the training split in memory, as the resident loader does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle

import torch
from torch import Tensor

from fast_train.benchmarks.instrument.bench import Bench, Measured
from fast_train.benchmarks.instrument.flags import Settings
from fast_train.benchmarks.instrument.timing import Rate, timed
from fast_train.benchmarks.lab.records import AUGMENTATION_CPU, CpuAugmentationDetails
from fast_train.kernels.augment import normalisation_table
from fast_train.kernels.augment_cpu import augment_cpu
from fast_train.kernels.augment_reference import augment_reference
from fast_train.kernels.spec import NO_AUGMENT, AugmentSpec

CASES = {
    "normalisation only": NO_AUGMENT,
    "crop 4, flip": AugmentSpec(pad=4, flip=True),
    "crop 4, flip, cutout 8": AugmentSpec(pad=4, flip=True, cutout=8),
    "reflect crop 4, flip": AugmentSpec(pad=4, pad_mode="reflect", flip=True),
    "reflect crop 4, flip, cutout 8": AugmentSpec(pad=4, pad_mode="reflect", flip=True, cutout=8),
}
DTYPES = (torch.float32, torch.bfloat16)
REFERENCE, CPU = "reference", "cpu"
IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {REFERENCE: augment_reference, CPU: augment_cpu}
_BATCH = 512


def run(bench: Bench[Settings]) -> None:
    """Images a second of each implementation, in each type and case; with --quick of one case."""
    if bench.prepared.manifest.ragged is not None:
        bench.skip(AUGMENTATION_CPU, "all of it", "it is about the augmentation of images of one shape")
        return
    cases = dict(list(CASES.items())[-1:]) if bench.settings.quick else CASES
    packed = bench.prepared.packed("train")
    split = torch.tensor(packed.images)
    measured = [
        _case(bench, split, implementation, dtype, case, spec)
        for dtype in DTYPES
        for case, spec in cases.items()
        for implementation in IMPLEMENTATIONS
    ]
    rows = bench.measure(AUGMENTATION_CPU, "augmentation on the CPU", measured)
    references = {(row.details.type, row.details.case): row for row in rows if row.details.implementation == REFERENCE}
    for row in rows:
        reference = references.get((row.details.type, row.details.case))
        if reference is not None and row is not reference:
            bench.amend(row, replace(row.details, over_reference=row.value / reference.value))


def _case(
    bench: Bench[Settings], split: Tensor, implementation: str, dtype: torch.dtype, case: str, spec: AugmentSpec
) -> Measured[CpuAugmentationDetails]:
    """split: images uint8 [N, H, W, C]."""
    channels, batch = split.shape[3], min(_BATCH, len(split))
    table = normalisation_table([0.5] * channels, [0.25] * channels, dtype)
    parts = cycle(torch.randperm(len(split))[: len(split) // batch * batch].view(-1, batch).unbind())
    augment, epoch = IMPLEMENTATIONS[implementation], torch.tensor(0)

    def call() -> Tensor:
        return augment(split, next(parts), table, spec=spec, seed=0, epoch=epoch, gather=True)

    kind = str(dtype).removeprefix("torch.")
    return Measured(
        name=f"{kind}, {case}: {implementation}",
        run=Rate(timed(call, torch.device("cpu")), items=batch, seconds=bench.settings.seconds),
        details=CpuAugmentationDetails(implementation=implementation, type=kind, case=case, batch=batch),
    )
