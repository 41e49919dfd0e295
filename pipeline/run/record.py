"""What a run's folder says of it."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fast_train.common.files import whole_file
from fast_train.common.text import one_line
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.config.settings import Config, ModelConfig, differences
from fast_train.pipeline.engine.runtime import Runtime
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.loaders import LOADERS


@dataclass(frozen=True)
class _Saved:
    """What a run's folder says of it. files: SHA-256 of the prepared set's, by path. dtype: see `Run`."""

    config: Config
    files: Mapping[str, str]
    dtype: str


def _saved(folder: Path) -> _Saved | None:
    """Of the training in ``folder``, None where there is none; a setting that it does not name has its default."""
    path = folder / CONFIG
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return _Saved(
            config=Config.from_dict(record["config"]),
            files=dict(record["data"]["files"]),
            dtype=str(record["environment"].get("dtype", "a type that was not recorded")),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} can't be read ({one_line(error)}); move {folder} away, or give another --out"
        ) from error


CONFIG = "config.json"


# Beside the network and its training: what a run can't change on the way.
_KEPT = {("data", "normalise"), ("run", "seed")}


def check_resumable(state: dict[str, Any], path: Path, config: Config, prepared: PreparedSet) -> None:
    """ConfigError unless the state, read from ``path``, fits the configuration and the images that continue it."""
    check_classes(state, prepared, path)
    _check_images(path.parent, prepared, LOADERS[config.data.loader].format)
    saved = Config.from_dict(state["config"])
    for section, name, before, now in differences(saved, config):
        if section in ("model", "augment", "optimizer", "schedule") or (section, name) in _KEPT:
            raise ConfigError(
                f"{path} was trained with {section}.{name} = {before}, this command says {now}; leave that setting "
                "out to go on, or start a new run"
            )


def changed_settings(state: dict[str, Any], config: Config) -> Iterator[tuple[str, Any, Any]]:
    """(setting, its value in the checkpoint, its value now) of what a resumed run does in another way; where the data
    lie is none of that."""
    for section, name, before, now in differences(Config.from_dict(state["config"]), config):
        if (section, name) != ("data", "path"):
            yield f"{section}.{name}", before, now


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


def as_trained(prepared: PreparedSet, state: dict[str, Any]) -> PreparedSet:
    """The set with the mean and the deviation of the images that the checkpoint was trained on: the network's input is
    normalised by these, whatever images it is given."""
    mean, std = (tuple(state.get(name, getattr(prepared.manifest, name))) for name in ("mean", "std"))
    return dataclasses.replace(prepared, manifest=dataclasses.replace(prepared.manifest, mean=mean, std=std))


def check_classes(state: dict[str, Any], prepared: PreparedSet, path: Path) -> None:
    """ConfigError unless the checkpoint's classes are those of the prepared set."""
    if tuple(state["classes"]) != prepared.manifest.classes:
        raise ConfigError(f"{path} was trained on other classes than those of {prepared.root}; give the right --data")


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
    """Save the resolved configuration, what ran it, and what the data are."""
    record = {
        "config": config.to_dict(),
        "environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": runtime.describe(),
            "dtype": runtime.dtype_name,
            "cores": os.cpu_count(),
        },
        "data": {
            "source": prepared.manifest.source,
            "classes": list(prepared.manifest.classes),
            "files": {f.path: f.sha256 for f in prepared.manifest.files},
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / CONFIG) as file:
        file.write(json.dumps(record, indent=2).encode() + b"\n")
