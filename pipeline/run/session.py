"""A run as a call."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from fast_train.common.text import one_line, show_path
from fast_train.data_prep.manifest import PreparedSet, data_note
from fast_train.pipeline.cli import PROGRAM
from fast_train.pipeline.config.settings import Config
from fast_train.pipeline.device import device_name
from fast_train.pipeline.engine.build import build_augmenter, build_network, build_split_loader
from fast_train.pipeline.engine.checkpoint import CHECKPOINT, load_run_state
from fast_train.pipeline.engine.evaluate import Evaluation, evaluate
from fast_train.pipeline.engine.memory import memory_error
from fast_train.pipeline.engine.runtime import Runtime, apply_global_flags, resolve_runtime
from fast_train.pipeline.engine.trainer import Outcome, Trainer
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.report.progress import Display
from fast_train.pipeline.report.summary import print_accuracy, print_evaluation, write_batch_picture, write_pictures
from fast_train.pipeline.run.folder import Saved, checkpoint_path, claim_folder, default_folder
from fast_train.pipeline.run.plan import _as_it_began, _configured, length_advice
from fast_train.pipeline.run.record import (
    as_trained,
    changed_settings,
    check_classes,
    check_resumable,
    check_shape,
    write_config,
)

# The settings that an evaluation depends on; the network's and the training's are the checkpoint's.
_EVALUATED_BY = {
    *("data.path", "data.loader", "data.workers"),
    *("run.device", "run.amp", "run.tf32", "run.tta", "run.channels_last", "run.deterministic"),
}


def _runtime(config: Config) -> Runtime:
    runtime = resolve_runtime(config.run)
    apply_global_flags(config.run, runtime.device)
    return runtime


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
