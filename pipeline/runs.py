"""Run folders: where a run is written, and which one is continued."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_prep.manifest import PreparedSet
from pipeline.checkpoint import CheckpointError, load_run_state
from pipeline.config import Config, differences
from pipeline.errors import ConfigError
from pipeline.files import whole_file
from pipeline.loaders import LOADERS
from pipeline.models import ModelConfig
from pipeline.runtime import Runtime
from pipeline.train import CHECKPOINT

CONFIG = "config.json"
# Beside the network and its training: what a run can't change on the way.
_KEPT = {("data", "normalise"), ("run", "seed")}


def default_folder(config: Config, prepared: PreparedSet) -> Path:
    """``runs/<set>-<architecture>-<recipe>``; `claim_folder` adds a number where it is taken."""
    recipe = Path(config.recipe).stem
    return Path("runs") / f"{prepared.root.resolve().name}-{config.model.arch}-{recipe}"


def _numbers(base: Path) -> list[int]:
    """Which of ``base``, ``base-2``, ``base-3`` ... hold a run, in rising order."""
    pattern = re.compile(re.escape(base.name) + r"(?:-([2-9]|[1-9]\d+))?")
    found = (pattern.fullmatch(path.parent.name) for path in base.parent.glob(f"*/{CONFIG}"))
    return sorted(int(match[1] or 1) for match in found if match)


def _numbered(base: Path, number: int) -> Path:
    return base if number == 1 else base.with_name(f"{base.name}-{number}")


def checkpoint_path(given: Path) -> Path:
    """A checkpoint, given by its own path or by its run's folder."""
    return given / CHECKPOINT if given.is_dir() else given


# Open folders that are locked.
_held: set[int] = set()


class Saved(NamedTuple):
    """A checkpoint that a run goes on from."""

    path: Path
    state: dict[str, Any]


class FolderInUse(ConfigError):
    """Another process writes into the run's folder."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run's folder, which is made if need be: no other process writes into it meanwhile.

    Raises FolderInUse where another does, and ConfigError where a file has that name.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a folder as --out")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(
                f"another fast-train is writing into {folder}; wait for it, or give another --out"
            ) from None
        except OSError:
            # A disk without locks: then nobody looks after it.
            pass
        _clear(folder)
        yield
    finally:
        with suppress(OSError):
            # Up to the first that something was written into.
            for path in made:
                path.rmdir()
        _held.discard(descriptor)
        os.close(descriptor)


def _clear(folder: Path) -> None:
    """Remove what processes that were killed left of the files that they were writing (`whole_file`)."""
    for left in folder.glob(".*.part"):
        number = re.fullmatch(r"\..+\.(\d+)\.part", left.name)
        if number is None:
            continue
        try:
            os.kill(int(number[1]), 0)
        except ProcessLookupError:
            left.unlink(missing_ok=True)
        except (OSError, OverflowError):
            continue


def _release_in_child() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


# A lock lasts as long as any process has its file open: a loader's workers, which are forked, may outlive a training
# that was killed, and must not keep its folder from the one that goes on with it.
os.register_at_fork(after_in_child=_release_in_child)


def _new_folder(out: str | None, base: Path, held: ExitStack) -> Path:
    """The folder of a new run, `claimed` within ``held``: ``out``, or a free one beside ``base``. ConfigError if
    ``out`` is in use."""
    number = max(_numbers(base), default=0)
    while out is None:
        number += 1
        with suppress(FolderInUse):
            held.enter_context(claimed(_numbered(base, number)))
            return _numbered(base, number)
    folder = Path(out)
    if (folder / CONFIG).exists():
        raise ConfigError(f"{folder} holds a run already; add --resume auto to go on with it, or give another --out")
    held.enter_context(claimed(folder))
    return folder


def _last_folder(out: str | None, base: Path) -> Path | None:
    """The folder of the run that ``--resume auto`` continues; None if there is none.

    It may lack a checkpoint: a run that was killed before its first one begins anew in its own folder.
    """
    candidates = [Path(out)] if out is not None else [_numbered(base, number) for number in _numbers(base)[-1:]]
    return next((folder for folder in candidates if (folder / CONFIG).exists()), None)


def _folder_of(saved: Saved) -> Path:
    """The folder of the run that the checkpoint belongs to. ConfigError where that is no run's, or where its last
    checkpoint is further, which would be lost."""
    path, folder = saved.path, saved.path.parent
    if not (folder / CONFIG).exists():
        raise ConfigError(f"{folder} holds {path.name} but no run; give the folder of a new one as --out")
    last = folder / CHECKPOINT
    if last.exists() and not last.samefile(path):
        done, further = saved.state["done_steps"], _steps_of(last)
        if further > done:
            raise ConfigError(
                f"{last} is at step {further:,}, {path} at {done:,}; give a new folder as --out, so that the later one "
                "is kept"
            )
    return folder


def _steps_of(checkpoint: Path) -> int:
    """0 for a damaged one, of which nothing can be lost."""
    try:
        return int(load_run_state(checkpoint)["done_steps"])
    except CheckpointError:
        return 0


def claim_folder(base: Path, resume: str | None, out: str | None, saved: Saved | None, held: ExitStack) -> Path:
    """The folder of a new run, or of the one that ``resume`` (``auto``, or where ``saved`` comes from) means, `claimed`
    within ``held``. base: where a new run lies that has no ``out``."""
    folder = None
    if resume == "auto":
        folder = _last_folder(out, base)
    elif saved is not None and out is None:
        folder = _folder_of(saved)
    if folder is None:
        return _new_folder(out, base, held)
    held.enter_context(claimed(folder))
    return folder


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
