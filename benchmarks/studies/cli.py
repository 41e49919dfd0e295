"""The command `bench-study`: an experiment of a paper, repeated with this library, as a report with curves."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from fast_train.benchmarks.instrument.flags import (
    COUNT,
    DATA,
    FOLDER,
    Common,
    measured_by,
    names_in,
    plain_parser,
    run_program,
)
from fast_train.benchmarks.studies import STUDIES
from fast_train.benchmarks.studies.base import Options, Study, variant_config
from fast_train.common.command import Parser
from fast_train.pipeline.errors import ConfigError, check_name

PROGRAM = "bench-study"
_EPILOG = """A study that was stopped goes on when the same command is typed again; finished trainings are kept.

The report is of all finished trainings that its folder holds: with other --archs, --variants or --seeds it grows, and
loses none. One that diverged is tried again. A folder with trainings of other settings or other data, or with the
report of another study, is refused.

exit status: 0 done, 2 bad input or a training that failed, 129/130/143 stopped by a signal"""


@dataclass(frozen=True, kw_only=True)
class Flags(Options, Common):
    """The command's flags; None for one that was not given."""

    name: str
    amp: str = "auto"
    out: Path | None = None
    archs: str | None = None
    variants: str | None = None
    seeds: int = 1

    @property
    def study(self) -> Study:
        """The study; ConfigError where there is none of this name."""
        check_name("study", self.name, STUDIES)
        return STUDIES[self.name]

    @property
    def folder(self) -> Path:
        return self.out or Path("studies") / self.study.name

    def chosen(self) -> tuple[list[str] | None, list[str] | None]:
        """The names of architectures and variants, None for all."""
        archs, variants = (None if text is None else names_in(text) for text in (self.archs, self.variants))
        return archs, variants

    def check(self) -> None:
        variants = self.study.select(*self.chosen())
        if self.seeds < 1:
            raise ConfigError(f"--seeds {self.seeds} is too few; give 1 or more")
        if self.epochs is not None and self.steps is not None:
            raise ConfigError("--epochs and --steps both give the length; give one of them")
        variant_config(variants[0], self, 0)
        # NumPy, which reading a set needs, takes a tenth of a second to import.
        from fast_train.data_prep.manifest import PreparedSet

        PreparedSet.open(self.data)


def build_parser() -> Parser:
    studies = "\n".join(f"  {name:<13} {study.title}" for name, study in STUDIES.items())
    what = "Repeat an experiment of He et al. 2015 and write a report with its curves."
    parser = plain_parser(PROGRAM, what, f"studies:\n{studies}\n\n{_EPILOG}")
    add = parser.add_argument
    add("name", metavar="NAME", help="which study, see below")
    add("--data", **DATA)
    add("--out", **FOLDER, help="where it goes, or goes on (default: studies/NAME)")
    add("--archs", metavar="LIST", help="only these architectures, with commas between")
    add("--variants", metavar="LIST", help="only these variants, such as resnet20-A, or options, such as A,B")
    add("--epochs", **COUNT, help="length of each training (default: the paper's 64,000 steps; 5 on a CPU)")
    add("--steps", **COUNT, help="length in steps instead")
    add("--seeds", **COUNT, help="trainings of each variant, seeds 0 to N-1 (default: 1)")
    add("--batch-size", **COUNT, help="images a step (default: 128, the paper's)")
    add("--loader", metavar="NAME", help="as fast-train takes it")
    add("--amp", nargs="?", const="auto", metavar="TYPE", help="as fast-train takes it (default: auto)")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:N or mps (default: a GPU if there is one)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command, see `run_program`."""
    work = measured_by("studies.commands")
    return run_program(build_parser(), Flags, work, arguments, interrupted="go on with: {command}")


if __name__ == "__main__":
    sys.exit(main())
