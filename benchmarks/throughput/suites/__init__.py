"""Every suite by its name, in the order in which they run. Plain data: --help and --compare need no torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fast_train.benchmarks.instrument.records import CopyDetails, Details, ProductDetails
from fast_train.benchmarks.throughput.records import (
    AccuracyDetails,
    AugmentationDetails,
    EndToEndDetails,
    LoaderDetails,
    PreparationDetails,
    RungDetails,
    StepDetails,
)

if TYPE_CHECKING:
    from fast_train.benchmarks.instrument.bench import Bench
    from fast_train.benchmarks.throughput.settings import ThroughputSettings

_HERE = "fast_train.benchmarks.throughput.suites"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """module: whose ``run`` measures it. details: what its rows may say. needs: a suite that it compares with. flags:
    of the command, which only this suite heeds. quick: whether --quick measures it. steps: whether it measures
    training steps, in batches that a CPU takes in."""

    name: str
    module: str
    details: tuple[type[Details], ...] = ()
    needs: str | None = None
    flags: tuple[str, ...] = ()
    quick: bool = True
    steps: bool = False

    def run(self, bench: Bench[ThroughputSettings]) -> None:
        importlib.import_module(self.module).run(bench)


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            name="roofline",
            module="fast_train.benchmarks.instrument.roofline",
            details=(CopyDetails, ProductDetails),
        ),
        Suite(
            name="augmentation",
            module=f"{_HERE}.augmentation",
            details=(AugmentationDetails,),
            needs="roofline",
        ),
        Suite(name="loaders", module=f"{_HERE}.loaders", details=(LoaderDetails,)),
        Suite(name="ladder", module=f"{_HERE}.ladder", details=(RungDetails,), needs="roofline", steps=True),
        Suite(name="end-to-end", module=f"{_HERE}.end_to_end", details=(EndToEndDetails, StepDetails), steps=True),
        Suite(
            name="accuracy",
            module=f"{_HERE}.accuracy",
            details=(AccuracyDetails,),
            flags=("target_accuracy", "runs", "epochs"),
            quick=False,
        ),
        Suite(name="startup", module=f"{_HERE}.startup", quick=False, steps=True),
        Suite(
            name="preparation",
            module=f"{_HERE}.preparation",
            details=(PreparationDetails,),
            flags=("prep_dataset",),
            quick=False,
        ),
    )
}
