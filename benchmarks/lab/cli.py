"""What each way to a faster training step is worth, on this machine, in minutes:
``python -m fast_train.benchmarks.lab.cli``.

The metric: images per second of wall time of the whole training step (captured as one CUDA graph, on a GPU), on one
fixed batch and fed by the resident loader; cases run in turn, each repeat some half a second, the median counts. Beside
it stand the time of each group of kernels, the least time that each layer could take, the augmentation's share of the
copy bandwidth, and whether an option changes the losses by more than another seed does. On a CPU the augmentation is
measured beside its PyTorch reference. The last line is JSON: what was aimed at, and what was reached.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from fast_train.benchmarks.instrument.flags import (
    COUNT,
    FOLDER,
    NUMBER,
    Subject,
    add_subject,
    check_counts,
    known_names,
    measured_by,
    plain_parser,
    run_program,
)
from fast_train.benchmarks.lab.records import FLOORS, OF_A_CPU, ON_STEPS, OPTIONS, POINTS, Option
from fast_train.common.command import Parser

#: By SGD: the figures that the aims start from are of its step.
RECIPE = "fast-sgd"
PROGRAM = "python -m fast_train.benchmarks.lab.cli"
_EPILOG = f"""points: {", ".join(POINTS)}
options: {", ".join(option.name for option in OPTIONS)}

Options that begin with "norm" are the fused norm with one of its parts the other way, where --options names them.
On a GPU {", ".join(OF_A_CPU)} is measured only where --only names it. Losses and kernels are of the first batch size.

With --copy-bandwidth and --matrix-rate, `--only floors` computes the floors for another machine.

exit status: 0 done, 1 a point failed or figures that can't be true, 2 bad input, 129/130/143 stopped by a signal"""


@dataclass(frozen=True, kw_only=True)
class Flags(Subject):
    recipe: str | None = RECIPE
    only: str | None = None
    options: str | None = None
    batch_sizes: str | None = None
    minutes: float = 7.0
    copy_bandwidth: float | None = None
    matrix_rate: float | None = None

    def points(self, *, cpu: bool) -> list[str]:
        """What to measure, on a CPU or elsewhere; ConfigError for what is not known."""
        if self.only is not None:
            return known_names("--only", self.only, "point", POINTS)
        return [point for point in POINTS if cpu or point not in OF_A_CPU]

    def chosen_options(self) -> list[Option]:
        """What to build steps of; ConfigError for what is not known."""
        if self.options is None:
            return [option for option in OPTIONS if not option.switches]
        names = known_names("--options", self.options, "option", [option.name for option in OPTIONS])
        return [option for option in OPTIONS if option.name in names]

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
        self.chosen_options()
        if self.options is not None and not set(ON_STEPS) & set(points):
            raise ValueError(f"--options means nothing without a point of steps; add one of {', '.join(ON_STEPS)}")
        if not self.minutes >= 0:
            raise ValueError(f"--minutes {self.minutes} must be 0 or more")
        for flag, value in (("--copy-bandwidth", self.copy_bandwidth), ("--matrix-rate", self.matrix_rate)):
            if value is not None and FLOORS not in points:
                raise ValueError(
                    f"{flag} means nothing without the point {FLOORS}; leave it out, or measure {FLOORS} too"
                )
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{flag} {value} must be above 0")
        check_counts(self.rounds, warm_up=1)
        super().check()


def build_parser() -> Parser:
    what = "Measure what each way to a faster training step gains over the plain step."
    parser = plain_parser(PROGRAM, what, _EPILOG)
    add_subject(parser, RECIPE)
    add = parser.add_argument
    add("--out", **FOLDER, help="where the report goes (default: reports/step-lab, or the next free -N)")
    add("--only", metavar="POINTS", help="measure these points alone, with commas between; see below")
    add("--options", metavar="NAMES", help="measure steps with these options alone; see below")
    add("--batch-sizes", metavar="N,N", help="of the steps (default: 1024,512,2048 on a GPU, the recipe's on a CPU)")
    add("--repeats", **COUNT, help="of each case (default: 5; 2 with --quick)")
    add("--minutes", **NUMBER, help=f"begin nothing that would not be ready by then (default: {Flags.minutes:g})")
    add("--quick", action="store_true", help="small sizes, few steps: a look, not a measurement")
    add("--copy-bandwidth", **NUMBER, help="bytes/s for the floors (default: measured)")
    add("--matrix-rate", **NUMBER, help="FLOP/s for the floors (default: measured)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command, see `run_program`."""
    return run_program(build_parser(), Flags, measured_by("lab.run"), arguments, interrupted="no report was written")


if __name__ == "__main__":
    sys.exit(main())
