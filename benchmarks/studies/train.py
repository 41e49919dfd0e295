"""A study's trainings: each one a run of `fast-train` in a folder of its own, kept when the study is called again."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.studies.base import RECIPE, Variant
from pipeline import cli
from pipeline.config import Config, differences
from pipeline.errors import ConfigError
from pipeline.logs import METRICS
from pipeline.models import build_model
from pipeline.recipe import resolve
from pipeline.runs import CONFIG

DONE, DIVERGED = "done", "diverged"


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
        run = {"epochs": self.epochs, "steps": self.steps, "device": self.device, "amp": self.amp}
        return {"data": _given(data), "run": _given(run)}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training. parameters: of the network. status: ``done`` or ``diverged``. history: per epoch ``epoch``,
    ``step``, and the fractions ``train_error`` (of augmented images) and ``test_error``."""

    variant: str
    arch: str
    option: str
    seed: int
    parameters: int
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


def train_variant(variant: Variant, options: Options, seed: int, folder: Path) -> tuple[Run, bool]:
    """Train, or go on, or find the finished training in ``folder``. The run, and whether anything was trained.

    Raises Interrupted after a signal, ConfigError where the folder holds a training with other settings, and
    ValueError where `fast-train` refuses its input (which it has printed).
    """
    if _is_finished(folder, variant_config(variant, options, seed)):
        return _run(variant, seed, folder, DONE), False
    # Of the trainings before: torch.compile runs the step of a ninth network in one process eagerly, and a captured
    # step's memory waits for the collector.
    torch.compiler.reset()
    gc.collect()
    status = cli.main([*_flags(variant, options, seed), "--brief", "--out", str(folder), "--resume", "auto"])
    if status > 128:
        raise Interrupted(status)
    if status not in (0, 1):
        raise ValueError(f"training {variant.name} with seed {seed} failed; see the line above")
    return _run(variant, seed, folder, DIVERGED if status else DONE), True


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


def _is_finished(folder: Path, wanted: Config) -> bool:
    """Whether the folder holds a training of these settings that came to its end. ConfigError if of others."""
    try:
        saved = _saved_config(folder)
    except (OSError, json.JSONDecodeError, KeyError):
        return False
    _check_same(saved, wanted, folder)
    try:
        history = _history(folder)
    except (OSError, ValueError):
        return False
    if not history:
        return False
    last = history[-1]
    return bool(last["step"] >= saved.run.steps if saved.run.steps else last["epoch"] >= saved.run.epochs)


def _saved_config(folder: Path) -> Config:
    """The configuration of the training in ``folder``; what it does not name has its default."""
    return Config.from_dict(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["config"])


def _check_same(saved: Config, wanted: Config, folder: Path) -> None:
    """ConfigError unless two configurations are one, but for what the data decide: the network's input and output.

    A longer training does not go on from a shorter one: its learning rate would have fallen too soon.
    """
    fitted = {"num_classes", "image_size", "in_channels"}
    for section, name, before, now in differences(saved, wanted):
        if not (section == "model" and name in fitted):
            raise ConfigError(
                f"{folder} holds a training with {section}.{name} = {before}, this command says {now}; "
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
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in build_model(_saved_config(folder).model).parameters())
    return Run(
        variant=variant.name,
        arch=variant.arch,
        option=variant.option,
        seed=seed,
        parameters=parameters,
        status=status,
        history=history,
    )


def last_errors(runs: Sequence[Run], variant: str, error: str) -> list[float]:
    """The errors ``train`` or ``test`` of a variant behind the last epoch, one for each seed that came to its end."""
    values = [
        run.history[-1][f"{error}_error"]
        for run in runs
        if run.variant == variant and run.status == DONE and run.history
    ]
    return [value for value in values if value is not None]
