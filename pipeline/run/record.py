"""What a run leaves behind: its record, its checkpoint, and whether another command may go on from them."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from fast_train.common.cores import usable_cores
from fast_train.common.files import whole_file
from fast_train.common.text import one_line
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.config.settings import Config, ModelConfig, differences
from fast_train.pipeline.engine.checkpoint import CHECKPOINT, load_run_state
from fast_train.pipeline.engine.runtime import Runtime
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.loaders import LOADERS
from fast_train.pipeline.run.log import read_history

CONFIG = "config.json"
# Beside the network and its training: what a run can't change on the way.
_KEPT = {("data", "normalise"), ("run", "seed")}


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run's folder says of it. environment: versions, device and the type that it computed in. classes: the
    set's, by number. files: SHA-256 of the prepared set's files, by path. history: a record an epoch."""

    folder: Path
    config: Config
    environment: Mapping[str, Any]
    classes: Sequence[str]
    files: Mapping[str, str]
    history: Sequence[Mapping[str, Any]]

    @property
    def dtype(self) -> str:
        """What convolutions and matrix products were computed in, such as ``float32``."""
        return str(self.environment.get("dtype", "a type that was not recorded"))

    @property
    def finished(self) -> bool:
        if not self.history:
            return False
        last, length = self.history[-1], self.config.run
        return bool(last["step"] >= length.steps if length.steps else last["epoch"] >= length.epochs)

    def differing_file(self, prepared: PreparedSet) -> str | None:
        """The first file of ``prepared``, in the format that the run's loader reads, that the run did not read."""
        format = LOADERS[self.config.data.loader].format
        read = (entry for entry in prepared.manifest.files if entry.format == format)
        return next((entry.path for entry in read if self.files.get(entry.path) != entry.sha256), None)


def read(folder: Path) -> RunRecord:
    """The record of the run in ``folder``; a setting that it does not name has its default.

    Raises ConfigError, in one line, where there is no run or its record is damaged.
    """
    path = folder / CONFIG
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return RunRecord(
            folder=folder,
            config=Config.from_dict(record["config"]),
            environment=dict(record["environment"]),
            classes=tuple(record["data"]["classes"]),
            files=dict(record["data"]["files"]),
            history=read_history(folder),
        )
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} holds no run; give the folder of one that fast-train wrote") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} can't be read ({one_line(error)}); move {folder} away, or give another --out"
        ) from error


@dataclass(frozen=True)
class Saved:
    """A run's checkpoint, read. config: what it was trained by."""

    path: Path
    state: Mapping[str, Any]
    config: Config

    @property
    def weights(self) -> dict[str, Any]:
        """Those that are worth evaluating: the averaged ones where the training kept an average."""
        step = self.state["step"]
        return dict(step["average"] or step["model"])


def load(given: Path) -> Saved:
    """Read a checkpoint, given by its own path or by its run's folder; CheckpointError or ConfigError in one line."""
    path = given / CHECKPOINT if given.is_dir() else given
    state = load_run_state(path)
    return Saved(path, state, Config.from_dict(state["config"]))


#: What a run goes on from: the last such run if there is one, a checkpoint, or nothing.
Resume = Literal["auto"] | Saved | None


def what_to_resume(given: Path | str | None) -> Resume:
    """``auto`` and None as they are, anything else read by `load`."""
    return "auto" if given == "auto" else None if given is None else load(Path(given))


def check_resumable(saved: Saved, config: Config, prepared: PreparedSet) -> None:
    """ConfigError unless the checkpoint fits the configuration and the images that continue it."""
    check_classes(saved, prepared)
    _check_images(saved.path.parent, prepared, LOADERS[config.data.loader].format)
    for section, name, before, now in differences(saved.config, config):
        if section in ("model", "augment", "optimizer", "schedule") or (section, name) in _KEPT:
            raise ConfigError(
                f"{saved.path} was trained with {section}.{name} = {before}, this command says {now}; leave that "
                "setting out to go on, or start a new run"
            )


def _check_images(folder: Path, prepared: PreparedSet, format: str) -> None:
    """ConfigError where a file of the prepared set, in the format that is read, is another one in the run's record."""
    try:
        files = dict(json.loads((folder / CONFIG).read_bytes())["data"]["files"])
    except (OSError, ValueError, LookupError, TypeError):
        # A checkpoint without its run's record.
        return
    for entry in prepared.manifest.files:
        if entry.format == format and files.get(entry.path, entry.sha256) != entry.sha256:
            raise ConfigError(
                f"{folder} was trained on other images than {prepared.root} holds now ({entry.path} differs); "
                "give the right --data, or start a new run"
            )


def as_trained(prepared: PreparedSet, saved: Saved) -> PreparedSet:
    """The set with the mean and the deviation of the images that the checkpoint was trained on: the network's input is
    normalised by these, whatever images it is given."""
    manifest = prepared.manifest
    mean, std = (tuple(saved.state.get(name, getattr(manifest, name))) for name in ("mean", "std"))
    return dataclasses.replace(prepared, manifest=dataclasses.replace(manifest, mean=mean, std=std))


def check_classes(saved: Saved, prepared: PreparedSet) -> None:
    """ConfigError unless the checkpoint's classes are those of the prepared set."""
    if tuple(saved.state["classes"]) != prepared.manifest.classes:
        raise ConfigError(
            f"{saved.path} was trained on other classes than those of {prepared.root}; give the right --data"
        )


def check_shape(model: ModelConfig, prepared: PreparedSet, path: Path) -> None:
    """ConfigError unless the checkpoint's model can take images of the prepared set; ValueError for too small ones."""
    height, width, channels = prepared.manifest.image_shape
    if channels != model.in_channels:
        raise ConfigError(
            f"{path} was trained on images of {model.in_channels} channels, those of {prepared.root} have {channels}; "
            "give the right --data"
        )
    dataclasses.replace(model, image_size=min(height, width))


def write_config(folder: Path, config: Config, prepared: PreparedSet, runtime: Runtime) -> None:
    record = {
        "config": config.to_dict(),
        "environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": runtime.describe(),
            "dtype": runtime.dtype_name,
            "cores": usable_cores(),
        },
        "data": {
            "source": prepared.manifest.source,
            "classes": list(prepared.manifest.classes),
            "files": {f.path: f.sha256 for f in prepared.manifest.files},
        },
    }
    with whole_file(folder / CONFIG) as file:
        file.write(json.dumps(record, indent=2).encode() + b"\n")
