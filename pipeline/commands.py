"""What `fast-train` does, one function an action; `pipeline.cli` calls `run`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from fast_train.common.console import Display, PlainConsole
from fast_train.common.files import whole_file
from fast_train.common.phases import seconds_by_phase
from fast_train.common.text import one_line, show_path
from fast_train.pipeline.config.recipe import Given
from fast_train.pipeline.device import device_name
from fast_train.pipeline.engine.build import build_augmenter, build_split_loader
from fast_train.pipeline.engine.checkpoint import copy_checkpoint
from fast_train.pipeline.engine.evaluate import Evaluation
from fast_train.pipeline.engine.listener import Listener, Start
from fast_train.pipeline.engine.runtime import resolve_runtime, running
from fast_train.pipeline.flags import PROGRAM, Actions
from fast_train.pipeline.loaders import LOADERS
from fast_train.pipeline.paths import BEST, SECONDS, checkpoints, of_name
from fast_train.pipeline.ranks import current, joined
from fast_train.pipeline.report.predictions import print_mistakes, write_predictions
from fast_train.pipeline.report.progress import Terminal
from fast_train.pipeline.report.summary import print_accuracy, print_evaluation, write_batch_picture, write_pictures
from fast_train.pipeline.run import session
from fast_train.pipeline.run.folder import default_folder
from fast_train.pipeline.run.plan import Plan, length_advice, plan_evaluation, plan_training
from fast_train.pipeline.run.record import load, what_to_resume


def run(given: Given, actions: Actions) -> int:
    # Paths and names are printed as they are: brackets and colons in them are no markup.
    console = PlainConsole()
    if actions.list_loaders:
        return _list_loaders(console)
    if actions.evaluate is not None:
        return _evaluate(given, actions, Path(actions.evaluate), console)
    if actions.show_batch:
        return _show_batch(plan_training(given, recipe=actions.recipe, verify=actions.verify), actions, console)
    return _train(given, actions, console)


def _list_loaders(console: Console) -> int:
    for name, loader in LOADERS.items():
        state = loader.missing() or f"ready; reads sets prepared with --formats {loader.format}{loader.advice()}"
        console.print(f"{name:<9} {state}", soft_wrap=True)
    return 0


def _show_batch(plan: Plan, actions: Actions, console: Console) -> int:
    _print_lines(console, plan.notes)
    config, prepared = plan.config, plan.prepared
    folder = Path(actions.out) if actions.out else default_folder(config, prepared)
    progress = Display(console).progress
    with (
        running(config.run) as runtime,
        build_split_loader(config, prepared, runtime, train=True, progress=progress) as loader,
    ):
        augmenter = build_augmenter(config, prepared, runtime, train=True)
        title = f"augmented training images, recipe {config.recipe}"
        path = write_batch_picture(folder / "batch.png", loader, augmenter, title=title)
    console.print(f"augmented training images: {show_path(path)}", soft_wrap=True)
    return 0


def _evaluate(given: Given, actions: Actions, checkpoint: Path, console: Console) -> int:
    saved = load(checkpoint)
    _print_lines(console, saved.notes)
    plan = plan_evaluation(given, saved, verify=actions.verify)
    runtime = resolve_runtime(plan.config.run)
    console.print(f"evaluating {show_path(saved.path)} on {device_name(runtime.device)}", soft_wrap=True)
    _print_lines(console, (*runtime.notes(), *plan.notes))
    result = session.evaluate(plan.config, plan.prepared, saved)
    if actions.brief:
        print_accuracy(console, result, plan.prepared)
    else:
        folder = Path(actions.out) if actions.out else saved.path.parent / "evaluation"
        _report(console, folder, plan, result, history=[])
    return 0


class _Advice(Listener):
    """Says of a new run how it would train longer."""

    def __init__(self, console: Console, given: Given) -> None:
        self._console, self._given = console, given

    def on_start(self, start: Start) -> None:
        advice = length_advice(start.config, start.prepared, self._given)
        if advice is not None and not start.resumed:
            self._console.print(advice, soft_wrap=True)


def _train(given: Given, actions: Actions, console: Console) -> int:
    with joined() as ranks:
        outcome = _train_together(given, actions, console)
    # The process group is no more: what is left is for one. The others are done, however that ends: torchrun would end
    # the first one for a status of theirs.
    return _finish(outcome, actions, console) if ranks.first else 0


def _train_together(given: Given, actions: Actions, console: Console) -> session.Outcome:
    resume = current().of_first(lambda: what_to_resume(actions.resume))
    plan = plan_training(given, recipe=actions.recipe, resume=resume, verify=actions.verify)
    with Terminal(console) as terminal:
        outcome = session.train(
            plan,
            folder=Path(actions.out) if actions.out else None,
            resume=resume,
            stop_after=actions.stop_after,
            listeners=(terminal, _Advice(console, given)),
            given=given,
        )
    if actions.save_as is not None and outcome.interrupted is None and current().first:
        copy_checkpoint(load(outcome.folder).path, of_name(outcome.folder, actions.save_as))
    return outcome


def _finish(outcome: session.Outcome, actions: Actions, console: Console) -> int:
    """Say how the training ended; returns the exit status."""
    folder, epochs = outcome.folder, len(outcome.history)
    go_on = f"{PROGRAM} --resume {shlex.quote(show_path(folder))}"
    if outcome.interrupted is not None:
        print(f"{PROGRAM}: stopped by a signal, saved; go on with: {go_on}", file=sys.stderr)
        return 128 + outcome.interrupted
    if outcome.evaluation is None:
        over = f"{show_path(folder)} is complete: {epochs} epoch{'s'[: epochs != 1]}; nothing to do"
        console.print(over, soft_wrap=True)
        if not actions.brief and not _are_drawn(folder):
            # The command that trained it was stopped before they were drawn, or was to draw none.
            evaluation = session.evaluate(
                outcome.config,
                outcome.prepared,
                session.tested_checkpoint(folder, outcome.config, outcome.prepared),
            )
            _report(console, folder, Plan(outcome.config, outcome.prepared), evaluation, history=outcome.history)
        return _target_status(outcome)
    if actions.brief:
        print_accuracy(console, outcome.evaluation, outcome.prepared)
    else:
        plan = Plan(outcome.config, outcome.prepared)
        _report(console, folder, plan, outcome.evaluation, history=outcome.history)
    if outcome.finished and session.tests_best(folder, outcome.config, outcome.prepared):
        console.print(f"that is of the best weights, {show_path(folder / BEST)}, not of the last ones", soft_wrap=True)
    _report_seconds(outcome, console)
    if not outcome.finished:
        console.print(f"stopped after epoch {epochs}; go on with: {go_on}", soft_wrap=True)
        return 0
    return _target_status(outcome)


def _report_seconds(outcome: session.Outcome, console: Console) -> None:
    """Say where the time since the command began went, the largest parts first, and keep it in the run's folder."""
    seconds, before = seconds_by_phase(), outcome.train_seconds_before
    whole = sum(seconds.values())
    in_all = f" ({outcome.train_seconds:.1f} s in all)" if before else ""
    largest = sorted(seconds.items(), key=lambda part: -part[1])
    parts = ", ".join(f"{name} {part:.1f}" for name, part in largest if part > whole / 20)
    told = f"{whole:.1f} s since the command began, of which {parts}"
    console.print(f"trained for {outcome.train_seconds - before:.1f} s{in_all}; {told}", soft_wrap=True)
    with _costing_nothing("where the time went"), whole_file(outcome.folder / SECONDS) as file:
        file.write(json.dumps({name: round(part, 3) for name, part in seconds.items()}).encode() + b"\n")


def _are_drawn(folder: Path) -> bool:
    """Whether the pictures are younger than the checkpoints, by the one that is drawn last."""
    last = folder / "predictions.png"
    return last.exists() and all(path.stat().st_mtime <= last.stat().st_mtime for path in checkpoints(folder))


def _target_status(outcome: session.Outcome) -> int:
    """The exit status of a run that is over: 1, and a line that says so, where it missed its target accuracy."""
    target = outcome.config.run.target_accuracy
    if target is None or outcome.target_reached:
        return 0
    print(f"{PROGRAM}: the target accuracy of {target:.2%} was not reached", file=sys.stderr)
    return 1


def _report(
    console: Console, folder: Path, plan: Plan, result: Evaluation, *, history: Sequence[Mapping[str, Any]]
) -> None:
    config, prepared = plan.config, plan.prepared
    print_evaluation(console, result, prepared)
    title = f"{config.model.arch}, recipe {config.recipe}: {result.accuracy:.2%} {result.split} accuracy"
    with _costing_nothing("the pictures"):
        paths = write_pictures(folder, result, history, prepared, title=title, crop=config.evaluated_crop)
        console.print("pictures: " + ", ".join(show_path(p) for p in paths), soft_wrap=True)
    print_mistakes(console, result, prepared)
    with _costing_nothing("the predictions"):
        console.print(f"all predictions: {show_path(write_predictions(folder, result, prepared))}", soft_wrap=True)


@contextmanager
def _costing_nothing(what: str) -> Iterator[None]:
    """Say in one line what goes wrong in the block, whatever it is: the result stands."""
    try:
        yield
    except Exception as error:
        print(f"{PROGRAM}: {what} can't be written: {one_line(error)}", file=sys.stderr)


def _print_lines(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True)
