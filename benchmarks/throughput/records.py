"""What the rows of each suite of a throughput report say besides their repeats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fast_train.benchmarks.instrument.records import Details


@dataclass(frozen=True, kw_only=True)
class AugmentationDetails(Details):
    """A row of the augmentation alone. spec: the recipe's, as it is configured. bytes_per_image: read and written, of
    images that keep their own shapes in the mean. threads: of the CPU, None on a GPU."""

    batch: int
    bytes_per_image: int
    spec: dict[str, Any]
    threads: int | None = None
    bytes_per_second: float | None = None
    share_of_copy: float | None = None

    def shares(self) -> Mapping[str, float | None]:
        return {"copy bandwidth": self.share_of_copy}


@dataclass(frozen=True, kw_only=True)
class DecodeDetails(Details):
    """A row of decoding alone. threads: of the CPU. pixels_per_image, bytes_per_image: the mean of an image, and of
    its file."""

    decoder: str
    threads: int
    pixels_per_image: float
    bytes_per_image: float


@dataclass(frozen=True, kw_only=True)
class LoaderDetails(Details):
    """A row of a loader alone. entry: whose it is. kind: ``raw`` bytes or ``augmented`` images. fixed: whether the
    recipe fixes the number of workers. augmentation: what is done to each image. source: where the recipe is from."""

    entry: str
    kind: str
    batch_size: int
    workers: int
    fixed: bool
    augmentation: str
    source: str
    cores: int | None = None


@dataclass(frozen=True, kw_only=True)
class RanksDetails(Details):
    """A row of a training by several ranks. efficiency: its rate by that of one process times the ranks."""

    ranks: int
    batch_size: int
    efficiency: float | None = None


@dataclass(frozen=True, kw_only=True)
class RungDetails(Details):
    """A rung of the ladder: a step alone. change: what distinguishes it from the rung before. kind: the type that it
    computes in. peak_memory_bytes: None where the device keeps no count."""

    rung: int
    change: str
    batch_size: int
    kind: str
    flops_per_image: float
    bytes_per_image: float
    peak_memory_bytes: int | None = None
    flops_per_second: float | None = None
    share_of_peak: float | None = None

    def shares(self) -> Mapping[str, float | None]:
        return {"peak": self.share_of_peak}


@dataclass(frozen=True, kw_only=True)
class StepDetails(Details):
    """A row of the step alone, to compare a fed one with. step: which one."""

    step: str
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class EndToEndDetails(Details):
    """A row of a step that a loader feeds. entry: whose loader. step_alone_row, loader_alone_row: names of the rows
    that measure each of the two alone, and step_alone, loader_alone: their values, None where they were not measured.
    wait_share: the part of the time in which the step waits. bound: which of the two is slower. sentence: all that in
    words. decode_share, augmentation_share: of images that keep their own shapes, the part that decoding has of the
    loader's time, and the augmentation of the step's, each measured alone; None where that says nothing."""

    entry: str
    step: str
    batch_size: int
    workers: int
    step_alone_row: str
    loader_alone_row: str
    step_alone: float | None = None
    loader_alone: float | None = None
    wait_share: float | None = None
    bound: str = ""
    sentence: str = ""
    decode_share: float | None = None
    augmentation_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class EpochEnd:
    """seconds: from the start of the first step to the end of the epoch, its evaluation included. accuracy: of the test
    images, None where they were not evaluated."""

    epoch: int
    seconds: float
    accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training that came to its end. started_at, began_at: of its building, and of its first step, seconds since
    1970. reached: whether it met the target accuracy."""

    seed: int
    started_at: float
    start_up_seconds: float
    planned_epochs: int
    began_at: float
    compile_seconds: float
    train_seconds: float
    accuracy: float
    reached: bool
    epochs: tuple[EpochEnd, ...]


@dataclass(frozen=True, kw_only=True)
class Diverged:
    """A training that diverged, and why."""

    seed: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class AccuracyDetails(Details):
    """A row of whole trainings. runs, diverged: each in the order of the seeds. seeds: how many there were to be.
    target: the accuracy at which they stop. epochs: of each, at most."""

    runs: tuple[Training, ...]
    diverged: tuple[Diverged, ...] = ()
    seeds: int | None = None
    target: float | None = None
    epochs: int | None = None
    batch_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class StartDetails(Details):
    """A row of a process's start. seconds: by what they went into, medians, in the order of happening; ``exit``, the
    last one, comes after the first step and is not in the row's value."""

    seconds: dict[str, float]


#: What is prepared: the files of the measured set, written out as class folders.
OWN_FILES = "its own files"


@dataclass(frozen=True, kw_only=True)
class PreparationDetails(Details):
    """A row of a preparation. dataset: as ``prep-data --dataset`` takes it, or `OWN_FILES`. images: of all
    splits."""

    format: str
    dataset: str
    images: int | None = None
