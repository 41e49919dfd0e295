"""What the lab measures, point by point, and what its rows say. Plain data: --help needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fast_train.benchmarks.instrument.records import Details

STEP, END_TO_END, AUGMENTATION, AUGMENTATION_CPU, KERNELS, LOSSES, FLOORS = (
    "step", "end-to-end", "augmentation", "augmentation-cpu", "kernels", "losses", "floors",
)  # fmt: skip
#: In the order in which they are measured.
POINTS = (FLOORS, AUGMENTATION, AUGMENTATION_CPU, LOSSES, KERNELS, STEP, END_TO_END)
#: Points for which steps are built.
ON_STEPS = (LOSSES, KERNELS, STEP, END_TO_END)
#: Points of a CPU: on another device only where they are asked for.
OF_A_CPU = (AUGMENTATION_CPU,)


@dataclass(frozen=True, kw_only=True)
class Option:
    """A way to a faster step. run: the settings of `RunConfig` that it changes. switches: those of `kernels.switches`;
    such an option is measured only where --options names it. plans: how many plans of a convolution cuDNN times at
    most, as torch.backends.cudnn.benchmark_limit, 0 for all; None for torch's own number. build_seconds: how long
    compiling and capturing it may take on a GPU, a guess on the safe side: it is not begun with less time left."""

    name: str
    run: Mapping[str, Any] = field(default_factory=dict)
    switches: Mapping[str, bool] = field(default_factory=dict)
    plans: int | None = None
    build_seconds: float = 50.0


PLAIN = Option(name="plain")
# The slowest to build comes last.
OPTIONS = (
    PLAIN,
    Option(name="shared table", switches={"shared_table": True}),
    Option(name="fused norm", run={"fuse": "norm"}),
    Option(name="norm without bits", run={"fuse": "norm"}, switches={"relu_bits": False}),
    Option(name="norm without joining", run={"fuse": "norm"}, switches={"joined_shortcut": False}),
    Option(name="norm with dependent launch", run={"fuse": "norm"}, switches={"dependent_launch": True}),
    Option(name="fused conv", run={"fuse": "conv"}),
    Option(name="conv with tma", run={"fuse": "conv"}, switches={"tma": True}),
    Option(name="fp16", run={"amp": "fp16"}),
    Option(name="all plans", plans=0, build_seconds=100.0),
    Option(name="max-autotune", run={"compile_mode": "max-autotune-no-cudagraphs"}, build_seconds=180.0),
    Option(name="fused cudnn", run={"fuse": "cudnn"}, build_seconds=200.0),
)


@dataclass(frozen=True, kw_only=True)
class StepDetails(Details):
    """A row of a step. point: ``step`` on a fixed batch, or ``end-to-end`` fed by the resident loader. share_of_step:
    of the rate on a fixed batch. over_plain: times the plain step's rate, with the ends of its interval."""

    option: str
    batch: int
    runtime: str
    point: str
    share_of_step: float | None = None
    over_plain: float | None = None
    over_plain_interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel's time in a step, and the group that it belongs to."""

    kernel: str
    ms: float
    group: str


@dataclass(frozen=True, kw_only=True)
class KernelsDetails(Details):
    """A row of all kernels of a step. longest: those that take the most time."""

    longest: tuple[Kernel, ...]


@dataclass(frozen=True, kw_only=True)
class GroupDetails(Details):
    """A row of a group of kernels. share: of the time of all kernels."""

    group: str
    share: float


@dataclass(frozen=True, kw_only=True)
class CpuAugmentationDetails(Details):
    """A row of the augmentation on the CPU. type: of what it writes. case: what is done to each image. over_reference:
    times the rate of the PyTorch reference."""

    implementation: str
    type: str
    case: str
    batch: int
    over_reference: float | None = None
