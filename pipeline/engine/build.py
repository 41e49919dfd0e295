"""Builds the pieces of a run from its configuration."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, cast

import torch

from fast_train.common.phases import phase
from fast_train.data_prep.manifest import Manifest, PreparedSet
from fast_train.kernels.augment import augment, normalisation_table
from fast_train.kernels.spec import NO_AUGMENT
from fast_train.pipeline.config.settings import Config, ModelConfig
from fast_train.pipeline.device import data_device, device_name
from fast_train.pipeline.engine.augmentation import (
    AnyAugmenter,
    Augmentation,
    Augmenter,
    CropAugmenter,
    NativeAugmenter,
    crop_pixels,
    normalisation,
)
from fast_train.pipeline.engine.compiling import compiled
from fast_train.pipeline.engine.evaluate import evaluation_batch
from fast_train.pipeline.engine.graph import CapturedStep, warm_up
from fast_train.pipeline.engine.runtime import Runtime
from fast_train.pipeline.engine.step import Proxy, TrainStep
from fast_train.pipeline.engine.stored import stored_pixels
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.loaders import AnyBatch, Loader, Progress, build_loader
from fast_train.pipeline.loaders.native import NativeAugment, NativeCrop
from fast_train.pipeline.models import ResNet, build_model, initialise_from_data, starts_from_data
from fast_train.pipeline.models.synced import synchronised
from fast_train.pipeline.ranks import current

# Pixels of the images that a model starts from: the first 5,000 of CIFAR-10 (Jordan 2024, section 3.2).
_START_PIXELS = 5000 * 32 * 32


def evaluated_shape(config: Config, manifest: Manifest) -> tuple[int, int, int]:
    """(H, W, C) of the images that the model is evaluated on."""
    crop = config.evaluated_crop
    return manifest.image_shape if crop is None else (crop.size, crop.size, manifest.channels)


def trained_shapes(config: Config, manifest: Manifest) -> list[tuple[int, int, int]]:
    """[C, H, W] of the images that the model is trained on, the smallest first; several where crops grow."""
    if config.crop.sizes:
        return [(manifest.channels, size, size) for size in sorted(config.crop.sizes)]
    height, width, channels = manifest.image_shape
    return [(channels, height, width)]


def build_augmenter(config: Config, prepared: PreparedSet, runtime: Runtime, *, train: bool) -> AnyAugmenter:
    """The augmentation of the training split, or what evaluation sees: the images as they are, or their centres."""
    manifest = prepared.manifest
    common: dict[str, Any] = {
        "normalise": config.data.normalise,
        "dtype": runtime.image_dtype,
        "device": runtime.device,
        "seed": config.run.seed,
        "channels_last": runtime.channels_last,
    }
    if train and config.data.dali_augment == "native":
        return NativeAugmenter(manifest, (config.model.image_size,), **common)
    evaluated, sizes = config.evaluated_crop, config.crop.sizes
    if evaluated is None:
        return Augmenter(manifest, config.augment if train else NO_AUGMENT, **common)
    if train:
        return CropAugmenter(manifest, config.crop.spec(sizes[-1]), sizes=sizes, **common)
    return CropAugmenter(manifest, evaluated, **common)


@phase("reading")
def build_split_loader(
    config: Config,
    prepared: PreparedSet,
    runtime: Runtime,
    *,
    train: bool,
    split: str | None = None,
    progress: Progress | None = None,
) -> Loader:
    """The loader of the training split, or, to evaluate, of ``split``: None for the one that training is judged by.
    progress: see `LoaderOptions`."""
    split = "train" if train else split or prepared.evaluated_split
    height, width, _ = evaluated_shape(config, prepared.manifest)
    # The first layer of ImageNet's stem, the largest one, is half as high and wide as the image.
    halved = 2 if config.model.first_layers == "imagenet" else 1
    at_once = evaluation_batch(prepared.size(split), height // halved, width // halved)
    return build_loader(
        config.data.loader,
        prepared,
        split,
        batch_size=config.data.batch_size if train else at_once,
        seed=config.run.seed,
        device=data_device(runtime.device),
        train=train,
        workers=config.data.workers,
        native=_native(config, prepared, runtime) if train else None,
        resident_memory=config.data.resident_memory,
        progress=progress,
        rank=current().rank,
        ranks=current().size,
        shard=config.data.shard_resident,
    )


def _native(config: Config, prepared: PreparedSet, runtime: Runtime) -> NativeAugment | NativeCrop | None:
    """What the loader is to augment by itself."""
    if config.data.dali_augment == "kernel":
        return None
    mean, std = normalisation(prepared.manifest.mean, prepared.manifest.std, config.data.normalise)
    common: dict[str, Any] = {"mean": mean, "std": std, "dtype": runtime.image_dtype, "seed": config.run.seed}
    sizes = config.crop.sizes
    if not sizes:
        return NativeAugment(spec=config.augment, **common)
    if len(sizes) > 1:
        raise ConfigError(
            f"--dali-augment native makes crops of one size; add --image-size {sizes[-1]}, or leave it out"
        )
    return NativeCrop(spec=config.crop.spec(sizes[0]), **common)


def build_network(
    config: Config,
    runtime: Runtime,
    prepared: PreparedSet | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> torch.nn.Module:
    """The model, initialised from the run's seed, on the device and in the memory format of the run.

    weights: those of `ModelConfig.weights` that fit it. prepared: the set whose first training images a model that
    `starts_from_data` is given in their place. Neither is needed where weights come from a checkpoint or only speed is
    measured.
    """
    if config.model.freeze != "none" and runtime.fuse in ("conv", "cudnn"):
        raise ConfigError(f"--fuse {runtime.fuse} takes each batch's sums, and model.freeze has none; give --fuse norm")
    torch.manual_seed(config.run.seed)
    model = build_model(config.model, fuse=runtime.fuse)
    if weights is not None:
        # Not strict: a classifier that starts anew.
        model.load_state_dict(weights, strict=False)
    elif prepared is not None and starts_from_data(model):
        initialise_from_data(model, _first_images(config, prepared))
    model = model.to(runtime.device)
    if config.run.sync_batchnorm:
        model = synchronised(model)
    if config.model.freeze != "none":
        cast(ResNet, model).freeze(config.model.freeze)
    return model.to(memory_format=torch.channels_last) if runtime.channels_last else model


def _first_images(config: Config, prepared: PreparedSet) -> torch.Tensor:
    """The first images of the training split, normalised as the run does: float32 [N, C, H, W] on the CPU."""
    height, width, _ = evaluated_shape(config, prepared.manifest)
    count = min(max(_START_PIXELS // (height * width), 1), prepared.size("train"))
    table = normalisation_table(
        *normalisation(prepared.manifest.mean, prepared.manifest.std, config.data.normalise), torch.float32
    )
    if config.evaluated_crop is not None:
        return crop_pixels(stored_pixels(prepared, "train", range(count)), config.evaluated_crop, table)
    pixels = torch.tensor(prepared.packed("train").images[:count])
    return augment(pixels, torch.arange(count), table, spec=NO_AUGMENT, seed=0, epoch=0)


@phase("network")
def build_step(
    config: Config,
    augmenter: Augmentation,
    runtime: Runtime,
    *,
    prepared: PreparedSet | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> TrainStep:
    """The step of a run, not compiled or captured yet. prepared, weights: see `build_network`. ConfigError where
    several ranks are to choose images."""
    common: dict[str, Any] = {
        "device": runtime.device,
        "amp": runtime.amp,
        "compile": runtime.compile,
        "compile_mode": runtime.compile_mode,
    }
    model = build_network(config, runtime, prepared, weights)
    if config.selection.share == 1:
        return TrainStep(model, augmenter, config.optimizer, **common)
    if current().size > 1:
        raise ConfigError("selection.share below 1 is for a training in one process; leave it out, or train in one")
    beside = dataclasses.replace(config, model=proxy_model(config.selection.proxy, config.model))
    plain = dataclasses.replace(config.optimizer, ema_decay=None, lookahead=None)
    # Its network may have no fused twin; the default one has none.
    small = build_network(beside, dataclasses.replace(runtime, fuse="none"), prepared)
    proxy = Proxy(small, augmenter, plain, **common)
    return TrainStep(model, augmenter, config.optimizer, proxy=proxy, keep=config.trained_images, **common)


def proxy_model(arch: str, model: ModelConfig) -> ModelConfig:
    """A proxy for the images and classes of ``model``. ConfigError where these images leave it no room."""
    try:
        return ModelConfig(
            arch=arch, num_classes=model.num_classes, image_size=model.image_size, in_channels=model.in_channels
        )
    except ConfigError as error:
        raise ConfigError(f"selection.proxy: {str(error).replace('--arch', 'selection.proxy')}") from error


def check_batch(model: torch.nn.Module, config: Config, prepared: PreparedSet) -> None:
    """ConfigError where batches, or a rank's parts of them, are of one image, and so small a one that a BatchNorm of
    ``model`` gets a single value per channel, which has no variance. The model stays as it is."""
    ranks = current().size
    if config.trained_images // ranks > 1 or (config.run.sync_batchnorm and ranks > 1):
        return
    channels, height, width = trained_shapes(config, prepared.manifest)[0]
    try:
        # Shapes alone, without numbers.
        copy.deepcopy(model).to("meta").train()(torch.empty(1, channels, height, width, device="meta"))
    except ValueError as error:
        advice = "give a larger --batch-size" if prepared.size("train") > 1 else "train on more images"
        raise ConfigError(
            f"{config.model.arch} can't be trained on a batch of one image of {height}x{width} pixels: BatchNorm needs "
            f"more than one value per channel; {advice}"
        ) from error


def ready_steps(
    step: TrainStep, example: AnyBatch, runtime: Runtime, augmenter: AnyAugmenter, sizes: Collection[int]
) -> dict[int, Callable[[AnyBatch], None]]:
    """The step for images of each size, which the augmenter of the step makes: see `ready_step`."""
    if data_device(runtime.device).type == "cpu":
        # Here, and not in the first step: Numba compiles a crop when one is first made.
        with phase("compilation"):
            augmenter(example)
    ready: dict[int, Callable[[AnyBatch], None]] = {}
    beside: CapturedStep | None = None
    # The largest first: the others find room in the memory that it took.
    for size in sorted(sizes, reverse=True):
        augmenter.set_size(size)
        ready[size] = call = ready_step(step, example, runtime, beside=beside)
        beside = call if isinstance(call, CapturedStep) else None
    return ready


def ready_step(
    step: TrainStep, example: AnyBatch, runtime: Runtime, *, beside: CapturedStep | None = None
) -> Callable[[AnyBatch], None]:
    """The step as the run calls it: captured, or compiled, or as it is. example: a batch as the loader feeds it.
    beside: the same step, captured for images of another size.

    Compilation and capture happen here; the state of the step is as before. CompileError where it can't be compiled.
    """
    if runtime.compile:
        models = step.model, step.proxy and step.proxy.model, step.config
        shapes = [part.shape for part in example], getattr(step.augmenter, "size", None)
        what = repr((torch.__version__, device_name(runtime.device), runtime, models, shapes))
        return compiled(partial(_ready_step, step, example, runtime, beside), what=what)
    return _ready_step(step, example, runtime, beside)


def _ready_step(
    step: TrainStep, example: AnyBatch, runtime: Runtime, beside: CapturedStep | None
) -> Callable[[AnyBatch], None]:
    if runtime.graph:
        return CapturedStep(step, example, beside=beside)
    if runtime.compile:
        warm_up(step, example)
    return step
