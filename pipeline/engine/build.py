"""Builds the pieces of a run from its configuration."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch

from fast_train.data_prep.manifest import PreparedSet
from fast_train.kernels.augment import augment, normalisation_table
from fast_train.kernels.spec import NO_AUGMENT
from fast_train.pipeline.config.settings import Config
from fast_train.pipeline.engine.augmentation import Augmentation, Augmenter, NativeAugmenter, normalisation
from fast_train.pipeline.engine.evaluate import evaluation_batch
from fast_train.pipeline.engine.graph import CapturedStep, warm_up
from fast_train.pipeline.engine.memory import memory_error
from fast_train.pipeline.engine.runtime import Runtime
from fast_train.pipeline.engine.step import TrainStep
from fast_train.pipeline.errors import CompileError, ConfigError
from fast_train.pipeline.loaders import AnyBatch, Loader, build_loader
from fast_train.pipeline.loaders.native import NativeAugment
from fast_train.pipeline.models import build_model, initialise_from_data, starts_from_data

# Pixels of the images that a model starts from: the first 5,000 of CIFAR-10 (Jordan 2024, section 3.2).
_START_PIXELS = 5000 * 32 * 32
# Of a compiler's complaint, in letters.
_LONGEST_REASON = 300


def build_augmenter(config: Config, prepared: PreparedSet, runtime: Runtime, *, train: bool) -> Augmenter:
    """The augmentation of the training split, or the plain normalisation of evaluation."""
    kind = NativeAugmenter if train and config.data.dali_augment == "native" else Augmenter
    return kind(
        prepared.manifest,
        config.augment if train else NO_AUGMENT,
        normalise=config.data.normalise,
        dtype=runtime.image_dtype,
        device=runtime.device,
        seed=config.run.seed,
        channels_last=config.run.channels_last,
    )


def build_split_loader(
    config: Config, prepared: PreparedSet, runtime: Runtime, *, train: bool, split: str | None = None
) -> Loader:
    """The loader of the training split, or, to evaluate, of ``split``: None for the one that training is judged by."""
    split = "train" if train else split or prepared.evaluated_split
    native = None
    if train and config.data.dali_augment == "native":
        mean, std = normalisation(prepared.manifest.mean, prepared.manifest.std, config.data.normalise)
        native = NativeAugment(spec=config.augment, mean=mean, std=std, dtype=runtime.image_dtype, seed=config.run.seed)
    return build_loader(
        config.data.loader,
        prepared,
        split,
        batch_size=config.data.batch_size if train else evaluation_batch(prepared, split),
        seed=config.run.seed,
        device=runtime.device,
        train=train,
        workers=config.data.workers,
        native=native,
    )


def build_network(config: Config, runtime: Runtime, prepared: PreparedSet | None = None) -> torch.nn.Module:
    """The model, initialised from the run's seed, on the device and in the memory format of the run.

    prepared: the set whose first training images a model that `starts_from_data` is given; None leaves such a model
    without them, for weights from a checkpoint or where only speed is measured.
    """
    torch.manual_seed(config.run.seed)
    model = build_model(config.model, fuse=runtime.fuse)
    if prepared is not None and starts_from_data(model):
        initialise_from_data(model, _first_images(config, prepared))
    model = model.to(runtime.device)
    return model.to(memory_format=torch.channels_last) if config.run.channels_last else model


def _first_images(config: Config, prepared: PreparedSet) -> torch.Tensor:
    """The first images of the training split, normalised as the run does: float32 [N, C, H, W] on the CPU."""
    height, width, _ = prepared.manifest.image_shape
    pixels = prepared.packed("train").images[: max(_START_PIXELS // (height * width), 1)]
    table = normalisation_table(
        *normalisation(prepared.manifest.mean, prepared.manifest.std, config.data.normalise), torch.float32
    )
    indices = torch.arange(len(pixels))
    return augment(torch.tensor(pixels), indices, table, spec=NO_AUGMENT, seed=0, epoch=0)


def build_step(
    config: Config, augmenter: Augmentation, runtime: Runtime, *, prepared: PreparedSet | None = None
) -> TrainStep:
    """The step of a run, not compiled or captured yet. prepared: see `build_network`."""
    return TrainStep(
        build_network(config, runtime, prepared),
        augmenter,
        config.optimizer,
        device=runtime.device,
        amp=runtime.amp,
        compile=runtime.compile,
        compile_mode=runtime.compile_mode,
    )


def check_batch(model: torch.nn.Module, config: Config, prepared: PreparedSet) -> None:
    """ConfigError where batches are of one image, and so small a one that a BatchNorm of ``model`` gets a single value
    per channel, which has no variance. The model stays as it is."""
    if config.data.batch_size > 1:
        return
    height, width, channels = prepared.manifest.image_shape
    try:
        # Shapes alone, without numbers.
        copy.deepcopy(model).to("meta").train()(torch.empty(1, channels, height, width, device="meta"))
    except ValueError as error:
        advice = "give a larger --batch-size" if prepared.size("train") > 1 else "train on more images"
        raise ConfigError(
            f"{config.model.arch} can't be trained on a batch of one image of {height}x{width} pixels: BatchNorm needs "
            f"more than one value per channel; {advice}"
        ) from error


def ready_step(step: TrainStep, example: AnyBatch, runtime: Runtime) -> Callable[[AnyBatch], None]:
    """The step as the run calls it: captured, or compiled, or as it is. example: a batch as the loader feeds it.

    Compilation and capture happen here; the state of the step is as before. CompileError where it can't be compiled.
    """
    with _compile_errors() if runtime.compile else nullcontext():
        if runtime.graph:
            return CapturedStep(step, example)
        if runtime.compile:
            warm_up(step, example)
    return step


@contextmanager
def _compile_errors() -> Iterator[None]:
    """CompileError, in one line, for what goes wrong when torch.compile compiles; out of memory it is no such error."""
    # Here and not above: no other run needs it.
    from torch._dynamo.exc import TorchDynamoException

    try:
        with warnings.catch_warnings():
            # Of what a signal cuts short, the compiler prints where it was.
            warnings.filterwarnings("ignore", message="Error detected in", category=UserWarning)
            yield
    except TorchDynamoException as error:
        if memory_error(error) is not None:
            raise
        lines = str(error).splitlines()
        reason = next((line for line in lines if "error: " in line), lines[0])
        raise CompileError(f"torch.compile failed: {reason.strip()[:_LONGEST_REASON]}; add --no-compile") from error
