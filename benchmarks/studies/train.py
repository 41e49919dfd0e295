"""A study's trainings: each one a run in a folder of its own, kept when the study is called again."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fast_train.benchmarks.studies.base import RECIPE, Options, Variant, variant_config
from fast_train.common.console import PlainConsole
from fast_train.common.text import one_line
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.config.settings import OF_THE_DATA, Config, differences
from fast_train.pipeline.engine.history import accuracy
from fast_train.pipeline.engine.memory import memory_error
from fast_train.pipeline.errors import ConfigError, TrainingDiverged
from fast_train.pipeline.models import build_model
from fast_train.pipeline.paths import CONFIG
from fast_train.pipeline.report.progress import Terminal
from fast_train.pipeline.report.summary import print_accuracy
from fast_train.pipeline.run import session
from fast_train.pipeline.run.plan import plan_training
from fast_train.pipeline.run.record import RunRecord, read

DONE, DIVERGED = "done", "diverged"
#: Of a training without mixed precision.
FLOAT32 = "float32"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training. parameters: of the network. dtype: what convolutions and matrix products were computed in,
    ``float32`` without mixed precision. status: ``done`` or ``diverged``. history: per epoch ``epoch``, ``step``, and
    the fractions ``train_error`` (of augmented images) and ``test_error``."""

    variant: str
    arch: str
    option: str
    seed: int
    parameters: int
    dtype: str
    status: str
    history: tuple[dict[str, Any], ...]


def finished_run(variant: Variant, options: Options, seed: int, folder: Path, prepared: PreparedSet) -> Run | None:
    """The training in ``folder``; None where there is none, or one that has not come to its end.

    Raises ConfigError where the folder holds a training, at its end or not, of other settings or of other images than
    those of ``prepared``, or a damaged one.
    """
    if not (folder / CONFIG).exists():
        return None
    record = read(folder)
    _check_same(record, variant_config(variant, options, seed), prepared)
    return _run(variant, seed, record, DONE) if record.finished else None


def train_variant(variant: Variant, options: Options, seed: int, folder: Path) -> Run:
    """Train, or go on with the training in ``folder``, which `finished_run` must have looked at.

    Raises KeyboardInterrupt after a signal, and ConfigError, naming the training, where it can't be done.
    """
    # Earlier trainings leave something behind: torch.compile runs the step of a ninth network in one process eagerly,
    # and a captured step's memory waits for the collector.
    torch.compiler.reset()
    gc.collect()
    what = f"training {variant.name} with seed {seed}"
    try:
        _train(options.settings(variant, seed), folder)
    except TrainingDiverged as error:
        print(f"{what} diverged: {one_line(error)}", file=sys.stderr)
        return _run(variant, seed, read(folder), DIVERGED)
    except (RuntimeError, MemoryError) as error:
        if (hint := memory_error(error)) is None:
            raise
        raise ConfigError(f"{what} failed: {hint}") from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"{what} failed: {one_line(error)}") from error
    return _run(variant, seed, read(folder), DONE)


def _train(given: dict[str, dict[str, Any]], folder: Path) -> None:
    """Train as ``fast-train`` does, and say on the terminal how it goes."""
    # Paths and names are printed as they are: brackets and colons in them are no markup.
    console = PlainConsole()
    plan = plan_training(given, recipe=RECIPE)
    with Terminal(console) as terminal:
        outcome = session.train(plan, folder=folder, resume="auto", listeners=(terminal,), given=given)
    if outcome.interrupted is not None:
        raise KeyboardInterrupt(outcome.interrupted)
    if outcome.evaluation is not None:
        print_accuracy(console, outcome.evaluation, outcome.prepared)


def _check_same(record: RunRecord, wanted: Config, prepared: PreparedSet) -> None:
    """ConfigError unless two configurations are one, but for what the data decide (the network's input and output),
    and the images that were read are those of ``prepared``, wherever it lies.

    A longer training does not go on from a shorter one: its learning rate would have fallen too soon.
    """
    for section, name, before, now in differences(record.config, wanted):
        if f"{section}.{name}" not in (*OF_THE_DATA, "data.path"):
            raise ConfigError(
                f"{record.folder} holds a training with {section}.{name} = {before}, this command says {now}; "
                "give another --out"
            )
    # Only files of the format that was read: the set may have been prepared in more formats since.
    if (what := record.difference(prepared)) is not None:
        raise ConfigError(
            f"{record.folder} holds a training on other images than {prepared.root}, which differ in {what}; "
            "give another --out"
        )


def _run(variant: Variant, seed: int, record: RunRecord, status: str) -> Run:
    history = tuple(
        {
            "epoch": epoch["epoch"],
            "step": epoch["step"],
            "train_error": 1 - epoch["train_accuracy"],
            "test_error": None if (judged := accuracy(epoch)) is None else 1 - judged,
        }
        for epoch in record.history
    )
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in build_model(record.config.model).parameters())
    return Run(
        variant=variant.name,
        arch=variant.arch,
        option=variant.option,
        seed=seed,
        parameters=parameters,
        dtype=record.dtype,
        status=status,
        history=history,
    )


def last_errors(runs: Sequence[Run], variant: str, error: str) -> list[float]:
    """The errors ``train`` or ``test`` of a variant after the last epoch, one for each seed that came to its end."""
    values = [
        run.history[-1][f"{error}_error"]
        for run in runs
        if run.variant == variant and run.status == DONE and run.history
    ]
    return [value for value in values if value is not None]
