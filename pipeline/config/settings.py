"""What a run is made of: one validated, frozen dataclass a component, apart from the objects built from them.

Each setting has its docstring below it. ``fast-train --help`` and the table of docs/recipes.md are made from these;
names that a setting allows stand in its type.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fast_train.common.text import show
from fast_train.kernels.spec import MAX_OUTPUT, AugmentSpec, CropChanges, CropSpec, check_seed
from fast_train.pipeline.config.architectures import (
    ARCHITECTURES,
    LARGEST_CIFAR_STEM,
    SMALLEST_SPEEDNET_IMAGE,
    SPEEDNETS,
    Activation,
    Fusion,
    Shortcut,
    Stem,
    architecture_names,
)
from fast_train.pipeline.config.convert import Setting, build, check_choice, describe
from fast_train.pipeline.errors import ConfigError, check_name

LoaderName = Literal["resident", "ffcv", "dali", "torch"]
ResidentMemory = Literal["auto", "device", "host"]
Normalise = Literal["set", "half", "imagenet"]
TestTimeAugmentation = Literal["none", "flip", "multicrop"]
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_INTERVAL = re.compile(r"\d{1,12}|\d{1,12}(\.\d{1,12})?[smh]", re.ASCII)
# Rates are float32 on the device.
_LARGEST_RATE = 1e30


def _require(condition: object, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _check_side(place: str, side: int) -> None:
    _require(1 <= side <= MAX_OUTPUT, f"{place} {side} is out of range; give 1 to {MAX_OUTPUT} pixels")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """An architecture and its variations, of which a speednet has none."""

    arch: str = "resnet18"
    """The network: resnet18, preact-resnet18, plain-20, speednet8 ..."""
    num_classes: int = 10
    """Logits; taken from the prepared set."""
    image_size: int = 32
    """Side in pixels, which only decides the stem `auto`; taken from the prepared set."""
    in_channels: int = 3
    """Channels of an image; taken from the prepared set."""
    stem: Stem = "auto"
    """`cifar` is a 3x3 convolution, `imagenet` a 7x7 one of stride 2 and a max-pool; `auto` is `cifar` up to 64
    pixels."""
    shortcut: Shortcut | None = None
    """Option of He et al. 2015, section 4.1: `A` zero padding, `B` projection where shapes differ, `C` projection
    everywhere; none for the network's own, `A` with 16-32-64 channels and `B` otherwise."""
    activation: Activation = "relu"
    """The nonlinearity after each BatchNorm."""
    zero_init_residual: bool = False
    """Start every block as its shortcut (Goyal et al. 2017, section 5.1)."""
    weights: str | None = None
    """What the training begins with in place of random weights: a run's folder or checkpoint, or a state dict with
    torchvision's names."""
    weights_sha256: str | None = None
    """The SHA-256 that this file is to have; none for any, which the run then records."""
    freeze: Literal["none", "stem", "layer1", "layer2", "layer3", "backbone"] = "none"
    """Up to which part of the network these weights, and BatchNorm's statistics, stay as they are; `backbone` is all
    but the classifier."""

    def __post_init__(self) -> None:
        check_name("architecture", self.arch, architecture_names())
        for name in ("stem", "activation", "shortcut", "freeze"):
            check_choice(name, self, name)
        _require(self.weights != "", "model.weights is empty; give a path, or leave it out")
        for name in ("weights_sha256", "freeze"):
            given = getattr(self, name) not in (None, "none")
            _require(self.weights or not given, f"model.{name} means nothing without --weights; add it")
        for name in ("num_classes", "image_size", "in_channels"):
            _require(getattr(self, name) >= 1, f"model.{name} is {getattr(self, name)}; give 1 or more")
        if self.arch in SPEEDNETS:
            self._check_speednet()
        elif ARCHITECTURES[self.arch].shortcut is None and (self.shortcut or self.zero_init_residual):
            setting = "shortcut" if self.shortcut else "zero_init_residual"
            twin = self.arch.replace("plain-", "resnet")
            raise ConfigError(f"{self.arch} has no shortcuts; leave out model.{setting}, or take {twin}")

    @property
    def first_layers(self) -> Literal["cifar", "imagenet"]:
        """What `stem` stands for; a speednet begins at full size too."""
        if self.stem != "auto":
            return self.stem
        return "cifar" if self.image_size <= LARGEST_CIFAR_STEM or self.arch in SPEEDNETS else "imagenet"

    def _check_speednet(self) -> None:
        for name in ("stem", "shortcut", "activation", "zero_init_residual", "freeze"):
            if getattr(self, name) != ModelConfig.__dataclass_fields__[name].default:
                raise ConfigError(f"{self.arch} has no choice of model.{name}; leave it out, or take another --arch")
        _require(
            self.image_size >= SMALLEST_SPEEDNET_IMAGE,
            f"{self.arch} needs images of {SMALLEST_SPEEDNET_IMAGE} pixels or more a side, not {self.image_size}; take "
            "another --arch",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on, and how it comes to the device."""

    path: str = "data/cifar10"
    """The prepared set's folder."""
    loader: LoaderName = "resident"
    """What brings the batches; `--list-loaders` says which can run here."""
    batch_size: int = 512
    """Images a step, of all ranks together."""
    shard_resident: bool = False
    """On several ranks, `resident` holds in each its part of the training split instead of all of it; the order of the
    images is then another one."""
    workers: int | None = None
    """Loading processes (`torch`) or threads (`ffcv`, `dali`, and `resident` to decode images that keep their shapes);
    none for what suits the loader."""
    resident_memory: ResidentMemory = "auto"
    """Where `resident` keeps the pixels for a GPU: in its memory (`device`), in the computer's, page-locked, which the
    GPU reads over the bus (`host`), or in the first of both that has room: `auto` fills at most half of what the GPU
    has free."""
    normalise: Normalise = "set"
    """`set` by the training split's mean and standard deviation, `half` by 0.5 and 0.5, `imagenet` by ImageNet's, which
    torchvision's weights are for."""
    dali_augment: Literal["kernel", "native"] = "kernel"
    """Who augments what `dali` loads: our `kernel`, or DALI's graph (`native`)."""

    @property
    def format(self) -> str:
        """The files that the loader reads, as `prep-data --formats` calls them."""
        return self.loader if self.loader in ("ffcv", "dali") else "packed"

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, f"batch size {self.batch_size} is too small; give 1 or more")
        _require(self.workers is None or self.workers >= 0, f"{self.workers} workers; give 0 or more")
        check_choice("loader", self, "loader")
        fits = self.loader == "resident" or not self.shard_resident
        _require(fits, f"--shard-resident does not fit --loader {self.loader}; add --loader resident")
        check_choice("memory", self, "resident_memory")
        check_choice("normalisation", self, "normalise")
        check_choice("augmentation of DALI", self, "dali_augment")
        dali = self.loader == "dali" or self.dali_augment == "kernel"
        _require(dali, f"--dali-augment native does not fit --loader {self.loader}; add --loader dali")


@dataclass(frozen=True, kw_only=True)
class CropConfig(CropChanges):
    """The crops that training sees. Images that keep their own shapes are always cropped, those of one shape where a
    size is given; `augment` is for images that are not."""

    scale: tuple[float, float] | None = (0.08, 1.0)
    centre: float = 0.875
    flip: bool = True
    size: int | None = None
    """Side of the crops in pixels; none for 224 where images have their own shapes, or the largest multiple of 32 that
    is not above the median of their shorter sides, and for no crops where all have one shape."""
    progressive: tuple[int, ...] = ()
    """Sizes of the crops for equal parts of the run, one after the other, in place of one size: small crops train
    faster, and the last size is the one that counts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        both = self.size is not None and self.progressive
        _require(not both, "crop.size and crop.progressive both say how large the crops are; leave one of them out")
        for size in self.sizes:
            _check_side("crop.progressive" if self.progressive else "crop.size", size)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sides of the crops in the order of training, in pixels; empty where images are not cropped."""
        return self.progressive or (() if self.size is None else (self.size,))

    def spec(self, size: int) -> CropSpec:
        """What training does to an image."""
        return CropSpec(size=size, **{item.name: getattr(self, item.name) for item in dataclasses.fields(CropChanges)})


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Which images of a batch the network is trained on. The choice is of a small network, the proxy, which is trained
    beside it on the same images, by the same settings but for averages of weights (the idea of airbench96_faster,
    Jordan 2024)."""

    share: float = 1.0
    """The part of each batch that the network is trained on, above 0 and up to 1: the images that a small network, the
    proxy, finds hardest, by its loss. 1 for all of them, without a proxy."""
    proxy: str = "small-speednet8"
    """The proxy's network, by its name as for `model.arch`."""

    def __post_init__(self) -> None:
        _require(0 < self.share <= 1, f"selection.share {self.share} must be a fraction above 0, up to 1")
        check_name("architecture", self.proxy, architecture_names())


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights are moved. Rates are peaks, for the mean loss of a batch; the schedule scales all of them alike."""

    name: Literal["sgd", "muon"] = "sgd"
    """`sgd` with momentum, or `muon`: the filters of convolutions by Muon, all else by SGD."""
    lr: float = 0.4
    """Peak learning rate; with Muon that of the filters."""
    bias_lr: float | None = None
    """Peak rate of parameters of one dimension, which are biases and normalisation's; none for `lr`."""
    head_lr: float | None = None
    """Peak rate of the classifier's weights; none for `lr`."""
    whiten_lr: float | None = None
    """Peak rate of a whitening layer's bias; none for `lr`."""
    whiten_epochs: int = 3
    """Epochs over which that rate falls linearly to zero, whatever the schedule."""
    momentum: float = 0.9
    """Of SGD."""
    nesterov: bool = True
    """Nesterov's form of the momentum, of SGD and of Muon."""
    weight_decay: float = 5e-4
    """Of convolutions (not those moved by Muon, whose norms are fixed) and of the classifier: at the peak, lr *
    weight_decay of a weight goes into the step that momentum is made of, also where the weight has a rate of its
    own."""
    decay_all: bool = False
    """Weight decay for parameters of one dimension too."""
    muon_momentum: float = 0.6
    """Of Muon."""
    muon_iterations: int = 5
    """Newton-Schulz iterations a step, of Muon."""
    label_smoothing: float = 0.0
    """Of the loss: the part of the target that is spread over all classes."""
    grad_clip: float | None = None
    """Largest norm of the whole gradient; none for no clipping."""
    ema_decay: float | None = None
    """Decay per step of averaged weights, which evaluation then uses; none for no averaging."""
    lookahead: int | None = None
    """Steps between two of Lookahead's corrections (Zhang et al. 2019); none for no Lookahead."""
    lookahead_decay: float = 0.95
    """Of Lookahead's slow weights, per step."""

    def __post_init__(self) -> None:
        check_choice("optimizer", self, "name")
        _require(0 < self.lr < _LARGEST_RATE, f"learning rate {self.lr} must be above 0 and below {_LARGEST_RATE:g}")
        for name in ("bias_lr", "head_lr", "whiten_lr"):
            rate = getattr(self, name)
            fits = rate is None or 0 < rate < _LARGEST_RATE
            _require(fits, f"{name} {rate} must be above 0 and below {_LARGEST_RATE:g}")
        _require(self.whiten_epochs >= 1, f"whiten_epochs {self.whiten_epochs} must be 1 or more")
        _require(0 <= self.momentum < 1, f"momentum {self.momentum} must be in [0, 1)")
        _require(not self.nesterov or self.momentum > 0, "Nesterov needs a momentum above 0")
        _require(0 <= self.weight_decay < math.inf, f"weight decay {self.weight_decay} must be 0 or more")
        _require(0 <= self.muon_momentum < 1, f"Muon's momentum {self.muon_momentum} must be in [0, 1)")
        _require(self.muon_iterations >= 1, f"{self.muon_iterations} Muon iterations; give 1 or more")
        _require(0 <= self.label_smoothing < 1, f"label smoothing {self.label_smoothing} must be in [0, 1)")
        _require(self.grad_clip is None or self.grad_clip > 0, f"grad clip {self.grad_clip} must be above 0")
        _require(self.ema_decay is None or 0 < self.ema_decay < 1, f"EMA decay {self.ema_decay} must be in (0, 1)")
        _require(self.lookahead is None or self.lookahead >= 1, f"lookahead {self.lookahead} must be 1 step or more")
        _require(0 <= self.lookahead_decay < 1, f"lookahead decay {self.lookahead_decay} must be in [0, 1)")
        both = self.ema_decay is not None and self.lookahead is not None
        _require(not both, "ema_decay and lookahead both average the weights; leave one of them out")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate moves; see `pipeline.optim.schedules`."""

    name: Literal["constant", "multistep", "plateau", "onecycle", "triangular", "cosine"] = "triangular"
    """The curve of the rate over the run."""
    warmup: float = 0.0
    """Fraction of the run over which the rate rises."""
    start: float = 0.0
    """Fraction of the peak from which it rises (`onecycle`: 1/25)."""
    final: float = 0.0
    """Fraction of the peak at the end, of `triangular`, `cosine` and `onecycle`."""
    milestones: tuple[float, ...] = ()
    """Fractions of the run at which `multistep` multiplies the rate by gamma."""
    gamma: float = 0.1
    """Factor of `multistep` and `plateau`."""
    threshold: float = 0.1
    """Fraction by which the training loss must fall for `plateau` to count an epoch as better."""
    patience: int = 3
    """Epochs without such a fall after which, with one more, `plateau` multiplies the rate by gamma."""

    def __post_init__(self) -> None:
        check_choice("schedule", self, "name")
        _require(0 <= self.warmup < 1, f"warmup {self.warmup} must be a fraction of the run in [0, 1)")
        _require(0 <= self.start <= 1, f"start {self.start} must be a fraction of the peak rate in [0, 1]")
        _require(0 <= self.final <= 1, f"final {self.final} must be a fraction of the peak rate in [0, 1]")
        rising = all(a < b for a, b in zip((0, *self.milestones), (*self.milestones, 1), strict=True))
        _require(rising, f"milestones {self.milestones} must rise between 0 and 1, fractions of the run")
        _require(0 < self.gamma <= 1, f"gamma {self.gamma} must be in (0, 1]")
        _require(0 <= self.threshold < 1, f"threshold {self.threshold} must be in [0, 1)")
        _require(self.patience >= 0, f"patience {self.patience} must be 0 epochs or more")


def check_device(name: str) -> None:
    """ConfigError for what names no kind of device, here or elsewhere."""
    _require(re.fullmatch("auto|cpu|mps|cuda(:[0-9]{1,3})?", name) is not None,
             f"unknown device '{name}'; give cpu, cuda, cuda:N or mps")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long and how to run."""

    epochs: int = 16
    """Length of the run."""
    steps: int | None = None
    """Its length in steps instead of epochs."""
    seed: int = 0
    """Of weights, order and augmentation."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:N` or `mps`, which is Apple's GPU; `auto` is a GPU if there is one."""
    amp: Literal["off", "auto", "bf16", "fp16"] = "off"
    """Mixed precision, by its type; `auto` is bf16 where the hardware has it."""
    tf32: bool = True
    """Float32 convolutions by TF32 where the GPU has it, which is torch's default."""
    compile: bool | None = None
    """torch.compile; none for where it is faster: on a GPU."""
    compile_mode: Literal["default", "max-autotune-no-cudagraphs"] = "default"
    """Of torch.compile; `max-autotune-no-cudagraphs` measures more kernels before the first step."""
    fuse: Fusion = "none"
    """`norm`: BatchNorm, addition and ReLU in one kernel; `conv`: BatchNorm's sums in the convolutions too; `cudnn`:
    the same by cuDNN 9.24 on an H100, in bfloat16, and `norm` where that can't be."""
    channels_last: bool = True
    """Memory format of weights and images."""
    sync_batchnorm: bool = False
    """On several ranks, BatchNorm by the mean and variance of the whole batch instead of each rank's part."""
    graph: bool | None = None
    """The whole step as one CUDA graph; none for where it can be: on a GPU."""
    deterministic: bool = False
    """Bit-reproducible algorithms, slower."""
    threads: int | None = None
    """Threads of a step on the CPU; the last bits of its results depend on them; none for the fastest number, which the
    first steps find (with `deterministic`: all usable cores)."""
    eval_every: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    save_every: str | int | None = None
    """Steps (`500`) or time (`90s`, `10m`, `2h`) between checkpoints, inside epochs too; none for the ends of epochs,
    at most every ten seconds. The end and a signal always save."""
    keep: int = 0
    """How many checkpoints to keep beside the last one, as `checkpoints/step-N.pt`: the newest ones."""
    keep_best: bool = False
    """Keep the checkpoint of the best accuracy, on the validation split of a set that has one, else on the test split,
    as `best.pt`. Of a set that has both, the test split is evaluated with these weights, once, at the end."""
    target_accuracy: float | None = None
    """Stop when the accuracy on the validation split, else on the test split, reaches this fraction."""
    patience: int | None = None
    """Stop when that accuracy has not risen for so many evaluations, and keep `best.pt` too; none for no such end."""
    tta: TestTimeAugmentation = "none"
    """Test-time augmentation: `flip` averages the predictions for each image and its mirror image, `multicrop` those
    for both and for both moved by a pixel either way along the diagonal."""
    tta_share: float = 1.0
    """The part of each evaluated batch, 0 to 1, rounded up to whole images, that gets the views of `run.tta`: the
    images whose prediction without them is the least certain. The others keep that prediction."""
    eval_size: int | None = None
    """Side in pixels of the crops that are evaluated, the images' centres (`crop.centre`); none for that of training,
    its last one."""

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, f"{self.epochs} epochs; give 1 or more")
        _require(self.steps is None or self.steps >= 1, f"{self.steps} steps; give 1 or more")
        _require(self.eval_every >= 1, f"eval every {self.eval_every} epochs; give 1 or more")
        if self.save_every is not None:
            # As a flag gives it, so that a run that goes on sees no difference.
            object.__setattr__(self, "save_every", str(self.save_every))
            _require(
                _INTERVAL.fullmatch(str(self.save_every)) and self.save_interval,
                f"save every '{show(str(self.save_every))}' is no number of steps or time; give 500, 90s, 10m or 2h",
            )
        _require(self.keep >= 0, f"keep {self.keep} checkpoints; give 0 or more")
        patience = self.patience
        _require(patience is None or patience >= 1, f"patience of {patience} evaluations; give 1 or more")
        check_seed(self.seed)
        _require(self.threads is None or 1 <= self.threads <= 1024, f"{self.threads} threads; give 1 to 1024")
        check_device(self.device)
        _require(not self.graph or self.device != "cpu", "--graph needs a CUDA device; give --no-graph")
        check_choice("amp type", self, "amp")
        check_choice("compile mode", self, "compile_mode")
        check_choice("fusion", self, "fuse")
        fits = self.fuse == "none" or self.channels_last
        _require(fits, f"--fuse {self.fuse} needs channels_last memory; give --channels-last")
        fits = self.fuse == "none" or not self.sync_batchnorm
        _require(fits, f"--fuse {self.fuse} has no --sync-batchnorm; leave one of them out")
        fits = self.fuse != "cudnn" or not self.deterministic
        _require(fits, "--fuse cudnn adds sums up in any order; leave out --deterministic, or give --fuse norm")
        check_choice("test-time augmentation", self, "tta")
        _require(0 <= self.tta_share <= 1, f"run.tta_share {self.tta_share} must be a fraction in [0, 1]")
        if self.eval_size is not None:
            _check_side("run.eval_size", self.eval_size)
        target = self.target_accuracy
        _require(target is None or 0 < target <= 1, f"target accuracy {target} must be a fraction in (0, 1]")

    @property
    def keeps_best(self) -> bool:
        """Whether the best checkpoint is kept beside the last one."""
        return self.keep_best or self.patience is not None

    def epochs_begun(self, steps_per_epoch: int) -> int:
        """How many epochs the run takes; the last may be a part of one where its length is in steps."""
        return self.epochs if self.steps is None else math.ceil(self.steps / steps_per_epoch)

    def total_steps(self, steps_per_epoch: int) -> int:
        """How many steps the run takes."""
        return self.steps or self.epochs * steps_per_epoch

    @property
    def save_interval(self) -> int | float | None:
        """``save_every`` as steps, an int, or seconds, a float."""
        if self.save_every is None:
            return None
        number, unit = str(self.save_every).rstrip("smh"), str(self.save_every)[-1]
        return float(number) * _SECONDS[unit] if unit in _SECONDS else int(number)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole of a run's settings, as saved with it."""

    recipe: str = "custom"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    crop: CropConfig = field(default_factory=CropConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers, for JSON and for checkpoints."""
        plain = dataclasses.asdict(self)
        for section in SECTIONS:
            plain[section] = {k: list(v) if isinstance(v, tuple) else v for k, v in plain[section].items()}
        return plain

    @property
    def trained_images(self) -> int:
        """Images of a batch, of all ranks together, that the network is trained on."""
        return max(round(self.selection.share * self.data.batch_size), 1)

    @property
    def evaluated_crop(self) -> CropSpec | None:
        """What evaluation sees of an image: a square in its centre; None where images are not cropped."""
        if not self.crop.sizes:
            return None
        return CropSpec(size=self.run.eval_size or self.crop.sizes[-1], centre=self.crop.centre)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Config:
        """The inverse of `to_dict`; raises ConfigError on unknown keys and on values of a wrong type."""
        return build(Config, values, "config")


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "augment": AugmentSpec,
    "crop": CropConfig,
    "selection": SelectionConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "run": RunConfig,
}
#: What a prepared set decides, and no one else.
OF_THE_DATA = ("model.num_classes", "model.image_size", "model.in_channels")


def settings() -> dict[str, Setting]:
    """Every setting by its place, ``section.name``."""
    return {s.place: s for section, cls in SECTIONS.items() for s in describe(section, cls)}


def differences(before: Config, now: Config) -> Iterator[tuple[str, str, Any, Any]]:
    """(section, setting, its value before, its value now) of every setting that is not the same in both."""
    for section in SECTIONS:
        first, second = getattr(before, section), getattr(now, section)
        for name, value in vars(first).items():
            if value != getattr(second, name):
                yield section, name, value, getattr(second, name)
