"""What `bench-study` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fast_train.benchmarks.instrument.flags import names_in
from fast_train.benchmarks.studies import STUDIES
from fast_train.benchmarks.studies.base import Options, Study, variant_config
from fast_train.pipeline.config.settings import DataConfig
from fast_train.pipeline.errors import ConfigError, check_name


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The command's flags; None for one that was not given."""

    name: str
    data: str = DataConfig.path
    out: Path | None = None
    archs: str | None = None
    variants: str | None = None
    epochs: int | None = None
    steps: int | None = None
    seeds: int = 1
    batch_size: int | None = None
    loader: str | None = None
    amp: str | None = None
    device: str | None = None
    debug: bool = False

    @property
    def study(self) -> Study:
        """The study; ConfigError where there is none of this name."""
        check_name("study", self.name, STUDIES)
        return STUDIES[self.name]

    @property
    def folder(self) -> Path:
        """Where it goes."""
        return self.out or Path("studies") / self.study.name

    def options(self) -> Options:
        """What all trainings share."""
        return Options(
            data=self.data,
            epochs=self.epochs,
            steps=self.steps,
            batch_size=self.batch_size,
            device=self.device,
            amp=self.amp or "auto",
            loader=self.loader,
        )

    def chosen(self) -> tuple[list[str] | None, list[str] | None]:
        """The names of architectures and variants, None for all."""
        archs, variants = (None if text is None else names_in(text) for text in (self.archs, self.variants))
        return archs, variants

    def check(self) -> None:
        """Refuse what can be refused without torch, which takes seconds to import: ValueError."""
        variants = self.study.select(*self.chosen())
        if self.seeds < 1:
            raise ConfigError(f"--seeds {self.seeds} is too few; give 1 or more")
        if self.epochs is not None and self.steps is not None:
            raise ConfigError("--epochs and --steps both give the length; give one of them")
        variant_config(variants[0], self.options(), 0)
        # NumPy, which reading a set needs, takes a tenth of a second to import.
        from fast_train.data_prep.manifest import PreparedSet

        PreparedSet.open(self.data)
