"""What a study is made of, and how its trainings are configured. Plain data: the command's --help reads them without
torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fast_train.pipeline.config.recipe import merge, resolve
from fast_train.pipeline.config.settings import Config, DataConfig
from fast_train.pipeline.errors import ConfigError, check_name

#: The setting that the studies are held against: He et al. 2015 (arXiv 1512.03385), section 4.2.
PAPER_STEPS, PAPER_BATCH, PAPER_IMAGES = 64_000, 128, 50_000
#: The recipe of that setting.
RECIPE = "paper"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One of the trainings that are compared.

    name: unique in its study, fit for a file name. arch: a network's name. option: what is varied
    beside the architecture; empty where it is the architecture itself. settings: what differs from the recipe, nested
    as in a recipe. paper_error: the test error that the paper reports for it on CIFAR-10, a fraction; None for none.
    """

    name: str
    arch: str
    option: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    paper_error: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Two variants by name, and what of them is compared: ``train`` and ``test`` errors at the end.

    The question is how much higher the error of ``second`` is than that of ``first``.
    """

    first: str
    second: str
    errors: Sequence[str] = ("test",)


@dataclass(frozen=True)
class Panel:
    """A part of a curve plot: variants by name, and which of their errors are drawn."""

    title: str
    variants: Sequence[str]
    errors: Sequence[str] = ("train", "test")


@dataclass(frozen=True)
class CurvePlot:
    """Panels side by side on the same axes. name: of its files. source: the figure that it follows, if any."""

    name: str
    title: str
    panels: Sequence[Panel]
    source: str = ""


@dataclass(frozen=True)
class Reported:
    """A figure of a paper: what, the error as printed there, on which data and how, and where it stands."""

    what: str
    error: str
    setting: str
    place: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question, the trainings that answer it, and what the papers say.

    question: in a sentence or two. differences: how the setting differs from the papers' however long it trains.
    cpu_variants, cpu_epochs: what is done without a GPU unless the user says otherwise.
    """

    name: str
    title: str
    question: str
    variants: Sequence[Variant]
    comparisons: Sequence[Comparison]
    plots: Sequence[CurvePlot]
    reported: Sequence[Reported]
    differences: Sequence[str]
    cpu_variants: Sequence[str]
    cpu_epochs: int

    def select(self, archs: Sequence[str] | None, variants: Sequence[str] | None) -> list[Variant]:
        """The variants of the named architectures that also have one of the given names or options.

        None takes all. Raises ConfigError for a name that this study lacks, or if nothing is left.
        """
        for arch in archs or ():
            check_name(f"architecture of study {self.name}", arch, dict.fromkeys(v.arch for v in self.variants))
        for variant in variants or ():
            known = dict.fromkeys([*(v.option for v in self.variants if v.option), *(v.name for v in self.variants)])
            check_name(f"variant of study {self.name}", variant, known)
        chosen = [
            v
            for v in self.variants
            if (archs is None or v.arch in archs)
            and (variants is None or v.name in variants or (v.option and v.option in variants))
        ]
        if not chosen:
            raise ConfigError(
                f"no variant of study {self.name} fits both --archs and --variants; leave one of them out"
            )
        return chosen


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all trainings of a study share. epochs, steps: the length, at most one of them; neither for the paper's
    64,000 steps. device, amp, loader: as `fast-train` takes them, None for its choice."""

    data: str = DataConfig.path
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    device: str | None = None
    amp: str | None = None
    loader: str | None = None

    def settings(self, variant: Variant, seed: int) -> dict[str, dict[str, Any]]:
        """The settings of one training, as they are given over the recipe, nested by section."""
        data = {"path": self.data, "batch_size": self.batch_size, "loader": self.loader}
        # The papers' arithmetic without mixed precision is float32 throughout.
        run = {"epochs": self.epochs, "steps": self.steps, "device": self.device, "amp": self.amp, "tf32": False}
        shared = {"data": _given(data), "run": {**_given(run), "seed": seed}, "model": {"arch": variant.arch}}
        return merge(shared, variant.settings)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def variant_config(variant: Variant, options: Options, seed: int) -> Config:
    """What the training is configured as, before the data's own shape is known. ConfigError for what can't be."""
    return resolve(RECIPE, options.settings(variant, seed))
