"""What is to be run: settings over a recipe, or over those of a run that goes on, fitted to their data."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from fast_train.common.text import show_path
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.config.recipe import (
    CPU_RECIPE,
    GPU_RECIPE,
    SLOW_CPU_RECIPE,
    Given,
    override,
    recipe_for_network,
    resolve,
    without_steps_if_epochs,
)
from fast_train.pipeline.config.settings import Config, RunConfig, differences
from fast_train.pipeline.device import is_slow_cpu
from fast_train.pipeline.engine.evaluate import check_tta
from fast_train.pipeline.engine.runtime import fix_threads, resolve_device
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.run.record import Resume, Saved, as_trained, check_classes, check_shape

# `fast` takes 400 steps on CIFAR-10. On 1,500 of its images 24 steps learn little and 400 of 128 images much more
# (docs/recipes.md); the bound between is a choice.
_FEW_STEPS, _ENOUGH_STEPS, _SMALL_BATCH = 80, 400, 128
# The settings that an evaluation depends on; the network's and the training's are the checkpoint's.
_EVALUATED_BY = {
    *("data.path", "data.loader", "data.workers"),
    *("run.device", "run.amp", "run.tf32", "run.tta", "run.channels_last", "run.deterministic", "run.threads"),
}


@dataclass(frozen=True)
class Plan:
    """notes: what was changed to fit the data, a line each."""

    config: Config
    prepared: PreparedSet
    notes: tuple[str, ...] = ()


def plan_training(given: Given, *, recipe: str | None, resume: Resume = None, verify: bool = False) -> Plan:
    """The configuration of a training. recipe: a name or a TOML file; None for what suits the machine. resume:
    a checkpoint's settings take the place of a recipe's. verify: check the set's hashes.

    Raises ConfigError or PreparedSetError for what can't be run.
    """
    if isinstance(resume, Saved):
        _check_data_is_there(resume, given)
        config = override(resume.config, without_steps_if_epochs(given))
    else:
        config = resolve(recipe or default_recipe(given), given)
    config = dataclasses.replace(config, run=fix_threads(config.run))
    return _with_data(config, verify=verify)


def plan_evaluation(given: Given, saved: Saved, *, verify: bool = False) -> Plan:
    """The configuration of an evaluation: the network and its arithmetic are the checkpoint's, the rest is given.

    Raises ConfigError for settings that an evaluation does not depend on, and where the images don't fit.
    """
    for section, values in given.items():
        for name in values:
            if f"{section}.{name}" not in _EVALUATED_BY:
                raise ConfigError(
                    f"{show_path(saved.path)} says how the network is built and was trained; leave out {section}.{name}"
                )
    _check_data_is_there(saved, given)
    # How the training ran on its machine says nothing of this one.
    trained = saved.config.run
    run = RunConfig(tta=trained.tta, amp=trained.amp, tf32=trained.tf32)
    plan = _with_data(override(dataclasses.replace(saved.config, run=run), given), verify=verify)
    config = dataclasses.replace(plan.config, model=saved.config.model)
    check_classes(saved, plan.prepared)
    check_shape(config.model, plan.prepared, saved.path)
    return Plan(config, as_trained(plan.prepared, saved))


def _check_data_is_there(saved: Saved, given: Given) -> None:
    path = saved.config.data.path
    if "path" not in given.get("data", {}) and not Path(path).exists():
        raise ConfigError(f"the run's data, {path}, are not there any more; give --data")


def _with_data(config: Config, *, verify: bool) -> Plan:
    path = Path(config.data.path)
    prepared = PreparedSet.open(path, verify=verify)
    check_tta(config.run.tta, prepared.manifest.image_shape)
    # Absolute: the run may be continued from elsewhere.
    data = dataclasses.replace(config.data, path=str(path.resolve()))
    config = dataclasses.replace(config, data=data)
    fitted = fit_to_data(config, prepared)
    before, now = config.data.batch_size, fitted.data.batch_size
    note = f"batch size {before} -> {now}: the training split holds no more images"
    return Plan(fitted, prepared, (note,) if now != before else ())


def default_recipe(given: Given) -> str:
    device = resolve_device(given.get("run", {}).get("device", RunConfig.device))
    if device.type == "cuda":
        return GPU_RECIPE
    return recipe_for_network(given) or (SLOW_CPU_RECIPE if is_slow_cpu() else CPU_RECIPE)


def fit_to_data(config: Config, prepared: PreparedSet) -> Config:
    """Take the model's input and output from the data, and a batch size that a small split can fill."""
    height, width, channels = prepared.manifest.image_shape
    model = dataclasses.replace(
        config.model,
        num_classes=len(prepared.manifest.classes),
        image_size=min(height, width),
        in_channels=channels,
    )
    batch_size = min(config.data.batch_size, max(prepared.size("train"), 1))
    return dataclasses.replace(config, model=model, data=dataclasses.replace(config.data, batch_size=batch_size))


def length_advice(config: Config, prepared: PreparedSet, given: Given) -> str | None:
    """What to type where a built-in recipe, made for 50,000 images, takes too few steps on a smaller set; None where
    it does not, or where the user's own file or ``given`` say how long to train."""
    chosen = {*given.get("data", {}), *given.get("run", {})} & {"batch_size", "epochs", "steps"}
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


def as_it_began(config: Config, saved: Saved, prepared: PreparedSet, given: Given) -> Plan:
    """``config`` with the data and the length of the run that goes on, but for what is given."""
    kept = {name: given[name] for name in ("data", "run") if name in given}
    before = override(saved.config, without_steps_if_epochs(kept))
    data = dataclasses.replace(before.data, path=config.data.path)
    fitted = fit_to_data(dataclasses.replace(config, data=data, run=before.run), prepared)
    notes = (
        f"note: {section}.{name} stays {began}, as the run began, not {alone}"
        for section, name, began, alone in differences(fitted, config)
    )
    return Plan(fitted, prepared, tuple(notes))
