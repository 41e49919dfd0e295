"""Time to accuracy: whole trainings over seeds, by the wall clock, with start-up and compilation apart."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fast_train.benchmarks.instrument.bench import Bench
from fast_train.benchmarks.instrument.cost import TRAINING_FLOPS, training_flops
from fast_train.benchmarks.instrument.records import Details
from fast_train.benchmarks.instrument.result import Row
from fast_train.benchmarks.throughput.records import AccuracyDetails, Diverged, EpochEnd, Training
from fast_train.benchmarks.throughput.suites import ThroughputSettings
from fast_train.pipeline.engine.history import accuracy
from fast_train.pipeline.engine.listener import Listener, Ready
from fast_train.pipeline.errors import TrainingDiverged
from fast_train.pipeline.run.session import Session
from fast_train.pipeline.run.weights import read_weights

SUITE = "accuracy"
#: The row of the accuracies after the last epoch.
FINAL = "test accuracy at the end"
#: The row of the seconds from the first step to the end of the last epoch, evaluations included.
ENDED = "seconds to the end"


class _Clock(Listener):
    """Notes when the step was ready, and when each epoch, its evaluation included, was over: seconds since then."""

    def on_ready(self, ready: Ready) -> None:
        self.ready, self.seconds = ready, list[float]()
        self.began_at, self.began = time.time(), time.perf_counter()

    def on_epoch_end(self, record: Mapping[str, Any]) -> None:
        self.seconds.append(time.perf_counter() - self.began)


def run(bench: Bench[ThroughputSettings]) -> None:
    """Rows of the accuracy at the end, of the seconds to it, and, with a target, of the seconds to that where every
    seed reached it. A seed that diverged has no figures, did not reach the target, and makes the command fail."""
    settings = bench.settings
    if bench.device.type == "cpu" and not settings.accuracy_asked:
        images = settings.runs * (settings.epochs or bench.recipe.run.epochs) * bench.prepared.size("train")
        if images * training_flops(bench.recipe.model) > TRAINING_FLOPS:
            bench.skip(
                SUITE,
                "time to accuracy",
                f"a CPU takes long to train {bench.recipe.model.arch}; --epochs or --target-accuracy asks for it",
            )
            return
    runs, diverged = _trainings(bench)
    if diverged:
        # The command fails: over the seeds that went well a recipe looks better than it is.
        seeds = ", ".join(str(lost.seed) for lost in diverged)
        figures = f"the figures are of {len(runs)} of {settings.runs} seeds" if runs else "there are no figures"
        lost_runs = f"{len(diverged)} of {settings.runs} trainings diverged (seed {seeds})"
        warning = f"time to accuracy: {lost_runs}; {figures}"
        bench.result.warnings.append(warning)
        bench.impossible.append(warning)
    times = tuple(run.epochs[-1].seconds for run in runs)
    if runs:
        _add_ends(bench, runs, diverged, times)
    target = settings.target_accuracy
    if target is None:
        return
    name = f"seconds to {target:.2%}"
    missed = {run.seed: f"{run.accuracy:.2%}" for run in runs if not run.reached}
    missed |= {lost.seed: "diverged" for lost in diverged}
    if missed:
        reasons = ", ".join(f"seed {seed}: {missed[seed]}" for seed in sorted(missed))
        bench.skip(SUITE, name, f"not reached by {reasons}")
        return
    _add_times(bench, name, times)


def _add_ends(
    bench: Bench[ThroughputSettings], runs: Sequence[Training], diverged: Sequence[Diverged], times: tuple[float, ...]
) -> None:
    details = AccuracyDetails(
        runs=tuple(runs),
        diverged=tuple(diverged),
        seeds=bench.settings.runs,
        target=bench.settings.target_accuracy,
        epochs=runs[0].planned_epochs,
        # That of the step alone may be smaller: see `benchmarks.instrument.cost.fit_batch`.
        batch_size=bench.recipe.data.batch_size,
    )
    finals = tuple(run.accuracy for run in runs)
    bench.add(Row(suite=SUITE, name=FINAL, unit="accuracy", statistic="mean", repeats=finals, details=details))
    _add_times(bench, ENDED, times)


def _add_times(bench: Bench[ThroughputSettings], name: str, times: tuple[float, ...]) -> None:
    row = Row(suite=SUITE, name=name, unit="s", better="lower", statistic="mean", repeats=times, details=Details())
    bench.add(row)


def _trainings(bench: Bench[ThroughputSettings]) -> tuple[list[Training], list[Diverged]]:
    """One training of each seed: those that came to an end, and those that diverged. The step is compiled once."""
    torch.compiler.reset()
    run = dataclasses.replace(bench.recipe.run, seed=0, target_accuracy=bench.settings.target_accuracy)
    if bench.settings.epochs is not None:
        run = dataclasses.replace(run, epochs=bench.settings.epochs, steps=None)
    config = dataclasses.replace(bench.recipe, run=run)
    weights = None if config.model.weights is None else read_weights(Path(config.model.weights))
    runs, diverged = list[Training](), list[Diverged]()
    seeds = range(bench.settings.runs)
    with (
        bench.display.progress("time to accuracy", len(seeds)) as advance,
        Session(config, bench.prepared, weights) as session,
    ):
        for seed in seeds:
            try:
                done = _train(bench, session, seed)
                runs.append(done)
                # Said at once: of many trainings, those done before an interruption are worth knowing.
                bench.display.say(f"seed {seed}: {done.accuracy:.2%}, {done.train_seconds:.2f} s of training")
            except TrainingDiverged as error:
                diverged.append(Diverged(seed=seed, reason=str(error)))
                bench.skip(SUITE, f"seed {seed}", str(error))
            advance(1)
            bench.watch.sample()
    return runs, diverged


def _train(bench: Bench[ThroughputSettings], session: Session, seed: int) -> Training:
    """One training; KeyboardInterrupt where a signal ended it."""
    folder, clock = bench.scratch / f"seed-{seed}", _Clock()
    folder.mkdir()
    started_at, started = time.time(), time.perf_counter()
    outcome = session.train(folder, seed=seed, listeners=(clock,))
    if outcome.interrupted is not None:
        raise KeyboardInterrupt(outcome.interrupted)
    assert outcome.accuracy is not None, "the last epoch is always evaluated"
    epochs = (
        EpochEnd(epoch=record["epoch"], seconds=seconds, accuracy=accuracy(record))
        for record, seconds in zip(outcome.history, clock.seconds, strict=True)
    )
    return Training(
        seed=seed,
        started_at=started_at,
        start_up_seconds=clock.began - started - clock.ready.seconds,
        planned_epochs=clock.ready.epochs,
        began_at=clock.began_at,
        compile_seconds=clock.ready.seconds,
        train_seconds=outcome.train_seconds,
        accuracy=outcome.accuracy,
        reached=outcome.target_reached,
        epochs=tuple(epochs),
    )
