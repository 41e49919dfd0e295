"""A study's trainings: each one a run of `fast-train` in a folder of its own, kept when the study is called again."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fast_train.benchmarks.studies.base import RECIPE, Variant
from fast_train.common.text import one_line
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline import cli, commands
from fast_train.pipeline.config.recipe import resolve
from fast_train.pipeline.config.settings import Config, differences
from fast_train.pipeline.engine.memory import memory_error
from fast_train.pipeline.errors import ConfigError, TrainingDiverged
from fast_train.pipeline.loaders import LOADERS
from fast_train.pipeline.models import build_model
from fast_train.pipeline.run.log import METRICS
from fast_train.pipeline.run.record import _Saved, _saved

DONE, DIVERGED = "done", "diverged"
#: Of a training without mixed precision.
FLOAT32 = "float32"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all trainings of a study share. epochs, steps: the length, at most one of them; neither for the paper's
    64,000 steps. device, amp, loader: as `fast-train` takes them, None for its choice."""

    data: str
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    device: str | None = None
    amp: str | None = None
    loader: str | None = None

    def settings(self) -> dict[str, Any]:
        """As flags that are given over a recipe, nested by section."""
        data = {"path": self.data, "batch_size": self.batch_size, "loader": self.loader}
        # The papers' arithmetic without mixed precision is float32 throughout.
        run = {"epochs": self.epochs, "steps": self.steps, "device": self.device, "amp": self.amp, "tf32": False}
        return {"data": _given(data), "run": _given(run)}


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

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {**asdict(self), "history": list(self.history)}


class Interrupted(Exception):
    """A training was stopped by a signal and saved; ``status`` is the exit status that says which."""

    def __init__(self, status: int) -> None:
        super().__init__(f"stopped by a signal ({status - 128})")
        self.status = status


def variant_config(variant: Variant, options: Options, seed: int) -> Config:
    """What the training is configured as, before the data's own shape is known. ConfigError for what can't be."""
    return resolve(RECIPE, _settings(variant, options, seed))


def finished_run(variant: Variant, options: Options, seed: int, folder: Path, prepared: PreparedSet) -> Run | None:
    """The training in ``folder``; None where there is none, or one that has not come to its end.

    Raises ConfigError where the folder holds a training, at its end or not, of other settings or of other images than
    those of ``prepared``, or a damaged one.
    """
    saved = _saved(folder)
    if saved is None:
        return None
    _check_same(saved, variant_config(variant, options, seed), prepared, folder)
    try:
        history = _history(folder)
    except (OSError, ValueError):
        return None
    if not history:
        return None
    last, length = history[-1], saved.config.run
    finished = last["step"] >= length.steps if length.steps else last["epoch"] >= length.epochs
    return _run(variant, seed, folder, DONE) if finished else None


def train_variant(variant: Variant, options: Options, seed: int, folder: Path) -> Run:
    """Train, or go on with the training in ``folder``, which `finished_run` must have looked at.

    Raises Interrupted after a signal, and ConfigError, naming the training, where it can't be done.
    """
    # Of the trainings before: torch.compile runs the step of a ninth network in one process eagerly, and a captured
    # step's memory waits for the collector.
    torch.compiler.reset()
    gc.collect()
    flags = [*_flags(variant, options, seed), "--brief", "--out", str(folder), "--resume", "auto"]
    what = f"training {variant.name} with seed {seed}"
    try:
        status = commands.run(*cli.parse_flags(flags))
    except TrainingDiverged as error:
        print(f"{what} diverged: {one_line(error)}", file=sys.stderr)
        return _run(variant, seed, folder, DIVERGED)
    except (RuntimeError, MemoryError) as error:
        if (hint := memory_error(error)) is None:
            raise
        raise ConfigError(f"{what} failed: {hint}") from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"{what} failed: {one_line(error)}") from error
    if status > 128:
        raise Interrupted(status)
    return _run(variant, seed, folder, DONE)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _settings(variant: Variant, options: Options, seed: int) -> dict[str, Any]:
    settings = options.settings()
    settings["run"]["seed"] = seed
    settings["model"] = {"arch": variant.arch}
    for section, values in variant.settings.items():
        settings[section] = {**settings.get(section, {}), **values}
    return settings


def _flags(variant: Variant, options: Options, seed: int) -> list[str]:
    """The command line that stands for `_settings`."""
    flags = ["--recipe", RECIPE]
    for section, values in _settings(variant, options, seed).items():
        for name, value in values.items():
            # --epochs also takes back the recipe's length in steps, which --set does not.
            if (section, name) == ("run", "epochs"):
                flags += ["--epochs", str(value)]
            else:
                flags += ["--set", f"{section}.{name}={json.dumps(value)}"]
    return flags


def _check_same(saved: _Saved, wanted: Config, prepared: PreparedSet, folder: Path) -> None:
    """ConfigError unless two configurations are one, but for what the data decide (the network's input and output),
    and the images that were read are those of ``prepared``, wherever it lies.

    A longer training does not go on from a shorter one: its learning rate would have fallen too soon.
    """
    of_data = {("model", name) for name in ("num_classes", "image_size", "in_channels")} | {("data", "path")}
    for section, name, before, now in differences(saved.config, wanted):
        if (section, name) not in of_data:
            raise ConfigError(
                f"{folder} holds a training with {section}.{name} = {before}, this command says {now}; "
                "give another --out"
            )
    # Of other formats there may be files now that were not there then.
    read = LOADERS[wanted.data.loader].format
    for entry in prepared.manifest.files:
        if entry.format == read and saved.files.get(entry.path) != entry.sha256:
            raise ConfigError(
                f"{folder} holds a training on other data: {entry.path} of {prepared.root} has changed since; "
                "give another --out"
            )


def _history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]


def _run(variant: Variant, seed: int, folder: Path, status: str) -> Run:
    history = tuple(
        {
            "epoch": record["epoch"],
            "step": record["step"],
            "train_error": 1 - record["train_accuracy"],
            "test_error": None if record["test_accuracy"] is None else 1 - record["test_accuracy"],
        }
        for record in _history(folder)
    )
    saved = _saved(folder)
    assert saved is not None, "fast-train saves the configuration before it trains"
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in build_model(saved.config.model).parameters())
    return Run(
        variant=variant.name,
        arch=variant.arch,
        option=variant.option,
        seed=seed,
        parameters=parameters,
        dtype=saved.dtype,
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
