"""Run folders: where a run is written, and which one is continued."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from data_prep.manifest import PreparedSet
from pipeline.config import Config, differences
from pipeline.errors import ConfigError
from pipeline.files import whole_file
from pipeline.loaders import LOADERS
from pipeline.models import ModelConfig
from pipeline.runtime import Runtime
from pipeline.train import CHECKPOINT

CONFIG = "config.json"


def default_folder(config: Config, prepared: PreparedSet) -> Path:
    """``runs/<set>-<architecture>-<recipe>``; `new_folder` adds a number where it is taken."""
    recipe = Path(config.recipe).stem
    return Path("runs") / f"{prepared.root.resolve().name}-{config.model.arch}-{recipe}"


def _taken(base: Path) -> list[Path]:
    """Those of ``base``, ``base-2``, ``base-3`` ... that hold a run, up to the first that does not."""
    folders: list[Path] = []
    while (_numbered(base, len(folders) + 1) / CONFIG).exists():
        folders.append(_numbered(base, len(folders) + 1))
    return folders


def _numbered(base: Path, number: int) -> Path:
    return base if number == 1 else base.with_name(f"{base.name}-{number}")


def checkpoint_path(given: Path) -> Path:
    """A checkpoint, given by its own path or by its run's folder."""
    return given / CHECKPOINT if given.is_dir() else given


def new_folder(out: str | None, base: Path) -> Path:
    """The folder of a new run: ``out``, or a free one beside ``base``. ConfigError if ``out`` is in use."""
    if out is None:
        return _numbered(base, len(_taken(base)) + 1)
    folder = Path(out)
    if (folder / CONFIG).exists():
        raise ConfigError(f"{folder} holds a run already; add --resume auto to go on with it, or give another --out")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a folder as --out")
    return folder


def resume_folder(resume: str, out: str | None, base: Path) -> Path | None:
    """The folder of the run that ``--resume`` continues; None if ``auto`` finds no run.

    It may lack a checkpoint: a run that was killed before its first one begins anew in its own folder.
    """
    if resume != "auto":
        return checkpoint_path(Path(resume)).parent
    candidates = _taken(base)[-1:] if out is None else [Path(out)]
    return next((folder for folder in candidates if (folder / CONFIG).exists()), None)


def check_resumable(state: dict[str, Any], path: Path, config: Config, prepared: PreparedSet) -> None:
    """ConfigError unless the state, read from ``path``, fits the configuration and the images that continue it."""
    check_classes(state, prepared, path)
    _check_images(path.parent, prepared, LOADERS[config.data.loader].format)
    saved = Config.from_dict(state["config"])
    for section, name, before, now in differences(saved, config):
        if section in ("model", "augment", "optimizer", "schedule"):
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
