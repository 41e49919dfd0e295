"""What `fast-train` does, one function per action; `pipeline.cli` parses and calls `run`."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep.manifest import PreparedSet
from pipeline.checkpoint import load_checkpoint
from pipeline.cli import PROGRAM, show_path
from pipeline.config import Config
from pipeline.display import Display
from pipeline.errors import ConfigError
from pipeline.evaluate import Evaluation, evaluate
from pipeline.loaders import LOADERS
from pipeline.logs import RunLog
from pipeline.recipe import merge, read_recipe, resolve, tomllib, without_steps_if_epochs
from pipeline.report import data_note, print_accuracy, print_evaluation, write_batch_picture, write_pictures
from pipeline.runs import (
    changed_settings,
    check_classes,
    check_resumable,
    check_shape,
    checkpoint_path,
    default_folder,
    new_folder,
    resume_folder,
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


def run(settings: dict[str, Any], others: argparse.Namespace) -> int:
    """Train, evaluate or show a batch; returns the exit status."""
    # Paths and names are printed as they are: brackets and colons in them are no markup.
    console = Console(markup=False, highlight=False, emoji=False)
    if others.list_loaders:
        return _list_loaders(console)
    settings = merge(settings, _parse_sets(others.set))
    _check_actions(others)
    if others.evaluate is not None:
        return _evaluate(settings, others, console)
    state = None
    if others.resume not in (None, "auto"):
        state = load_checkpoint(checkpoint_path(Path(others.resume)))
    config, prepared, runtime = _configure(settings, others, state, console)
    if others.show_batch:
        return _show_batch(config, prepared, runtime, others, console)
    advice = length_advice(config, prepared, settings)
    return _train(config, prepared, runtime, others, state, advice, console)


def _check_actions(others: argparse.Namespace) -> None:
    """ConfigError for flags that do not go together: none is ignored."""
    if others.stop_after is not None and others.stop_after < 1:
        raise ConfigError(f"--stop-after {others.stop_after} is no epoch; give 1 or more")
    without: tuple[str, ...] = ()
    if others.evaluate is not None:
        action, without = "--evaluate", ("recipe", "resume", "stop_after", "show_batch")
    elif others.show_batch:
        action, without = "--show-batch", ("stop_after",)
    elif others.resume not in (None, "auto"):
        action, without = f"--resume {others.resume}", ("recipe", "out")
    for name in without:
        if getattr(others, name) not in (None, False):
            raise ConfigError(f"{action} does not go with --{name.replace('_', '-')}; leave one of them out")


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


def _configure(
    settings: dict[str, Any], others: argparse.Namespace, state: dict[str, Any] | None, console: Console
) -> tuple[Config, PreparedSet, Runtime]:
    if state is not None:
        # The run's own settings take the place of a recipe.
        config = Config.from_dict(merge(state["config"], without_steps_if_epochs(settings)))
    else:
        config = resolve(others.recipe or default_recipe(settings), settings)
    prepared = PreparedSet.open(Path(config.data.path), verify=others.verify)
    config = fit_to_data(config, prepared, console)
    runtime = resolve_runtime(config.run)
    apply_global_flags(config.run, runtime.device)
    return config, prepared, runtime


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
    state = load_checkpoint(path)
    for section in settings.keys() - {"data", "run"}:
        names = ", ".join(f"{section}.{name}" for name in settings[section])
        raise ConfigError(f"{show_path(path)} says how the network is built and was trained; leave out {names}")
    config = Config.from_dict(merge(state["config"], settings))
    prepared = PreparedSet.open(Path(config.data.path), verify=others.verify)
    check_classes(state, prepared, path)
    check_shape(config.model, prepared, path)
    runtime = resolve_runtime(config.run)
    apply_global_flags(config.run, runtime.device)
    model = build_network(config, runtime)
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


def _train(
    config: Config,
    prepared: PreparedSet,
    runtime: Runtime,
    others: argparse.Namespace,
    state: dict[str, Any] | None,
    advice: str | None,
    console: Console,
) -> int:
    """state: of the checkpoint that --resume names. advice: printed where the run begins, not where it goes on."""
    base = default_folder(config, prepared)
    folder = None if others.resume is None else resume_folder(others.resume, others.out, base)
    if folder is None:
        folder = new_folder(others.out, base)
    elif state is None and (folder / CHECKPOINT).exists():
        state = load_checkpoint(folder / CHECKPOINT)
    if state is not None:
        check_resumable(state, folder / CHECKPOINT, config, prepared)
        for name, was, now in changed_settings(state, config):
            console.print(f"note: {name} was {was} so far, is {now} from here on", soft_wrap=True)
    elif advice is not None:
        console.print(advice, soft_wrap=True)
    _announce(config, prepared, runtime, folder, console)
    with Trainer(config, prepared, runtime, resumes=state is not None) as trainer:
        trainer.check_memory()
        if state is not None:
            trainer.load_state_dict(state)
            if trainer.finished:
                done = len(trainer.history)
                console.print(f"{show_path(folder)} is complete: {done} epoch{'s'[: done != 1]}; nothing to do")
                return 0
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
    log = RunLog(folder, trainer.history, note=data_note(trainer.prepared))
    display = Display(console, epochs=trainer.epochs, note=data_note(trainer.prepared))
    try:
        return trainer.fit(folder, log, display, stop_after=others.stop_after)
    finally:
        display.close()
        log.close()


def _finish(
    trainer: Trainer, outcome: Outcome, folder: Path, spent: str, others: argparse.Namespace, console: Console
) -> int:
    """spent: the seconds, in words."""
    go_on = f"{PROGRAM} --resume {show_path(folder)}"
    if outcome.interrupted is not None:
        print(f"{PROGRAM}: stopped by a signal, saved; go on with: {go_on}", file=sys.stderr)
        return 128 + outcome.interrupted
    result = outcome.evaluation or trainer.evaluate()
    if others.brief:
        print_accuracy(console, result, trainer.prepared)
    else:
        _report(folder, result, trainer.history, trainer.config, trainer.prepared, console)
    console.print(spent)
    if not trainer.finished:
        console.print(f"stopped after epoch {len(trainer.history)}; go on with: {go_on}", soft_wrap=True)
        return 0
    if outcome.target_reached is False:
        target = trainer.config.run.target_accuracy
        print(f"{PROGRAM}: the target accuracy of {target:.2%} was not reached", file=sys.stderr)
        return 1
    return 0


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
