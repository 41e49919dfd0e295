"""The command `bench-throughput`: parse, measure, report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from fast_train.benchmarks.throughput.suites import SUITES
from fast_train.common.command import Parser, flag_path
from fast_train.pipeline.config.settings import RunConfig
from fast_train.pipeline.errors import ConfigError

PROGRAM = "bench-throughput"
_MOST_RANKS = 1024
_EPILOG = f"""examples:
  bench-throughput                                     data/cifar10, this machine, a full report
  bench-throughput --quick                             a look in a minute or two
  bench-throughput --only loaders,end-to-end           some suites alone
  bench-throughput --target-accuracy 0.94 --runs 5     with time to accuracy over five seeds
  bench-throughput --data data/photos --image-size 224 on photographs, in crops of 224 pixels
  bench-throughput --compare old.json new.json --max-loss 0.05

suites: {", ".join(SUITES)}

Ctrl-C ends the measuring; the report then holds the suites that were finished and says that it is not complete.

exit status: 0 done, 1 a row too slow (--compare), a suite or a training that failed, or figures that can't be true,
2 bad input, 129/130/143 stopped by a signal"""


@dataclass(frozen=True, kw_only=True)
class Flags(Subject):
    """The command's flags; None for one that was not given."""

    image_size: int | None = None
    only: str | None = None
    skip: str | None = None
    target_accuracy: float | None = None
    runs: int | None = None
    epochs: int | None = None
    prep_dataset: str | None = None
    ranks: str | None = None
    warm_up: int = 1
    workers: int | None = None
    compare: Sequence[Path] | None = None
    max_loss: float | None = None

    def settings(self) -> dict[str, dict[str, Any]]:
        given = super().settings()
        return given if self.image_size is None else {**given, "crop": {"size": self.image_size}}

    def check(self) -> None:
        """Also for suites that are not known, and for flags that no suite would heed or that it would refuse."""
        self.check_used(self.chosen_suites())
        check_counts(self.rounds, self.warm_up)
        for flag, value in (("--runs", self.runs), ("--workers", self.workers)):
            if value is not None and value < 1:
                raise ValueError(f"{flag} {value} is too few; give 1 or more")
        # What a training and prep-data, which come last, would refuse is refused before anything is measured.
        epochs = RunConfig().epochs if self.epochs is None else self.epochs
        replace(RunConfig(), target_accuracy=self.target_accuracy, epochs=epochs)
        self._check_dataset()
        self.rank_counts()
        super().check()

    def rank_counts(self) -> tuple[int, ...]:
        """The numbers of --ranks in rising order; ValueError for what is none."""
        counts = [text.strip() for text in (self.ranks or "").split(",") if text.strip()]
        if not all(text.isdecimal() and 1 <= int(text) <= _MOST_RANKS for text in counts):
            raise ValueError(f"--ranks {self.ranks} names no numbers of ranks; give some, such as --ranks 1,2,4")
        return tuple(sorted({int(text) for text in counts}))

    def chosen_suites(self) -> list[str]:
        """The suites to run, in their order; --quick takes those that take long only where --only names them.

        ValueError for unknown names, none left, or one that another one needs."""
        only, left_out = (
            [] if text is None else known_names(flag, text, "suite", SUITES)
            for flag, text in (("--only", self.only), ("--skip", self.skip))
        )
        asked = only or [name for name, suite in SUITES.items() if suite.quick or not self.quick]
        wanted = [name for name in SUITES if name in asked and name not in left_out]
        if not wanted:
            raise ValueError("--only and --skip leave no suite; name one that is not skipped")
        for name in left_out:
            needing = [suite for suite in wanted if SUITES[suite].needs == name]
            if needing:
                compare = "compare" if len(needing) > 1 else "compares"
                raise ValueError(
                    f"--skip {name}: {' and '.join(needing)} {compare} with it; skip {','.join(needing)} too"
                )
        needed = {SUITES[name].needs for name in wanted}
        return [name for name in SUITES if name in wanted or name in needed]

    def check_used(self, chosen: Sequence[str]) -> None:
        """ConfigError for a flag of a suite that will not run."""
        for suite, name in ((suite, name) for suite, found in SUITES.items() for name in found.flags):
            if suite not in chosen and getattr(self, name) is not None:
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(
                    f"{flag} means nothing without the suite {suite}; leave it out, or run that suite too"
                )

    def _check_dataset(self) -> None:
        """ValueError for a --prep-dataset that prep-data does not know, or a folder in which it finds no images."""
        if self.prep_dataset is None:
            return
        # Here: the sources take a tenth of a second to import, for a flag that is rarely given.
        from fast_train.common.console import Display
        from fast_train.data_prep.sources import SourceOptions, build_source

        try:
            build_source(self.prep_dataset, SourceOptions(), Display()).identity()
        except ValueError as error:
            raise ValueError(str(error).replace("--dataset", "--prep-dataset")) from error


def build_parser() -> Parser:
    what = "Measure loaders, the training step and both together; write a report with pictures."
    parser = plain_parser(PROGRAM, what, _EPILOG)
    add_subject(parser)
    add = parser.add_argument
    add("--image-size", **COUNT, help="side of the crops, of images that keep their own shapes (default: the recipe's)")
    add("--out", **FOLDER, help="where the report goes (default: reports/NETWORK-DEVICE, or the next free -N)")
    add("--quick", action="store_true", help="fewer cases and repeats: a look, not a measurement")
    add = parser.add_argument_group("what to measure").add_argument
    add(
        "--only",
        metavar="SUITES",
        help="these suites alone, with commas between; roofline comes with augmentation and ladder",
    )
    add("--skip", metavar="SUITES", help="all suites but these")
    add("--target-accuracy", **NUMBER, help="where the suite `accuracy` stops, a fraction")
    add("--runs", **COUNT, help="number of seeds of the suite `accuracy` (default: 5; 2 on a CPU)")
    add("--epochs", **COUNT, help="length of the trainings of the suite `accuracy` (default: the recipe's; 2 on a CPU)")
    add(
        "--prep-dataset",
        metavar="NAME",
        help="what `preparation` prepares, as prep-data takes it (default: synthetic; with photographs, their files)",
    )
    add(
        "--ranks", nargs="?", const="", metavar="LIST",
        help="the suite `ranks`: numbers of GPUs to train on, with commas between (default: 1, 2, 4 ... all)",
    )  # fmt: skip
    add = parser.add_argument_group("how").add_argument
    add("--repeats", **COUNT, help="of each case (default: 5; 2 with --quick and, on a CPU, of what takes long)")
    add("--warm-up", **COUNT, help="repeats before that (default: 1)")
    add("--workers", **COUNT, help="of loaders that have them (default: cores)")
    add = parser.add_argument_group("results").add_argument
    add("--compare", nargs=2, type=flag_path, metavar=("OLD", "NEW"), help="compare two reports, do not measure")
    add("--max-loss", **NUMBER, help="of --compare: how much slower a row may be, a fraction (default: 0.1)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command, see `run_program`."""
    return run_program(build_parser(), Flags, _run, arguments, interrupted="no report was written")


def _run(flags: Flags, command: list[str]) -> int:
    if flags.compare is not None:
        # Only here: --help needs no arrays.
        from fast_train.benchmarks.throughput.compare import compare_reports

        _check_alone(command[1:])
        old, new = flags.compare
        return compare_reports(old, new, flags.max_loss)
    if flags.max_loss is not None:
        raise ConfigError("--max-loss means nothing without --compare; leave it out")
    return measured_by("throughput.commands")(flags, command)


def _check_alone(given: list[str]) -> None:
    """ConfigError for a flag that --compare would ignore, also for one that repeats a default."""
    for name in vars(build_parser().parse_args(given)):
        if name not in ("compare", "max_loss", "debug"):
            raise ConfigError(f"--compare does not go with --{name.replace('_', '-')}; leave one of them out")


if __name__ == "__main__":
    sys.exit(main())
