"""What is to be run: settings over a recipe, or over those of a run that goes on, fitted to their data."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fast_train.data_prep.manifest import Manifest, PreparedSet
from fast_train.kernels.spec import AugmentSpec
from fast_train.pipeline.config.convert import is_none
from fast_train.pipeline.config.recipe import (
    CPU_RECIPE,
    FINE_TUNE_RECIPE,
    GPU_RECIPE,
    PHOTOS_CPU_RECIPE,
    PHOTOS_GPU_RECIPE,
    SLOW_CPU_RECIPE,
    Given,
    check_evaluated,
    merge,
    override,
    read_recipe,
    recipe_for_network,
    resolve,
    weights_of,
    without_overruled,
)
from fast_train.pipeline.config.settings import Config, CropConfig, DataConfig, RunConfig, differences
from fast_train.pipeline.device import is_slow_cpu
from fast_train.pipeline.engine.build import evaluated_shape, proxy_model
from fast_train.pipeline.engine.evaluate import check_tta
from fast_train.pipeline.engine.runtime import fix_threads, resolve_device
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.ranks import current
from fast_train.pipeline.run.record import Resume, Saved, as_trained, check_classes, check_shape
from fast_train.pipeline.run.weights import Weights, read_weights

# `fast` takes 400 steps on CIFAR-10. On 1,500 of its images 24 steps learn little and 400 of 128 images much more
# (docs/recipes.md); the bound between is a choice.
_FEW_STEPS, _ENOUGH_STEPS, _SMALL_BATCH = 80, 400, 128
# The side of crops where nothing says it, in pixels: ImageNet's, and what smaller ones are multiples of.
_CROP, _CROP_STEP = 224, 32


@dataclass(frozen=True)
class Plan:
    """notes: what was changed to fit the data, a line each. weights: those that a new run begins with."""

    config: Config
    prepared: PreparedSet
    notes: tuple[str, ...] = ()
    weights: Weights | None = None


def plan_training(given: Given, *, recipe: str | None, resume: Resume = None, verify: bool = False) -> Plan:
    """The configuration of a training. recipe: a name or a TOML file; None for what suits the machine. resume:
    a checkpoint's settings take the place of a recipe's. verify: check the set's hashes.

    Raises ConfigError or PreparedSetError for what can't be run.
    """
    weights = None
    if isinstance(resume, Saved):
        _check_data_is_there(resume, given)
        config = override(resume.config, without_overruled(given))
    else:
        given, weights = _with_weights(given, recipe, resume)
        config = resolve(recipe or default_recipe(given, _given_set(given)), given)
    config = dataclasses.replace(config, run=fix_threads(config.run))
    return dataclasses.replace(_with_data(config, given, verify=verify), weights=weights)


def _with_weights(given: Given, recipe: str | None, resume: Resume) -> tuple[Given, Weights | None]:
    """The weights that a training begins with, read by the first rank for all; and ``given`` with their network, as far
    as their file says it and neither ``given`` nor a recipe that was asked for does."""
    asked = merge(read_recipe(recipe) if recipe else {}, given)
    given_path = weights_of(asked)
    if given_path is None:
        return given, None
    path = Path(os.path.abspath(given_path))
    # A run that goes on has no need of the file.
    spared = resume == "auto"
    weights = current().of_first(lambda: None if spared and not path.exists() else read_weights(path))
    network = weights.network if weights is not None else {}
    if asked["model"].get("arch", network.get("arch")) != network.get("arch"):
        network = {}
    return merge(given, {"model": {**network, **asked["model"], "weights": str(path)}}), weights


def plan_evaluation(given: Given, saved: Saved, *, verify: bool = False) -> Plan:
    """The configuration of an evaluation: the network and its arithmetic are the checkpoint's, the rest is given.

    Raises ConfigError for settings that an evaluation does not depend on, and where the images don't fit.
    """
    check_evaluated(given, saved.path)
    _check_data_is_there(saved, given)
    # How the training ran on its machine says nothing of this one.
    trained = saved.config.run
    kept = ("tta", "tta_share", "amp", "tf32", "eval_size")
    run = RunConfig(**{name: getattr(trained, name) for name in kept})
    plan = _with_data(override(dataclasses.replace(saved.config, run=run), given), given, verify=verify)
    config = dataclasses.replace(plan.config, model=saved.config.model)
    check_classes(saved, plan.prepared)
    check_shape(saved, plan.prepared, evaluated_shape(config, plan.prepared.manifest))
    return Plan(config, as_trained(plan.prepared, saved), tuple(_scale_notes(config, plan.prepared)))


def _scale_notes(config: Config, prepared: PreparedSet) -> Iterator[str]:
    """For images that are not cropped, and of another size than those that the network was trained on."""
    if not config.crop.sizes and min(prepared.manifest.image_shape[:2]) != config.model.image_size:
        yield (
            f"note: the network was trained on images of {config.model.image_size} pixels, and these have "
            f"{min(prepared.manifest.image_shape[:2])}, so it sees them at another scale"
        )


def _check_data_is_there(saved: Saved, given: Given) -> None:
    path = saved.config.data.path
    if "path" not in given.get("data", {}) and not Path(path).exists():
        raise ConfigError(f"the run's data, {path}, are not there any more; give --data")


def _given_set(given: Given) -> PreparedSet:
    return PreparedSet.open(given.get("data", {}).get("path", DataConfig.path))


def _with_data(config: Config, given: Given, *, verify: bool) -> Plan:
    path = Path(config.data.path)
    prepared = PreparedSet.open(path, verify=verify)
    # Absolute: the run may be continued from elsewhere.
    data = dataclasses.replace(config.data, path=str(path.resolve()))
    config = dataclasses.replace(config, data=data)
    fitted = fit_to_data(config, prepared)
    check_tta(fitted.run.tta, *evaluated_shape(fitted, prepared.manifest)[:2])
    check_meant(given, fitted)
    return Plan(fitted, prepared, tuple(_notes(config, fitted, prepared.manifest)))


def check_meant(given: Given, fitted: Config) -> None:
    """ConfigError for settings that mean nothing, for these images or without another setting."""
    if "proxy" in given.get("selection", {}) and fitted.selection.share == 1:
        raise ConfigError("selection.proxy means nothing where selection.share is 1; give a share below 1, or no proxy")
    if "tta_share" in given.get("run", {}) and fitted.run.tta == "none":
        raise ConfigError("run.tta_share means nothing without --tta; add it, or leave that setting out")
    if fitted.crop.sizes:
        for name in given.get("augment", {}):
            raise ConfigError(f"augment.{name} is for images that are not cropped; leave it out, or set crop.* instead")
        return
    cropping = {**given.get("crop", {}), "eval_size": given.get("run", {}).get("eval_size")}
    for name, value in cropping.items():
        where = f"run.{name}" if name == "eval_size" else f"crop.{name}"
        if not is_none(value) and value not in ((), []):
            raise ConfigError(
                f"{where} is for images that are cropped, and these, which all have one shape, are not; leave it out, "
                "or add --image-size"
            )


def _notes(config: Config, fitted: Config, manifest: Manifest) -> Iterator[str]:
    before, now = config.data.batch_size, fitted.data.batch_size
    if now != before:
        yield f"batch size {before} -> {now}: the training split holds no more images"
    if fitted.crop.sizes and not config.crop.sizes and manifest.ragged:
        side = manifest.ragged.side
        yield f"crops of {fitted.crop.size} pixels, by the images' shorter sides of {side}; --image-size chooses others"
    if config.data.loader == "resident" and config.data.workers is not None and not manifest.ragged:
        yield "note: loader resident copies images of one shape once; --workers does nothing there"
    if manifest.ragged and max(fitted.crop.sizes) > manifest.ragged.side:
        yield (
            f"note: crops of {max(fitted.crop.sizes)} pixels are larger than the images, whose shorter sides are "
            f"{manifest.ragged.side} (median); smaller ones by --image-size train faster"
        )
    if fitted.augment != config.augment:
        yield "note: the images are cropped, by the settings crop.*; the recipe's augment.* are left out"
    if config.crop != CropConfig() and not fitted.crop.sizes:
        yield "note: the images all have one shape and are not cropped without --image-size; crop.* are left out"


def default_recipe(given: Given, prepared: PreparedSet) -> str:
    """The recipe for this machine, these images and the network that is given."""
    if weights_of(given) is not None:
        return FINE_TUNE_RECIPE
    ragged = prepared.manifest.ragged is not None
    device = resolve_device(str(given.get("run", {}).get("device", RunConfig.device)))
    if device.type == "cuda":
        return PHOTOS_GPU_RECIPE if ragged else GPU_RECIPE
    for_cpu = PHOTOS_CPU_RECIPE if ragged else SLOW_CPU_RECIPE if is_slow_cpu() else CPU_RECIPE
    return recipe_for_network(given, ragged=ragged) or for_cpu


def fit_to_data(config: Config, prepared: PreparedSet) -> Config:
    """Take the model's input and output from the data, and a batch size that a small split can fill; of the settings
    `augment` and `crop`, those that mean nothing for these images get their defaults."""
    manifest = prepared.manifest
    config = _fit_crop(config, manifest)
    sides = config.crop.sizes or (min(evaluated_shape(config, manifest)[:2]),)
    model = dataclasses.replace(
        config.model, num_classes=len(manifest.classes), image_size=sides[-1], in_channels=manifest.channels
    )
    for side in (*sides, config.run.eval_size or sides[-1]):
        # ConfigError where a network has no room in it.
        dataclasses.replace(model, image_size=side)
    if config.selection.share < 1:
        for side in sides:
            proxy_model(config.selection.proxy, dataclasses.replace(model, image_size=side))
    batch_size = min(config.data.batch_size, max(prepared.size("train"), 1))
    return dataclasses.replace(config, model=model, data=dataclasses.replace(config.data, batch_size=batch_size))


def _fit_crop(config: Config, manifest: Manifest) -> Config:
    if manifest.ragged and not config.crop.sizes:
        size = max(min(manifest.ragged.side, _CROP) // _CROP_STEP * _CROP_STEP, _CROP_STEP)
        config = dataclasses.replace(config, crop=dataclasses.replace(config.crop, size=size))
    if config.crop.sizes:
        return dataclasses.replace(config, augment=AugmentSpec())
    return dataclasses.replace(config, crop=CropConfig(), run=dataclasses.replace(config.run, eval_size=None))


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
    before = override(saved.config, without_overruled(kept))
    if config.model.weights is not None:
        # What else their file says of the network may not be there any more.
        model = {**given.get("model", {}), "weights": config.model.weights}
        config = dataclasses.replace(config, model=override(saved.config, {"model": model}).model)
    data = dataclasses.replace(before.data, path=config.data.path)
    fitted = fit_to_data(dataclasses.replace(config, data=data, run=before.run), prepared)
    notes = (
        f"note: {section}.{name} stays {began}, as the run began, not {alone}"
        for section, name, began, alone in differences(fitted, config)
    )
    return Plan(fitted, prepared, tuple(notes))
