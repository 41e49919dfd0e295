"""Every suite by its name, in the order in which they run, and how much each measures. Plain data: --help and
--compare need no torch."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fast_train.benchmarks.instrument.flags import Settings, names_in, repeat_seconds
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
from fast_train.pipeline.config.settings import Config

if TYPE_CHECKING:
    from fast_train.benchmarks.instrument.bench import Bench
    from fast_train.benchmarks.throughput.cli import Flags

_SYNTHETIC = "synthetic"
_HERE = "fast_train.benchmarks.throughput.suites"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """module: whose ``run`` measures it. details: what its rows may say. needs: a suite that it compares with. flags:
    of the command, which only this suite heeds. quick: whether --quick measures it unasked. steps: whether it measures
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


@dataclass(frozen=True, kw_only=True)
class ThroughputSettings(Settings):
    """scaling: also over batch sizes and worker counts. slow_repeats: of what takes many seconds a repeat (starts,
    preparations). target_accuracy, runs, epochs: of time to accuracy; epochs None for the recipe's. accuracy_asked:
    whether a flag asks for time to accuracy. prep_dataset: what to prepare, as `prep-data --dataset` takes it."""

    scaling: bool = True
    batch_sizes: tuple[int, ...] = (128, 512, 2048)
    worker_counts: tuple[int, ...] = (1, 2)
    workers: int = 2
    slow_repeats: int = 5
    target_accuracy: float | None = None
    runs: int = 5
    epochs: int | None = None
    accuracy_asked: bool = False
    prep_dataset: str = _SYNTHETIC


def settings_of(flags: Flags, config: Config, cuda: bool) -> ThroughputSettings:
    """How much to measure: on a CPU less of it, so that two cores end within a quarter of an hour."""
    quick, main = flags.quick, config.data.batch_size
    repeats = flags.rounds
    workers = os.cpu_count() or 1 if flags.workers is None else flags.workers
    asked = any(getattr(flags, name) is not None for name in SUITES["accuracy"].flags)
    return ThroughputSettings(
        repeats=repeats,
        warm_up=flags.warm_up,
        seconds=repeat_seconds(quick=quick, cuda=cuda),
        quick=quick,
        scaling=not quick,
        batch_sizes=tuple(sorted({128, main, 2048} if cuda else {main, 1024})),
        worker_counts=tuple(sorted({*(1 << k for k in range(workers.bit_length())), workers})),
        workers=workers,
        slow_repeats=repeats if cuda or flags.repeats is not None else min(repeats, 2),
        target_accuracy=flags.target_accuracy,
        runs=(5 if cuda else 2) if flags.runs is None else flags.runs,
        epochs=(None if cuda else 2) if flags.epochs is None else flags.epochs,
        accuracy_asked=asked or "accuracy" in names_in(flags.only or ""),
        prep_dataset=flags.prep_dataset or _SYNTHETIC,
    )
