"""What a command's settings come to: the configuration of a run, fitted to its data."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

from rich.console import Console

from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.config.recipe import merge, read_recipe, resolve, without_steps_if_epochs
from fast_train.pipeline.config.settings import Config, differences
from fast_train.pipeline.device import is_slow_cpu
from fast_train.pipeline.engine.evaluate import check_tta
from fast_train.pipeline.engine.runtime import resolve_runtime
from fast_train.pipeline.errors import ConfigError, check_name
from fast_train.pipeline.loaders import LOADERS

# Both of one network. The shorter one is there so that a first training ends within five minutes.
_CPU_RECIPE, _SLOW_CPU_RECIPE = "cpu-quick", "cpu-short"


# `fast` takes 400 steps on CIFAR-10. On 1,500 of its images 24 steps learn little and 400 of 128 images much more
# (docs/recipes.md); the bound between is a choice.
_FEW_STEPS, _ENOUGH_STEPS, _SMALL_BATCH = 80, 400, 128


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
