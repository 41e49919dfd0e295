"""What `fast-train` does, one function per action; `pipeline.cli` parses and calls `run`."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from fast_train.pipeline.config.recipe import merge, tomllib
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.loaders import LOADERS
from fast_train.pipeline.run.plan import _configured
from fast_train.pipeline.run.session import _evaluate, _runtime, _show_batch, _train


def run(settings: dict[str, Any], others: argparse.Namespace) -> int:
    """Train, evaluate or show a batch; returns the exit status."""
    # Paths and names are printed as they are: brackets and colons in them are no markup.
    console = Console(markup=False, highlight=False, emoji=False)
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
