"""What a run leaves behind: its record, its checkpoint, and whether another command may go on from them."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from fast_train.common.cores import usable_cores
from fast_train.common.files import whole_file
from fast_train.common.text import is_plain, one_line, show, show_path
from fast_train.data_prep.images import Reading
from fast_train.data_prep.keep import Keeping
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.config.recipe import Given
from fast_train.pipeline.config.settings import SECTIONS, Config, ModelConfig, RunConfig, differences
from fast_train.pipeline.engine.checkpoint import CheckpointError, DamagedCheckpoint, load_run_state
from fast_train.pipeline.engine.history import JUDGES
from fast_train.pipeline.engine.identity import difference, identity
from fast_train.pipeline.engine.memory import memory_error
from fast_train.pipeline.engine.runtime import Runtime
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.loaders import LOADERS
from fast_train.pipeline.paths import CHECKPOINT, CONFIG, checkpoints, run_folder
from fast_train.pipeline.run.log import read_history

# Beside the network and its training: what a run can't change on the way.
_KEPT = {("data", "normalise"), ("data", "batch_size"), ("run", "seed")}


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run's folder says of it. environment: versions, device and the type that it computed in. data: the set's
    `identity`. history: a record an epoch."""

    folder: Path
    config: Config
    environment: Mapping[str, Any]
    data: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]

    @property
    def classes(self) -> Sequence[str]:
        """The set's, by number."""
        return tuple(self.data["classes"])

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

    def difference(self, prepared: PreparedSet) -> str | None:
        """In what the images of ``prepared`` differ from those of the run; None where they are the same."""
        return difference(self.data, prepared, LOADERS[self.config.data.loader].format)


def read(folder: Path) -> RunRecord:
    """The record of the run in ``folder``; a setting that it does not name has its default.

    Raises ConfigError, in one line, where there is no run or its record is damaged.
    """
    path = folder / CONFIG
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        data = dict(record["data"])
        return RunRecord(
            folder=folder,
            config=Config.from_dict(record["config"]),
            environment=dict(record["environment"]),
            data={**data, "classes": list(data["classes"]), "files": dict(data["files"])},
            history=read_history(folder),
        )
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} holds no run; give the folder of one that fast-train wrote") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path} can't be read ({one_line(error)}); move {folder} away, or give another --out"
        ) from error


@dataclass(frozen=True)
class Saved:
    """A run's checkpoint, read. config: what it was trained by. notes: what there is to say of it, a line each."""

    path: Path
    state: Mapping[str, Any]
    config: Config
    notes: tuple[str, ...] = ()

    @property
    def weights(self) -> dict[str, Any]:
        """Those that are worth evaluating: the averaged ones where the training kept an average."""
        step = self.state["step"]
        return dict(step["average"] or step["model"])


def load(given: Path) -> Saved:
    """Read a checkpoint, given by its own path or by its run's folder, whose newest whole one takes the place of a last
    one that is damaged. CheckpointError or ConfigError in one line."""
    if not given.is_dir():
        return _load_file(given)
    try:
        return _load_file(given / CHECKPOINT)
    except CheckpointError as error:
        if (given / CHECKPOINT).exists() and not isinstance(error, DamagedCheckpoint):
            raise
        newest = _newest_whole(given)
        if newest is None:
            raise CheckpointError(
                f"{_reason(error)}, and {show_path(given)} holds no whole one; give another run, or move it "
                "away to begin anew"
            ) from error
        note = f"note: {_reason(error)}; {show_path(newest.path)}, the newest whole one, takes its place"
        return dataclasses.replace(newest, notes=(note, *newest.notes))


def _reason(error: CheckpointError) -> str:
    return one_line(error).partition(";")[0]


def _newest_whole(folder: Path) -> Saved | None:
    newest: Saved | None = None
    for path in checkpoints(folder):
        with suppress(CheckpointError):
            saved = _load_file(path)
            if newest is None or saved.state["done_steps"] > newest.state["done_steps"]:
                newest = saved
    return newest


def _load_file(path: Path) -> Saved:
    state = load_run_state(path)
    # Checkpoints of earlier versions know neither crops nor selection.
    found = {"crop": {}, "selection": {}, **state["config"]}
    settings = all(isinstance(found.get(section), dict) for section in SECTIONS)
    odd = None if settings else "settings"
    if odd is None:
        config = Config.from_dict(state["config"])
        odd = _unusable(state, config.model)
    if odd is not None:
        raise DamagedCheckpoint(f"{show(path)} holds no usable {odd}; use a checkpoint that fast-train wrote")
    note = f"note: {show_path(path)} is of an earlier version, without a checksum that tells whether it is whole"
    return Saved(path, state, config, (note,) if state["format_version"] == 1 else ())


def _unusable(state: Mapping[str, Any], model: ModelConfig) -> str | None:
    """What of a checkpoint's state, in a word, is not of the kind that a training writes for its network."""
    names = state["classes"]
    if len(names) != model.num_classes or not all(isinstance(name, str) and is_plain(name) for name in names):
        return "classes"
    for name in ("mean", "std"):
        values = state.get(name, [0.0] * model.in_channels)
        if not isinstance(values, list) or len(values) != model.in_channels or not all(map(_is_level, values)):
            return name
    for name, kind in (("reading", Reading), ("keeping", Keeping)):
        try:
            kind.from_dict(state.get(name, {}))
        except (ValueError, TypeError, AttributeError):
            return name
    return _unusable_progress(state)


def _unusable_progress(state: Mapping[str, Any]) -> str | None:
    """The same of the plain numbers that say how far the training was."""
    steps, loader, history = state["done_steps"], state["loader"], state["history"]
    if not loader.keys() >= {"epoch", "step"} or not all(map(_is_count, loader.values())):
        return "loader"
    epoch_steps = loader.get("count", 0) // max(loader.get("batch_size", 1), 1)
    # Those of an earlier version do not say how many steps an epoch has.
    if not _is_count(steps) or (epoch_steps and not 0 <= steps - loader["epoch"] * epoch_steps <= epoch_steps):
        return "done_steps"
    if not _is_amount(state["train_seconds"]):
        return "train_seconds"
    if not all(isinstance(v, (int, float)) and v >= 0 for v in state["schedule"].values()):
        return "schedule"
    scaler = state["step"].get("scaler")
    if not isinstance(scaler, dict) or not all(map(_is_amount, scaler.values())):
        return "scaler"
    # The last epoch may not be over.
    if len(history) - loader["epoch"] not in (0, 1):
        return "history"
    at = 0
    for number, record in enumerate(history, 1):
        if not _is_record(record) or record["epoch"] != number or not at <= record["step"] <= steps:
            return "history"
        at = record["step"]
    return None


def _is_record(value: object) -> bool:
    """Whether it is what is recorded of an epoch."""
    if not isinstance(value, dict) or not value.keys() >= {"epoch", "step"}:
        return False
    numbers = all(v is None or (isinstance(v, (int, float)) and math.isfinite(v)) for v in value.values())
    judged = [value[name] for name in (f"{split}_accuracy" for split in JUDGES) if name in value]
    accuracies = judged and all(v is None or _is_level(v) for v in judged)
    return numbers and bool(accuracies) and _is_count(value["epoch"]) and _is_count(value["step"])


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_amount(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < math.inf


def _is_level(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= 1


#: What a run goes on from: the last such run if there is one, a checkpoint, or nothing.
Resume = Literal["auto"] | Saved | None


def what_to_resume(given: Path | str | None) -> Resume:
    """``auto`` and None as they are, anything else read by `load`."""
    return "auto" if given == "auto" else None if given is None else load(Path(given))


def check_resumable(saved: Saved, config: Config, prepared: PreparedSet, given: Given) -> None:
    """ConfigError unless the checkpoint fits the configuration, with the settings that are ``given``, and the images
    that continue it."""
    check_classes(saved, prepared)
    _check_images(saved, prepared, LOADERS[config.data.loader].format)
    # Those that are given first: others may follow from them, as augment.* from crop.size.
    changed = sorted(differences(saved.config, config), key=lambda change: change[1] not in given.get(change[0], {}))
    for section, name, before, now in changed:
        if section not in ("data", "run") or (section, name) in _KEPT:
            raise ConfigError(
                f"{show(saved.path)} was trained with {section}.{name} = {before}, this command says {now}; leave that "
                "setting out to go on, or start a new run"
            )
    _check_length(saved, config.run, prepared.size("train") // config.data.batch_size)


def _check_length(saved: Saved, run: RunConfig, steps_per_epoch: int) -> None:
    """ConfigError where the run is shorter than it was trained already."""
    done, end = saved.state["done_steps"], run.total_steps(steps_per_epoch)
    if done > end:
        length = f"run.epochs {run.epochs} ends" if run.steps is None else f"run.steps {run.steps} ends"
        raise ConfigError(
            f"{show(saved.path)} is at step {done:,}, and {length} at {end:,}; leave that setting out, or give more"
        )


def _check_images(saved: Saved, prepared: PreparedSet, format: str) -> None:
    """ConfigError where the prepared set holds other images than the checkpoint, or its run's record, knows."""
    known, folder = saved.state.get("data"), run_folder(saved.path)
    try:
        if known is None:
            # A checkpoint of an earlier version: its run's record may lie beside it.
            known = json.loads((folder / CONFIG).read_bytes())["data"]
        changed = difference(known, prepared, format)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return
    if changed is not None:
        raise ConfigError(
            f"{show(saved.path)} was trained on other images than {show(prepared.root)} holds: they differ in "
            f"{changed}; give the right --data, or start a new run"
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


def check_shape(saved: Saved, prepared: PreparedSet, shape: tuple[int, int, int]) -> None:
    """ConfigError unless the checkpoint's model can take images of the prepared set, which come as ``shape``, (H, W,
    C)."""
    config, (height, width, channels) = saved.config, shape
    if channels != config.model.in_channels:
        raise ConfigError(
            f"{saved.path} was trained on images of {config.model.in_channels} channels, those of {prepared.root} have "
            f"{channels}; give the right --data"
        )
    if prepared.manifest.ragged and not config.crop.sizes:
        raise ConfigError(
            f"{saved.path} was trained on images of one shape, and those of {prepared.root} keep their own; prepare "
            f"them with --size {config.model.image_size}"
        )
    dataclasses.replace(config.model, image_size=min(height, width))


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """ConfigError where a checkpoint lacks what the block loads from it, or holds it in another shape."""
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError) as error:
        if memory_error(error) is not None:
            raise
        raise ConfigError(
            f"{show_path(path)} does not fit this network ({one_line(error)}); use another one"
        ) from error


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
        "data": identity(prepared),
    }
    with whole_file(folder / CONFIG) as file:
        file.write(json.dumps(record, indent=2).encode() + b"\n")
