"""Every suite by its name, in the order in which they run, and how much each measures. Plain data: --help and
--compare need no torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fast_train.benchmarks.instrument.flags import Settings, names_in, repeat_seconds
from fast_train.benchmarks.instrument.records import CopyDetails, Details, ProductDetails
from fast_train.benchmarks.throughput import records
from fast_train.common.cores import usable_cores
from fast_train.pipeline.config.settings import Config

if TYPE_CHECKING:
    from fast_train.benchmarks.instrument.bench import Bench
    from fast_train.benchmarks.throughput.cli import Flags

_SYNTHETIC = "synthetic"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """module: whose ``run`` measures it, in this room or, with a dot, in another one. details: what its rows may say.
    needs: a suite that it compares with. flags: of the command, which only this suite heeds. quick: whether --quick
    measures it unasked. steps: whether it measures training steps, in batches that a CPU takes in."""

    module: str
    details: tuple[type[Details], ...] = ()
    needs: str | None = None
    flags: tuple[str, ...] = ()
    quick: bool = True
    steps: bool = False

    def run(self, bench: Bench[ThroughputSettings]) -> None:
        place = "fast_train.benchmarks." + (self.module if "." in self.module else f"throughput.suites.{self.module}")
        importlib.import_module(place).run(bench)


SUITES: dict[str, Suite] = {
    "roofline": Suite(module="instrument.roofline", details=(CopyDetails, ProductDetails)),
    "augmentation": Suite(module="augmentation", details=(records.AugmentationDetails,), needs="roofline"),
    "decode": Suite(module="decode", details=(records.DecodeDetails,)),
    "loaders": Suite(module="loaders", details=(records.LoaderDetails,)),
    "ladder": Suite(module="ladder", details=(records.RungDetails,), needs="roofline", steps=True),
    "end-to-end": Suite(module="end_to_end", details=(records.EndToEndDetails, records.StepDetails), steps=True),
    "accuracy": Suite(
        module="accuracy", details=(records.AccuracyDetails,), flags=("target_accuracy", "runs", "epochs"), quick=False
    ),
    "startup": Suite(module="startup", details=(records.StartDetails,), quick=False, steps=True),
    "ranks": Suite(module="ranks", details=(records.RanksDetails,), flags=("ranks",), quick=False, steps=True),
    "preparation": Suite(
        module="preparation", details=(records.PreparationDetails,), flags=("prep_dataset",), quick=False
    ),
}


@dataclass(frozen=True, kw_only=True)
class ThroughputSettings(Settings):
    """scaling: also over batch sizes and worker counts. slow_repeats: of what takes many seconds a repeat (starts,
    preparations). target_accuracy, runs, epochs: of time to accuracy; epochs None for the recipe's. accuracy_asked:
    whether a flag asks for time to accuracy. prep_dataset: what to prepare, as `prep-data --dataset` takes it, or
    `OWN_FILES`. ranks: the numbers of ranks to compare; none for 1, 2, 4 ... GPUs."""

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
    ranks: tuple[int, ...] = ()


def settings_of(flags: Flags, config: Config, cuda: bool) -> ThroughputSettings:
    """How much to measure: on a CPU less of it, so that two cores end within a quarter of an hour."""
    quick, main, crops = flags.quick, config.data.batch_size, bool(config.crop.sizes)
    repeats = flags.rounds
    workers = usable_cores() if flags.workers is None else flags.workers
    asked = any(getattr(flags, name) is not None for name in SUITES["accuracy"].flags)
    return ThroughputSettings(
        repeats=repeats,
        warm_up=flags.warm_up,
        seconds=repeat_seconds(quick=quick, cuda=cuda),
        quick=quick,
        scaling=not quick,
        # Batches of photographs are large, and each takes long enough to hide what is done once for it.
        batch_sizes=tuple(sorted({main} if crops else {128, main, 2048} if cuda else {main, 1024})),
        worker_counts=tuple(sorted({*(1 << k for k in range(workers.bit_length())), workers})),
        workers=workers,
        slow_repeats=repeats if cuda or flags.repeats is not None else min(repeats, 2),
        target_accuracy=flags.target_accuracy,
        runs=(5 if cuda else 2) if flags.runs is None else flags.runs,
        epochs=(None if cuda else 2) if flags.epochs is None else flags.epochs,
        accuracy_asked=asked or "accuracy" in names_in(flags.only or ""),
        prep_dataset=flags.prep_dataset or (records.OWN_FILES if crops else _SYNTHETIC),
        ranks=flags.rank_counts(),
    )
