"""What the lab was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fast_train.benchmarks.instrument.flags import Subject, check_counts, default_repeats, known_names
from fast_train.benchmarks.lab.records import FLOORS, OF_A_CPU, POINTS

#: By SGD: the figures that the aims start from are of its step.
RECIPE = "fast-sgd"


@dataclass(frozen=True, kw_only=True)
class Flags(Subject):
    """The command's flags; None for one that was not given."""

    recipe: str | None = RECIPE
    out: Path | None = None
    only: str | None = None
    batch_sizes: str | None = None
    minutes: float = 7.0
    copy_bandwidth: float | None = None
    matrix_rate: float | None = None

    def points(self, *, cpu: bool) -> list[str]:
        """What to measure, on a CPU or elsewhere; ConfigError for what is not known."""
        if self.only is not None:
            return known_names("--only", self.only, "point", POINTS)
        return [point for point in POINTS if cpu or point not in OF_A_CPU]

    def sizes(self) -> tuple[int, ...] | None:
        """The batch sizes that were given; ValueError for what are none."""
        if self.batch_sizes is None:
            return None
        try:
            sizes = tuple(int(part) for part in self.batch_sizes.split(","))
        except ValueError:
            sizes = ()
        if not sizes or min(sizes) < 1:
            raise ValueError(
                f"--batch-sizes {self.batch_sizes} are not sizes; give numbers of 1 or more with commas between"
            )
        return sizes

    def check(self) -> None:
        """Also for points that are not known, and for numbers that mean nothing."""
        points = self.points(cpu=True)
        self.sizes()
        if not self.minutes >= 0:
            raise ValueError(f"--minutes {self.minutes} must be 0 or more")
        for flag, value in (("--copy-bandwidth", self.copy_bandwidth), ("--matrix-rate", self.matrix_rate)):
            if value is not None and FLOORS not in points:
                raise ValueError(
                    f"{flag} means nothing without the point {FLOORS}; leave it out, or measure {FLOORS} too"
                )
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{flag} {value} must be above 0")
        check_counts(default_repeats(quick=self.quick) if self.repeats is None else self.repeats, warm_up=1)
        super().check()
