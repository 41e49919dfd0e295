"""What a study is made of. Plain data: the command's --help reads them without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fast_train.pipeline.errors import ConfigError, check_name

#: The setting that the studies are held against: He et al. 2015 (arXiv 1512.03385), section 4.2.
PAPER_STEPS, PAPER_BATCH, PAPER_IMAGES = 64_000, 128, 50_000
#: The recipe of that setting.
RECIPE = "paper"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One of the trainings that are compared.

    name: unique in its study, fit for a file name. arch: an architecture of `pipeline.models`. option: what is varied
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
