"""What `fast_train` offers to Python, on `pipeline.run` and the pieces of `pipeline.engine`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from fast_train.common.console import Display, PlainConsole
from fast_train.common.files import user_path
from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.formats import FormatOptions
from fast_train.data_prep.manifest import PreparedSet
from fast_train.data_prep.prepare import Request
from fast_train.data_prep.prepare import prepare as prepare_set
from fast_train.data_prep.sources import SourceOptions
from fast_train.pipeline import models
from fast_train.pipeline.config.architectures import Activation, Fusion, Shortcut, Stem
from fast_train.pipeline.config.convert import build
from fast_train.pipeline.config.recipe import check_overruled, merge
from fast_train.pipeline.config.settings import SECTIONS, LoaderName, ModelConfig, settings
from fast_train.pipeline.device import data_device
from fast_train.pipeline.engine.evaluate import Evaluation
from fast_train.pipeline.engine.listener import Listener
from fast_train.pipeline.engine.runtime import resolve_device
from fast_train.pipeline.errors import ConfigError, check_name
from fast_train.pipeline.loaders import Loader, build_loader
from fast_train.pipeline.paths import of_export
from fast_train.pipeline.ranks import current, joined
from fast_train.pipeline.report.progress import Terminal
from fast_train.pipeline.run import export as exporting
from fast_train.pipeline.run import session
from fast_train.pipeline.run.plan import plan_evaluation, plan_training
from fast_train.pipeline.run.predict import TrainedModel
from fast_train.pipeline.run.record import Saved, load, what_to_resume

PathLike = Path | str


def prepare(
    dataset: PathLike = "cifar10",
    *,
    out: PathLike | None = None,
    formats: Sequence[str] = ("packed",),
    options: SourceOptions | None = None,
    encoding: FormatOptions | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> PreparedSet:
    """Make a prepared set, or find it there: what `prep-data` does.

    dataset: ``cifar10``, ``cifar100``, ``folder:DIR``, ``csv:FILE``, ``parquet:PATH`` or ``synthetic``; a Path is a
    folder of images. out: None for ``data/`` and the set's name. formats: of ``packed``, ``ffcv`` and ``dali``.
    progress: show it on standard output.
    Raises PreparedSetError, a ValueError, for what can't be done; nothing that looks like a set is left behind then.
    """
    for name, value, kind in (("options", options, SourceOptions), ("encoding", encoding, FormatOptions)):
        if not isinstance(value, kind | None):
            raise PreparedSetError(f"{name} is {value!r}; give {kind.__name__}(...), of {kind.__module__}")
    names = (formats,) if isinstance(formats, str) else formats
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise PreparedSetError(f"formats is {formats!r}; give a list of names, such as ['packed', 'ffcv']")
    request = Request(
        dataset=dataset if isinstance(dataset, str) else f"folder:{dataset}",
        out=None if out is None else _path(out),
        formats=tuple(names),
        options=options or SourceOptions(),
        encoding=encoding or FormatOptions(),
        overwrite=overwrite,
    )
    return prepare_set(request, Display(PlainConsole(quiet=not progress)))


def open_set(path: PathLike, *, verify: bool = False) -> PreparedSet:
    """Open a prepared set; PreparedSetError, a ValueError, where it is not whole. verify: compare all SHA-256 sums."""
    return PreparedSet.open(_path(path), verify=verify)


def make_loader(
    prepared: PreparedSet | PathLike,
    split: str = "train",
    *,
    loader: LoaderName = "resident",
    batch_size: int = 512,
    seed: int = 0,
    device: torch.device | str = "cpu",
    train: bool | None = None,
    workers: int | None = None,
) -> Loader:
    """A loader of one split, a context manager that yields batches: images uint8 [N, H, W, C], labels int64 [N] and
    indices int64 [N] on ``device``; for ``mps`` they come on the CPU, where an augmenter for ``mps`` takes them.

    train: batches of one fixed size in the order of (seed, epoch), by default of the split ``train``; otherwise each
    image once, in the order of the file. Raises ValueError for what can't be loaded.
    """
    return build_loader(
        loader,
        prepared if isinstance(prepared, PreparedSet) else open_set(prepared),
        split,
        batch_size=batch_size,
        seed=seed,
        device=data_device(resolve_device(str(device))),
        train=split == "train" if train is None else train,
        workers=workers,
    )


def build_model(
    arch: str = "resnet18",
    *,
    num_classes: int = 10,
    image_size: int = 32,
    in_channels: int = 3,
    stem: Stem = "auto",
    shortcut: Shortcut | None = None,
    activation: Activation = "relu",
    zero_init_residual: bool = False,
    fuse: Fusion = "none",
) -> torch.nn.Module:
    """A new network on the CPU, [N, in_channels, H, W] to logits [N, num_classes]; ConfigError for one that is not.

    The arguments are the settings ``model.*`` and ``run.fuse`` of docs/recipes.md. A speednet needs
    `pipeline.models.initialise_from_data` before it is trained.
    """
    given = {
        "arch": arch,
        "num_classes": num_classes,
        "image_size": image_size,
        "in_channels": in_channels,
        "stem": stem,
        "shortcut": shortcut,
        "activation": activation,
        "zero_init_residual": zero_init_residual,
    }
    return models.build_model(build(ModelConfig, given, "model"), fuse=fuse)


def train(
    data: PreparedSet | PathLike | None = None,
    *,
    recipe: str | None = None,
    out: PathLike | None = None,
    resume: PathLike | None = None,
    weights: PathLike | None = None,
    stop_after: int | None = None,
    listeners: Sequence[Listener] = (),
    progress: bool = False,
    **given: Any,
) -> session.Outcome:
    """Train, as `fast-train` does, and leave a run folder.

    data: a prepared set, or its folder; None for ``data/cifar10``, or that of the run that goes on. recipe: a name or a
    TOML file; None for what suits the machine. out: the run's folder; None for ``runs/<set>-<architecture>-<recipe>``.
    resume: ``auto`` to go on with the last such run, or a run's folder or checkpoint, whose settings take the recipe's
    place. weights: what the training begins with: a run's folder or checkpoint, or a file of torchvision's weights; the
    recipe is then ``fine-tune`` unless another one is given. stop_after: save and return after this epoch.
    progress: show it on standard output, with the notes that the outcome also holds. given: settings of
    docs/recipes.md by their names (``epochs=8, arch="resnet20"``) or, where a name stands in two sections, by section
    (``optimizer={"name": "muon"}``).

    Processes that torchrun started train together, each with the same arguments; listeners hear of it in the first one.

    Raises ConfigError, a ValueError, for what can't be trained, TrainingDiverged, and RankLost where another process
    has ended.
    """
    for name, value in (("recipe", recipe), ("out", out), ("resume", resume), ("weights", weights)):
        if value is not None and not (isinstance(value, (str, Path)) and str(value)):
            raise ConfigError(f"{name} is {value!r}; give it a name or a path, or leave it out")
    if not isinstance(listeners, Sequence) or not all(isinstance(listener, Listener) for listener in listeners):
        raise ConfigError(f"listeners is {listeners!r}; give a list of Listeners, such as [Speed()]")
    if stop_after is not None and not (isinstance(stop_after, int) and stop_after >= 1):
        raise ConfigError(f"stop_after is {stop_after!r}, which is no epoch; give 1 or more")
    nested = _nested(given, data)
    if weights is not None:
        nested = merge(nested, {"model": {"weights": str(_path(weights))}})
    if resume not in (None, "auto") and recipe is not None:
        raise ConfigError(f"resume={str(resume)!r} keeps that run's settings; leave out recipe={recipe!r}")
    with joined():
        return _train(nested, recipe, out, resume, stop_after, listeners, progress)


def _train(
    nested: Mapping[str, Mapping[str, Any]],
    recipe: PathLike | None,
    out: PathLike | None,
    resume: PathLike | None,
    stop_after: int | None,
    listeners: Sequence[Listener],
    progress: bool,
) -> session.Outcome:
    go_on = current().of_first(lambda: what_to_resume(resume if resume in (None, "auto") else _path(resume)))
    plan = plan_training(nested, recipe=None if recipe is None else str(_path(recipe)), resume=go_on)
    with ExitStack() as held:
        if progress:
            listeners = (held.enter_context(Terminal(PlainConsole())), *listeners)
        return session.train(
            plan,
            folder=None if out is None else _path(out),
            resume=go_on,
            stop_after=stop_after,
            listeners=listeners,
            given=nested,
        )


def evaluate(run: PathLike, *, data: PreparedSet | PathLike | None = None, **given: Any) -> Evaluation:
    """Evaluate a run's folder or a checkpoint on the test split, or the validation split of a set without one.

    data: another prepared set of the same classes. given: settings that an evaluation depends on (``tta="flip"``,
    ``device="cpu"``, ``amp="off"``, ``loader="torch"`` ...). Raises ConfigError for what does not fit.
    """
    saved = _load(run)
    nested = _nested(given, data)
    plan = plan_evaluation(nested, saved)
    _warn(plan.notes)
    return session.evaluate(plan.config, plan.prepared, saved)


def load_model(run: PathLike, *, device: torch.device | str = "auto") -> TrainedModel:
    """The trained network of a run's folder or a checkpoint, ready to predict. device: ``auto`` for a GPU if there is
    one. CheckpointError, a ValueError, where there is none."""
    return TrainedModel(_load(run), device=str(device))


def export(
    run: PathLike, *, to: str = "onnx", out: PathLike | None = None, overwrite: bool = False
) -> exporting.Exported:
    """Write the network of a run's folder or a checkpoint as a file for other programs, as `fast-export` does.

    to: ``onnx`` or ``pt2``, uint8 [N, H, W, C] to logits float32 [N, K], or ``weights``, a safetensors file. out: the
    file; None for one beside the checkpoint. Raises ConfigError for what can't be done; nothing is left behind then.
    """
    path = of_export(_path(run), to, None if out is None else _path(out), overwrite=overwrite)
    return exporting.export(_load(run), to, path)


def _load(run: PathLike) -> Saved:
    saved = load(_path(run))
    _warn(saved.notes, stacklevel=4)
    return saved


def _warn(notes: Sequence[str], *, stacklevel: int = 3) -> None:
    """For what returns no `session.Outcome` that would hold them."""
    for note in notes:
        warnings.warn(note.removeprefix("note: "), stacklevel=stacklevel)


def _path(given: PathLike) -> Path:
    if not isinstance(given, (str, os.PathLike)):
        raise ConfigError(f"{given!r} is no path; give a text or a Path")
    return user_path(os.fspath(given))


def _nested(given: Mapping[str, Any], data: PreparedSet | PathLike | None) -> dict[str, dict[str, Any]]:
    """Settings nested by section, of those that are given flat or as a section. data: the prepared set."""
    places: dict[str, list[str]] = {}
    for setting in settings().values():
        places.setdefault(setting.name, []).append(setting.section)
    nested: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        if name in SECTIONS:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{name} is {value!r}; it must be a table of settings")
            nested = merge(nested, {name: value})
            continue
        check_name("setting", name, [*places, *SECTIONS])
        value = str(value) if isinstance(value, torch.device) else value
        if len(places[name]) > 1:
            raise ConfigError(
                f"{name} is a setting of {' and of '.join(places[name])}; say which, such as "
                f"{places[name][0]}={{'{name}': {value!r}}}"
            )
        nested = merge(nested, {places[name][0]: {name: value}})
    if "path" in nested.get("data", {}):
        raise ConfigError("the prepared set is the argument data; leave out path")
    check_overruled(nested)
    if data is None:
        return nested
    return merge(nested, {"data": {"path": str(data.root if isinstance(data, PreparedSet) else _path(data))}})
