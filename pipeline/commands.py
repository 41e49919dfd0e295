"""What `fast-train` does, one function per action; `pipeline.cli` parses and calls `run`."""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep.errors import one_line
from data_prep.manifest import PreparedSet
from pipeline.checkpoint import load_run_state
from pipeline.cli import PROGRAM, show_path
from pipeline.config import Config, differences
from pipeline.display import Display, SteadyConsole
from pipeline.errors import ConfigError, check_name, memory_error
from pipeline.evaluate import Evaluation, check_tta, evaluate
from pipeline.loaders import LOADERS
from pipeline.recipe import merge, read_recipe, resolve, tomllib, without_steps_if_epochs
from pipeline.report import data_note, print_accuracy, print_evaluation, write_batch_picture, write_pictures
from pipeline.runs import (
    Saved,
    as_trained,
    changed_settings,
    check_classes,
    check_resumable,
    check_shape,
    checkpoint_path,
    claim_folder,
    default_folder,
    write_config,
)
from pipeline.runtime import Runtime, apply_global_flags, device_name, is_slow_cpu, resolve_runtime
from pipeline.train import (
    CHECKPOINT,
    Outcome,
    Trainer,
    build_augmenter,
    build_network,
    build_split_loader,
)

# Both of one network. The shorter one is there so that a first training ends within five minutes.
_CPU_RECIPE, _SLOW_CPU_RECIPE = "cpu-quick", "cpu-short"
# `fast` takes 400 steps on CIFAR-10. On 1,500 of its images 24 steps learn little and 400 of 128 images much more
# (docs/recipes.md); the bound between is a choice.
_FEW_STEPS, _ENOUGH_STEPS, _SMALL_BATCH = 80, 400, 128
# The settings that an evaluation depends on; the network's and the training's are the checkpoint's.
_EVALUATED_BY = {
    *("data.path", "data.loader", "data.workers"),
    *("run.device", "run.amp", "run.tf32", "run.tta", "run.channels_last", "run.deterministic"),
}


def run(settings: dict[str, Any], others: argparse.Namespace) -> int:
    """Train, evaluate or show a batch; returns the exit status."""
    # Paths and names are printed as they are: brackets and colons in them are no markup.
    console = SteadyConsole(markup=False, highlight=False, emoji=False)
    if others.list_loaders:
        return _list_loaders(console)
    settings = merge(settings, _parse_sets(others.set))
    _check_actions(others)
    _check_settings(settings)
    if others.evaluate is not None:
        return _evaluate(settings, others, console)
    if others.show_batch:
        config, prepared = _configured(settings, others, None, console)
        return _show_batch(config, prepared, _runtime(config), others, console)
    return _train(settings, others, console)


def _check_actions(others: argparse.Namespace) -> None:
    """ConfigError for flags that do not go together: none is ignored."""
    if others.stop_after is not None and others.stop_after < 1:
        raise ConfigError(f"--stop-after {others.stop_after} is no epoch; give 1 or more")
    for name in ("out", "resume", "evaluate", "recipe"):
        if getattr(others, name) == "":
            raise ConfigError(f"--{name} is empty; give it a value, or leave it out")
    without: tuple[str, ...] = ()
    if others.evaluate is not None:
        action, without = "--evaluate", ("recipe", "resume", "stop_after", "show_batch")
        if others.brief:
            action, without = "--evaluate --brief", (*without, "out")
    elif others.show_batch:
        action, without = "--show-batch", ("stop_after", "resume", "brief")
    elif others.resume not in (None, "auto"):
        action, without = f"--resume {others.resume}", ("recipe",)
    for name in without:
        if getattr(others, name) not in (None, False):
            raise ConfigError(f"{action} does not go with --{name.replace('_', '-')}; leave one of them out")


def _check_settings(settings: dict[str, Any]) -> None:
    """ConfigError for settings that would be overruled without a word."""
    if "recipe" in settings:
        raise ConfigError("--set changes no recipe; choose one by --recipe")
    for name in ("num_classes", "image_size", "in_channels"):
        if name in settings.get("model", {}):
            raise ConfigError(f"model.{name} is what the data say; leave it out")
    if settings.get("run", {}).keys() >= {"epochs", "steps"}:
        raise ConfigError("run.epochs and run.steps both say how long to train; leave one of them out")


def _list_loaders(console: Console) -> int:
    for name, loader in LOADERS.items():
        state = loader.missing() or f"ready; reads sets prepared with --formats {loader.format}"
        console.print(f"{name:<9} {state}", soft_wrap=True)
    return 0


def _parse_sets(assignments: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for text in assignments:
        place, equals, value = text.partition("=")
        section, dot, name = place.strip().partition(".")
        if not (equals and dot and section and name):
            raise ConfigError(f"--set {text} is no assignment; write it as SECTION.NAME=VALUE")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value.strip()
        settings.setdefault(section, {})[name] = parsed
    return settings


def _configured(
    settings: dict[str, Any], others: argparse.Namespace, saved: dict[str, Any] | None, console: Console | None
) -> tuple[Config, PreparedSet]:
    """The configuration, fitted to its data. saved: that of a run, which takes the place of a recipe."""
    if saved is not None:
        config = Config.from_dict(merge(saved, without_steps_if_epochs(settings)))
    else:
        config = resolve(others.recipe or default_recipe(settings), settings)
    check_name("loader", config.data.loader, LOADERS)
    path = Path(config.data.path)
    if saved is not None and "path" not in settings.get("data", {}) and not path.exists():
        raise ConfigError(f"the run's data, {path}, are not there any more; give --data")
    prepared = PreparedSet.open(path, verify=others.verify)
    check_tta(config.run.tta, prepared.manifest.image_shape)
    # Absolute: the run may be continued from elsewhere.
    data = dataclasses.replace(config.data, path=str(path.resolve()))
    return fit_to_data(dataclasses.replace(config, data=data), prepared, console), prepared


def _runtime(config: Config) -> Runtime:
    runtime = resolve_runtime(config.run)
    apply_global_flags(config.run, runtime.device)
    return runtime


def default_recipe(settings: dict[str, Any]) -> str:
    """What suits the device that the run will use, and its network: the rates of the CPU's recipes are those of the
    network that they were made for."""
    run_config = Config.from_dict({"run": {"device": settings.get("run", {}).get("device", "auto")}}).run
    own = read_recipe(_CPU_RECIPE)["model"]["arch"]
    if resolve_runtime(run_config).device.type == "cuda" or settings.get("model", {}).get("arch", own) != own:
        return "fast"
    return _SLOW_CPU_RECIPE if is_slow_cpu() else _CPU_RECIPE


def fit_to_data(config: Config, prepared: PreparedSet, console: Console | None = None) -> Config:
    """Take the model's input and output from the data, and a batch size that a small split can fill, which
    ``console`` is told."""
    height, width, channels = prepared.manifest.image_shape
    model = dataclasses.replace(
        config.model,
        num_classes=len(prepared.manifest.classes),
        image_size=min(height, width),
        in_channels=channels,
    )
    data, images = config.data, prepared.size("train")
    if images < data.batch_size:
        if console is not None:
            console.print(f"batch size {data.batch_size} -> {images}: the training split holds no more images")
        data = dataclasses.replace(data, batch_size=max(images, 1))
    return dataclasses.replace(config, model=model, data=data)


def length_advice(config: Config, prepared: PreparedSet, settings: dict[str, Any]) -> str | None:
    """What to type where a built-in recipe, made for 50,000 images, takes too few steps on a smaller set; None where
    it does not, or where the user's own file or ``settings`` say how long to train."""
    chosen = {*settings.get("data", {}), *settings.get("run", {})} & {"batch_size", "epochs", "steps"}
    images, batch_size = prepared.size("train"), config.data.batch_size
    steps = config.run.epochs * (images // batch_size)
    if chosen or config.recipe.endswith(".toml") or config.run.steps is not None or steps >= _FEW_STEPS:
        return None
    smaller = min(_SMALL_BATCH, batch_size)
    epochs = math.ceil(_ENOUGH_STEPS / (images // smaller))
    return (
        f"{steps} steps are few: recipe {config.recipe} is made for larger sets than this one of {images:,} images; "
        f"--batch-size {smaller} --epochs {epochs} trains longer and should learn more"
    )


def _show_batch(
    config: Config, prepared: PreparedSet, runtime: Runtime, others: argparse.Namespace, console: Console
) -> int:
    folder = Path(others.out) if others.out else default_folder(config, prepared)
    with build_split_loader(config, prepared, runtime, train=True) as loader:
        augmenter = build_augmenter(config, prepared, runtime, train=True)
        title = f"augmented training images, recipe {config.recipe}"
        path = write_batch_picture(folder / "batch.png", loader, augmenter, title=title)
    console.print(f"augmented training images: {show_path(path)}", soft_wrap=True)
    return 0


def _evaluate(settings: dict[str, Any], others: argparse.Namespace, console: Console) -> int:
    path = checkpoint_path(Path(others.evaluate))
    state = load_run_state(path)
    for section, values in settings.items():
        for name in values:
            if f"{section}.{name}" not in _EVALUATED_BY:
                raise ConfigError(
                    f"{show_path(path)} says how the network is built and was trained; leave out {section}.{name}"
                )
    # How the training ran on its machine says nothing of this one.
    run = state["config"]["run"]
    saved = {**state["config"], "run": {name: run[name] for name in ("tta", "amp", "tf32") if name in run}}
    config, prepared = _configured(settings, others, saved, None)
    config = dataclasses.replace(config, model=Config.from_dict(state["config"]).model)
    check_classes(state, prepared, path)
    check_shape(config.model, prepared, path)
    prepared = as_trained(prepared, state)
    runtime = _runtime(config)
    model = build_network(config, runtime)
    with _fitting(path):
        model.load_state_dict(state["step"]["average"] or state["step"]["model"])
    console.print(f"evaluating {show_path(path)} on {device_name(runtime.device)}", soft_wrap=True)
    with build_split_loader(config, prepared, runtime, train=False) as loader:
        augmenter = build_augmenter(config, prepared, runtime, train=False)
        result = evaluate(model, loader, augmenter, amp=runtime.amp, tta=config.run.tta)
    folder = Path(others.out) if others.out else path.parent / "evaluation"
    if others.brief:
        print_accuracy(console, result, prepared)
    else:
        _report(folder, result, [], config, prepared, console)
    return 0


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """ConfigError where a checkpoint lacks what the block loads from it, or holds it in another shape."""
    try:
        yield
    except (KeyError, RuntimeError, TypeError) as error:
        if memory_error(error) is not None:
            raise
        raise ConfigError(
            f"{show_path(path)} does not fit this network ({one_line(error)}); use another one"
        ) from error


def _train(settings: dict[str, Any], others: argparse.Namespace, console: Console) -> int:
    saved = None
    if others.resume not in (None, "auto"):
        path = checkpoint_path(Path(others.resume))
        saved = Saved(path, load_run_state(path))
    config, prepared = _configured(settings, others, saved and saved.state["config"], console)
    with ExitStack() as held:
        folder = claim_folder(default_folder(config, prepared), others.resume, others.out, saved, held)
        if others.resume == "auto" and (folder / CHECKPOINT).exists():
            saved = Saved(folder / CHECKPOINT, load_run_state(folder / CHECKPOINT))
            config = _as_it_began(config, saved.state, prepared, settings, console)
        if saved is not None:
            check_resumable(saved.state, saved.path, config, prepared)
            prepared = as_trained(prepared, saved.state)
            for name, was, now in changed_settings(saved.state, config):
                console.print(f"note: {name} was {was} so far, is {now} from here on", soft_wrap=True)
        elif (advice := length_advice(config, prepared, settings)) is not None:
            console.print(advice, soft_wrap=True)
        return _run(config, prepared, folder, others, saved, console)


def _as_it_began(
    config: Config, state: dict[str, Any], prepared: PreparedSet, settings: dict[str, Any], console: Console
) -> Config:
    """``config`` with the data and the length of the run that is continued, but for what ``settings`` say."""
    given = without_steps_if_epochs({name: settings[name] for name in ("data", "run") if name in settings})
    before = Config.from_dict(merge(state["config"], given))
    data = dataclasses.replace(before.data, path=config.data.path)
    kept = fit_to_data(dataclasses.replace(config, data=data, run=before.run), prepared)
    for section, name, saved, alone in differences(kept, config):
        console.print(f"note: {section}.{name} stays {saved}, as the run began, not {alone}", soft_wrap=True)
    return kept


def _run(
    config: Config,
    prepared: PreparedSet,
    folder: Path,
    others: argparse.Namespace,
    saved: Saved | None,
    console: Console,
) -> int:
    """saved: what the run goes on from; None for a new one."""
    runtime = _runtime(config)
    _announce(config, prepared, runtime, folder, console)
    with Trainer(config, prepared, runtime, resumes=saved is not None) as trainer:
        trainer.check_memory()
        if saved is not None:
            with _fitting(saved.path):
                trainer.load_state_dict(saved.state)
            if trainer.finished:
                done = len(trainer.history)
                over = f"{show_path(saved.path.parent)} is complete: {done} epoch{'s'[: done != 1]}; nothing to do"
                console.print(over, soft_wrap=True)
                return _target_status(trainer)
            console.print(f"going on after step {trainer.done_steps:,} of {trainer.total_steps:,}")
        write_config(folder, config, prepared, runtime)
        started = time.perf_counter()
        seconds = trainer.prepare()
        if runtime.compile or runtime.graph:
            console.print(f"compiled in {seconds:.1f} s")
        before = trainer.train_seconds
        outcome = _fit(trainer, folder, others, console)
        in_all = f" ({outcome.train_seconds:.1f} s in all)" if before else ""
        trained = f"trained for {outcome.train_seconds - before:.1f} s{in_all}"
        spent = f"{trained}; {time.perf_counter() - started:.1f} s with compilation, evaluation and saving"
        return _finish(trainer, outcome, folder, spent, others, console)


def _announce(config: Config, prepared: PreparedSet, runtime: Runtime, folder: Path, console: Console) -> None:
    source = prepared.manifest.source["kind"]
    console.print(
        f"{config.model.arch} by recipe {config.recipe} on {prepared.size('train'):,} images of {source}"
        f"{data_note(prepared)}; loader {config.data.loader}, batch {config.data.batch_size}\n"
        f"{runtime.describe()}\nrun folder: {show_path(folder)}",
        soft_wrap=True,
    )


def _fit(trainer: Trainer, folder: Path, others: argparse.Namespace, console: Console) -> Outcome:
    with closing(Display(console, epochs=trainer.epochs, note=data_note(trainer.prepared))) as display:
        return trainer.fit(folder, display=display, stop_after=others.stop_after)


def _finish(
    trainer: Trainer, outcome: Outcome, folder: Path, spent: str, others: argparse.Namespace, console: Console
) -> int:
    """spent: the seconds, in words."""
    go_on = f"{PROGRAM} --resume {shlex.quote(show_path(folder))}"
    if outcome.interrupted is not None:
        print(f"{PROGRAM}: stopped by a signal, saved; go on with: {go_on}", file=sys.stderr)
        return 128 + outcome.interrupted
    result = outcome.evaluation or trainer.evaluate()
    if others.brief:
        print_accuracy(console, result, trainer.prepared)
    else:
        _report(folder, result, trainer.history, trainer.config, trainer.prepared, console)
    console.print(spent, soft_wrap=True)
    if not trainer.finished:
        console.print(f"stopped after epoch {len(trainer.history)}; go on with: {go_on}", soft_wrap=True)
        return 0
    return _target_status(trainer)


def _target_status(trainer: Trainer) -> int:
    """The exit status of a run that is over: 1, and a line that says so, where it missed its target accuracy."""
    target = trainer.config.run.target_accuracy
    if target is None or trainer.target_reached:
        return 0
    print(f"{PROGRAM}: the target accuracy of {target:.2%} was not reached", file=sys.stderr)
    return 1


def _report(
    folder: Path,
    result: Evaluation,
    history: list[dict[str, Any]],
    config: Config,
    prepared: PreparedSet,
    console: Console,
) -> None:
    print_evaluation(console, result, prepared)
    title = f"{config.model.arch}, recipe {config.recipe}: {result.accuracy:.2%} test accuracy"
    paths = write_pictures(folder, result, history, prepared, title=title)
    console.print("pictures: " + ", ".join(show_path(p) for p in paths), soft_wrap=True)
