"""Time to accuracy: whole trainings over seeds, by the wall clock, with start-up and compilation apart."""

from __future__ import annotations

import dataclasses
import io
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.bench import Bench
from benchmarks.result import Row
from benchmarks.sizes import TRAINING_FLOPS, training_flops
from pipeline.display import Display
from pipeline.logs import RunLog
from pipeline.train import Trainer, TrainingDiverged

SUITE = "accuracy"
#: The row of the accuracies behind the last epoch, whose details are the runs.
FINAL = "test accuracy at the end"


class _ClockedLog(RunLog):
    """Notes when each epoch, its evaluation included, was over: seconds since ``began``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, [])
        self.began = 0.0
        self.seconds: list[float] = []

    def add(self, record: dict[str, Any]) -> None:
        self.seconds.append(time.perf_counter() - self.began)
        super().add(record)


def run(bench: Bench) -> None:
    """Two rows: the accuracy at the end, and the seconds to the target where every seed reached it."""
    settings = bench.settings
    if settings.quick:
        bench.skip(SUITE, "time to accuracy", "left out by --quick")
        return
    if bench.device.type == "cpu" and not settings.accuracy_asked:
        images = settings.runs * (settings.epochs or bench.recipe.run.epochs) * bench.prepared.size("train")
        if images * training_flops(bench.recipe.model) > TRAINING_FLOPS:
            bench.skip(
                SUITE,
                "time to accuracy",
                f"a CPU takes long to train {bench.recipe.model.arch}; --epochs or --target-accuracy asks for it",
            )
            return
    runs = _trainings(bench)
    if not runs:
        return
    details = {"runs": runs, "target": settings.target_accuracy, "epochs": runs[0]["planned_epochs"]}
    finals = tuple(float(run["accuracy"]) for run in runs)
    bench.add(
        Row(suite=SUITE, name=FINAL, unit="accuracy", statistic="mean", repeats=finals,
            details=details)
    )  # fmt: skip
    target = settings.target_accuracy
    if target is None:
        return
    name = f"seconds to {target:.2%}"
    missed = [f"seed {run['seed']}: {run['accuracy']:.2%}" for run in runs if not run["reached"]]
    if missed:
        bench.skip(SUITE, name, f"not reached by {', '.join(missed)}")
        return
    times = tuple(float(run["epochs"][-1]["seconds"]) for run in runs)
    bench.add(Row(suite=SUITE, name=name, unit="s", better="lower", statistic="mean", repeats=times, details={}))


def _trainings(bench: Bench) -> list[dict[str, Any]]:
    """One training of each seed, in JSON's types. They share one Trainer, so that the step is compiled once."""
    torch.compiler.reset()
    run = dataclasses.replace(bench.recipe.run, seed=0, target_accuracy=bench.settings.target_accuracy)
    if bench.settings.epochs is not None:
        run = dataclasses.replace(run, epochs=bench.settings.epochs, steps=None)
    runs = []
    seeds = range(bench.settings.runs)
    started_at, started = time.time(), time.perf_counter()
    with (
        bench.display.progress("time to accuracy", len(seeds)) as advance,
        Trainer(dataclasses.replace(bench.recipe, run=run), bench.prepared, bench.runtime) as trainer,
    ):
        for seed in seeds:
            if seed:
                started_at, started = time.time(), time.perf_counter()
                trainer.restart(seed)
            start = {"seed": seed, "started_at": started_at, "start_up_seconds": time.perf_counter() - started}
            try:
                done = start | _train(trainer, bench.scratch / f"seed-{seed}")
                runs.append(done)
                # Said at once: of many trainings, those behind an interruption are worth knowing.
                bench.display.say(f"seed {seed}: {done['accuracy']:.2%}, {done['train_seconds']:.2f} s of training")
            except TrainingDiverged as error:
                bench.skip(SUITE, f"seed {seed}", str(error))
            advance(1)
            bench.watch.sample()
    return runs


def _train(trainer: Trainer, folder: Path) -> dict[str, Any]:
    """The training itself. ``seconds`` of an epoch count from the first step's start."""
    folder.mkdir()
    compile_seconds = trainer.prepare()
    log = _ClockedLog(folder)
    display = Display(Console(file=io.StringIO()), epochs=trainer.epochs)
    log.began, began_at = time.perf_counter(), time.time()
    try:
        outcome = trainer.fit(folder, log, display)
    finally:
        display.close()
        log.close()
    if outcome.interrupted is not None:
        raise KeyboardInterrupt
    epochs = [
        {"epoch": record["epoch"], "seconds": seconds, "accuracy": record["test_accuracy"]}
        for record, seconds in zip(trainer.history, log.seconds, strict=True)
    ]
    return {
        "planned_epochs": trainer.epochs,
        "began_at": began_at,
        "compile_seconds": compile_seconds,
        "train_seconds": outcome.train_seconds,
        "accuracy": trainer.history[-1]["test_accuracy"],
        "reached": bool(outcome.target_reached),
        "epochs": epochs,
    }
