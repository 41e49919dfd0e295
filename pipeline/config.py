"""What a run is made of: one validated, frozen dataclass per component, apart from the objects built from them."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kernels.augment import AugmentSpec
from kernels.philox import check_seed
from pipeline.errors import ConfigError, check_name
from pipeline.models import FUSIONS, ModelConfig

SCHEDULES = ("constant", "multistep", "plateau", "onecycle", "triangular", "cosine")
OPTIMIZERS = ("sgd", "muon")
TTA = ("none", "flip", "multicrop")
AMP_DTYPES = ("off", "auto", "bf16", "fp16")
COMPILE_MODES = ("default", "max-autotune-no-cudagraphs")
# Rates are float32 on the device.
_LARGEST_RATE = 1e30
T = TypeVar("T")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """path: the prepared set. loader: a name from `pipeline.loaders.LOADERS`. workers: loading processes or threads
    of the loaders that have them, None for what suits the loader. normalise: ``set`` by the training split's mean and
    standard deviation, ``half`` by 0.5 and 0.5. dali_augment: ``native`` augments inside DALI's graph."""

    path: str = "data/cifar10"
    loader: str = "resident"
    batch_size: int = 512
    workers: int | None = None
    normalise: str = "set"
    dali_augment: str = "kernel"

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, f"batch size {self.batch_size} is too small; give 1 or more")
        _require(self.workers is None or self.workers >= 0, f"{self.workers} workers; give 0 or more")
        check_name("normalisation", self.normalise, ("set", "half"))
        check_name("augmentation of DALI", self.dali_augment, ("kernel", "native"))
        dali = self.loader == "dali" or self.dali_augment == "kernel"
        _require(dali, f"--dali-augment native does not fit --loader {self.loader}; add --loader dali")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights are moved. Rates are peaks, for the mean loss of a batch; the schedule scales all of them alike.

    name: ``sgd`` with momentum, or ``muon``: the filters of convolutions by Muon (see `pipeline.muon`), all else by
    SGD. lr: of everything that has no rate of its own below. bias_lr: of parameters of one dimension, which are
    biases and normalisation's. head_lr: of the classifier's weights. whiten_lr: of the bias of a whitening layer,
    whose rate falls linearly to zero over the first whiten_epochs epochs, whatever the schedule.

    weight_decay: at the peak, lr * weight_decay of a weight goes into the step that momentum is made of, also where
    the weight has a rate of its own. It applies to weights of convolutions (but Muon's, whose norms are fixed) and of
    the classifier, and to parameters of one dimension only with decay_all. muon_momentum, muon_iterations: Muon's
    momentum and its Newton-Schulz iterations. grad_clip: largest norm of the whole gradient. ema_decay: per step, of
    the averaged weights that evaluation uses; None for no averaging. lookahead: steps between two of its corrections
    (see `pipeline.averaging.Lookahead`), whose decay per step is lookahead_decay; None for none."""

    name: str = "sgd"
    lr: float = 0.4
    bias_lr: float | None = None
    head_lr: float | None = None
    whiten_lr: float | None = None
    whiten_epochs: int = 3
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_all: bool = False
    muon_momentum: float = 0.6
    muon_iterations: int = 5
    label_smoothing: float = 0.0
    grad_clip: float | None = None
    ema_decay: float | None = None
    lookahead: int | None = None
    lookahead_decay: float = 0.95

    def __post_init__(self) -> None:
        check_name("optimizer", self.name, OPTIMIZERS)
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
    """How the learning rate moves; see `pipeline.schedules`. warmup and milestones are fractions of the whole
    run, start (of the warm-up) and final are fractions of the peak; gamma, threshold and patience (epochs) serve
    multistep and plateau."""

    name: str = "triangular"
    warmup: float = 0.0
    start: float = 0.0
    final: float = 0.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    threshold: float = 0.1
    patience: int = 3

    def __post_init__(self) -> None:
        check_name("schedule", self.name, SCHEDULES)
        _require(0 <= self.warmup < 1, f"warmup {self.warmup} must be a fraction of the run in [0, 1)")
        _require(0 <= self.start <= 1, f"start {self.start} must be a fraction of the peak rate in [0, 1]")
        _require(0 <= self.final <= 1, f"final {self.final} must be a fraction of the peak rate in [0, 1]")
        rising = all(a < b for a, b in zip((0, *self.milestones), (*self.milestones, 1), strict=True))
        _require(rising, f"milestones {self.milestones} must rise between 0 and 1, fractions of the run")
        _require(0 < self.gamma <= 1, f"gamma {self.gamma} must be in (0, 1]")
        _require(0 <= self.threshold < 1, f"threshold {self.threshold} must be in [0, 1)")
        _require(self.patience >= 0, f"patience {self.patience} must be 0 epochs or more")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long and how to run. steps: the length in steps instead of epochs. amp: autocast type, ``auto`` for
    bf16 where the hardware has it. tf32: float32 convolutions by TF32 where the GPU has it, which is torch's
    default. compile and graph: None for what is best on the device. compile_mode: of
    torch.compile. fuse: which layers share a kernel, see `pipeline.models.build_model`.
    tta: ``flip`` averages the predictions for each test image and its mirror image, ``multicrop`` those for both
    and for both moved by a pixel either way along the diagonal (see `pipeline.evaluate`)."""

    epochs: int = 16
    steps: int | None = None
    seed: int = 0
    device: str = "auto"
    amp: str = "off"
    tf32: bool = True
    compile: bool | None = None
    compile_mode: str = "default"
    fuse: str = "none"
    channels_last: bool = True
    graph: bool | None = None
    deterministic: bool = False
    eval_every: int = 1
    target_accuracy: float | None = None
    tta: str = "none"

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, f"{self.epochs} epochs; give 1 or more")
        _require(self.steps is None or self.steps >= 1, f"{self.steps} steps; give 1 or more")
        _require(self.eval_every >= 1, f"eval every {self.eval_every} epochs; give 1 or more")
        check_seed(self.seed)
        check_name("amp type", self.amp, AMP_DTYPES)
        check_name("compile mode", self.compile_mode, COMPILE_MODES)
        check_name("fusion", self.fuse, FUSIONS)
        fits = self.fuse == "none" or self.channels_last
        _require(fits, f"--fuse {self.fuse} needs channels_last memory; give --channels-last")
        check_name("test-time augmentation", self.tta, TTA)
        target = self.target_accuracy
        _require(target is None or 0 < target <= 1, f"target accuracy {target} must be a fraction in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole of a run's settings, as saved with it."""

    recipe: str = "custom"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers, for JSON and for checkpoints."""
        plain = dataclasses.asdict(self)
        plain["schedule"]["milestones"] = list(self.schedule.milestones)
        return plain

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Config:
        """The inverse of `to_dict`; raises ConfigError on unknown keys and on values of a wrong type."""
        return _build(Config, values, "config")


def differences(before: Config, now: Config) -> Iterator[tuple[str, str, Any, Any]]:
    """(section, setting, its value before, its value now) of every setting that is not the same in both."""
    for section in dataclasses.fields(Config):
        first, second = getattr(before, section.name), getattr(now, section.name)
        if dataclasses.is_dataclass(first):
            for name, value in vars(first).items():
                if value != getattr(second, name):
                    yield section.name, name, value, getattr(second, name)


def _build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    hints = typing.get_type_hints(cls)
    fields = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    arguments = {}
    for name, value in values.items():
        check_name(f"setting in {where}", name, fields)
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}.{name} is {value!r}; it must be a table of settings")
            arguments[name] = _build(hints[name], value, f"{where}.{name}")
        else:
            arguments[name] = _convert(value, hints[name], f"{where}.{name}")
    return cls(**arguments)


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Check a plain value against a field's type; whole numbers serve as floats, lists as tuples."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is tuple and isinstance(value, (list, tuple)):
            return tuple(_convert(part, typing.get_args(option)[0], where) for part in value)
        if origin is typing.Literal and value in typing.get_args(option):
            return value
        if origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if isinstance(origin, type) and type(value) is origin:
            return value
    raise ConfigError(f"{where} is {value!r}; it must be {getattr(hint, '__name__', hint)}")
