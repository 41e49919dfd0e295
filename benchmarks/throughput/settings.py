"""What `bench-throughput` was asked for: its flags, the suites that they choose, and how much each suite measures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fast_train.benchmarks.instrument.flags import (
    Settings,
    Subject,
    check_counts,
    default_repeats,
    known_names,
    names_in,
    repeat_seconds,
)
from fast_train.benchmarks.throughput.suites import SUITES
from fast_train.pipeline.config.settings import Config, RunConfig
from fast_train.pipeline.errors import ConfigError

_SYNTHETIC = "synthetic"


@dataclass(frozen=True, kw_only=True)
class Flags(Subject):
    """The command's flags; None for one that was not given."""

    out: Path | None = None
    only: str | None = None
    skip: str | None = None
    target_accuracy: float | None = None
    runs: int | None = None
    epochs: int | None = None
    prep_dataset: str | None = None
    warm_up: int = 1
    workers: int | None = None
    compare: Sequence[Path] | None = None
    max_loss: float | None = None

    def check(self) -> None:
        """Also for suites that are not known, and for flags that no suite would heed or that it would refuse."""
        self.check_used(self.chosen_suites())
        repeats = default_repeats(quick=self.quick) if self.repeats is None else self.repeats
        check_counts(repeats, self.warm_up)
        for flag, value in (("--runs", self.runs), ("--workers", self.workers)):
            if value is not None and value < 1:
                raise ValueError(f"{flag} {value} is too few; give 1 or more")
        # What a training and prep-data, which come last, would refuse is refused before anything is measured.
        epochs = RunConfig().epochs if self.epochs is None else self.epochs
        replace(RunConfig(), target_accuracy=self.target_accuracy, epochs=epochs)
        if self.prep_dataset is not None:
            check_dataset(self.prep_dataset)
        super().check()

    def chosen_suites(self) -> list[str]:
        """The suites to run, in their order; ValueError for unknown names, none left, or one that another one needs."""
        only, left_out = (
            [] if text is None else known_names(flag, text, "suite", SUITES)
            for flag, text in (("--only", self.only), ("--skip", self.skip))
        )
        wanted = [name for name in SUITES if (self.only is None or name in only) and name not in left_out]
        if not wanted:
            raise ValueError("--only and --skip leave no suite; name one that is not skipped")
        for name in left_out:
            needing = [suite for suite in wanted if SUITES[suite].needs == name]
            if needing:
                compare = "compare" if len(needing) > 1 else "compares"
                raise ValueError(
                    f"--skip {name}: {' and '.join(needing)} {compare} with it; skip {','.join(needing)} too"
                )
        needed = {SUITES[name].needs for name in wanted}
        return [name for name in SUITES if name in wanted or name in needed]

    def check_used(self, chosen: Sequence[str]) -> None:
        """ConfigError for a flag of a suite that will not run."""
        for suite in SUITES.values():
            for name in suite.flags:
                if getattr(self, name) is None:
                    continue
                flag = f"--{name.replace('_', '-')}"
                if suite.name not in chosen:
                    raise ConfigError(
                        f"{flag} means nothing without the suite {suite.name}; leave it out, or run the suite"
                    )
                if self.quick and not suite.quick:
                    raise ConfigError(
                        f"{flag} means nothing to --quick, which leaves out {suite.name}; leave one of them out"
                    )


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


def settings_of(flags: Flags, config: Config, *, cuda: bool) -> ThroughputSettings:
    """How much to measure: on a CPU less of it, so that two cores end within a quarter of an hour."""
    quick, main = flags.quick, config.data.batch_size
    repeats = default_repeats(quick=quick) if flags.repeats is None else flags.repeats
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


def check_dataset(name: str) -> None:
    """ValueError for a --prep-dataset that prep-data does not know, or a folder in which it finds no images."""
    # Here: the sources take a tenth of a second to import, for a flag that is rarely given.
    from fast_train.common.console import Display
    from fast_train.data_prep.sources import SourceOptions, build_source

    try:
        build_source(name, SourceOptions(), Display()).identity()
    except ValueError as error:
        raise ValueError(str(error).replace("--dataset", "--prep-dataset")) from error
