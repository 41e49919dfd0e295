"""Run folders: where a run is written, and which one is continued."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from data_prep.manifest import PreparedSet
from pipeline.checkpoint import load_checkpoint
from pipeline.config import Config, ConfigError
from pipeline.runtime import Runtime
from pipeline.train import CHECKPOINT

CONFIG = "config.json"


def default_folder(config: Config, prepared: PreparedSet) -> Path:
    """``runs/<set>-<architecture>-<recipe>``; `free_folder` adds a number where it is taken."""
    recipe = Path(config.recipe).stem
    return Path("runs") / f"{prepared.root.resolve().name}-{config.model.arch}-{recipe}"


def free_folder(base: Path) -> Path:
    """``base``, or the first of ``base-2``, ``base-3`` ... that holds no run."""
    folder, number = base, 1
    while (folder / CONFIG).exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def latest_folder(base: Path) -> Path | None:
    """The last of ``base``, ``base-2`` ... that holds a run, None where there is none."""
    taken = None
    folder, number = base, 1
    while (folder / CONFIG).exists():
        taken, number = folder, number + 1
        folder = base.with_name(f"{base.name}-{number}")
    return taken


def checkpoint_path(given: Path) -> Path:
    """A checkpoint, given by its own path or by its run's folder."""
    return given / CHECKPOINT if given.is_dir() else given


def new_folder(out: str | None, base: Path) -> Path:
    """The folder of a new run: ``out``, or a free one beside ``base``. ConfigError if ``out`` is in use."""
    if out is None:
        return free_folder(base)
    folder = Path(out)
    if (folder / CONFIG).exists():
        raise ConfigError(f"{folder} holds a run already; add --resume auto to go on with it, or give another --out")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a folder as --out")
    return folder


def resume_folder(resume: str, out: str | None, base: Path) -> Path | None:
    """The folder of the run that ``--resume`` continues; None if ``auto`` finds nothing to continue."""
    if resume != "auto":
        return checkpoint_path(Path(resume)).parent
    folder = Path(out) if out is not None else latest_folder(base)
    return folder if folder is not None and (folder / CHECKPOINT).exists() else None


def load_for_resume(path: Path, config: Config, prepared: PreparedSet) -> dict[str, Any]:
    """The checkpoint's state, checked to fit the configuration that continues it."""
    state = load_checkpoint(path)
    check_classes(state, prepared, path)
    saved = Config.from_dict(state["config"])
    for section in ("model", "augment", "optimizer", "schedule"):
        before, now = getattr(saved, section), getattr(config, section)
        for name in vars(before):
            if getattr(before, name) != getattr(now, name):
                raise ConfigError(
                    f"{path} was trained with {section}.{name} = {getattr(before, name)}, this command says "
                    f"{getattr(now, name)}; leave that setting out to go on, or start a new run"
                )
    return state


def check_classes(state: dict[str, Any], prepared: PreparedSet, path: Path) -> None:
    """ConfigError unless the checkpoint's classes are those of the prepared set."""
    if tuple(state["classes"]) != prepared.manifest.classes:
        raise ConfigError(f"{path} was trained on other classes than those of {prepared.root}; give the right --data")


def write_config(folder: Path, config: Config, prepared: PreparedSet, runtime: Runtime) -> None:
    """Save the resolved configuration, what ran it, and what the data are."""
    record = {
        "config": config.to_dict(),
        "environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": runtime.describe(),
            "cores": os.cpu_count(),
        },
        "data": {
            "source": prepared.manifest.source,
            "classes": list(prepared.manifest.classes),
            "files": {f.path: f.sha256 for f in prepared.manifest.files},
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{CONFIG}.partial"
    beside.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, folder / CONFIG)
