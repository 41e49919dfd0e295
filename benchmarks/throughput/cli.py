"""The command `bench-throughput`: parse, measure, report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fast_train.benchmarks.instrument.flags import add_subject
from fast_train.common.command import run_command
from fast_train.common.startup import quick_imports
from fast_train.pipeline.errors import ConfigError

PROGRAM = "bench-throughput"
_EPILOG = """examples:
  bench-throughput                                     data/cifar10, this machine, a full report
  bench-throughput --quick                             a look in a minute or two
  bench-throughput --only loaders,end-to-end           some suites alone
  bench-throughput --target-accuracy 0.94 --runs 5     with time to accuracy over five seeds
  bench-throughput --compare old.json new.json --max-loss 0.05

suites: roofline, augmentation, loaders, ladder, end-to-end, accuracy, startup, preparation

Ctrl-C ends the measuring; the report then holds the suites that were finished and says that it is not complete.

exit status: 0 done, 1 a loss (--compare), a suite or a training that failed, or figures that can't be true,
2 bad input, 130/143 stopped by a signal, 141 where nobody reads on (--compare)"""


def build_parser() -> argparse.ArgumentParser:
    """The flags, with a newcomer's defaults."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Measure loaders, the training step and both together; write a report with pictures.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_subject(parser)
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the report goes (default: reports/NETWORK-DEVICE, or the next free -N)",
    )
    add("--quick", action="store_true", help="fewer cases and repeats: a look, not a measurement")
    _add_suites(parser.add_argument_group("what to measure"))
    group = parser.add_argument_group("how")
    group.add_argument(
        "--repeats",
        type=int,
        metavar="N",
        help="of each case (default: 5; 2 with --quick and, on a CPU, of what takes long)",
    )
    group.add_argument("--warm-up", type=int, default=1, metavar="N", help="repeats before that (default: 1)")
    group.add_argument("--workers", type=int, metavar="N", help="of loaders that have them (default: cores)")
    group = parser.add_argument_group("results")
    group.add_argument("--mllog", action="store_true", help="also as MLPerf's :::MLLOG lines, in mllog.txt")
    group.add_argument(
        "--compare", nargs=2, type=Path, metavar=("OLD", "NEW"), help="compare two reports, do not measure"
    )
    group.add_argument("--max-loss", type=float, metavar="X", help="of --compare, a fraction (default: 0.1)")
    group.add_argument("--debug", action="store_true", help="show the trace of an error")
    return parser


def _add_suites(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--only",
        metavar="SUITES",
        help="these suites alone, with commas between; roofline comes with augmentation and ladder",
    )
    add("--skip", metavar="SUITES", help="all suites but these")
    add("--target-accuracy", type=float, metavar="X", help="where the suite `accuracy` stops, a fraction")
    add("--runs", type=int, metavar="N", help="number of seeds of the suite `accuracy` (default: 5; 2 on a CPU)")
    add(
        "--epochs",
        type=int,
        metavar="N",
        help="length of the trainings of the suite `accuracy` (default: the recipe's; 2 on a CPU)",
    )
    add(
        "--prep-dataset", metavar="NAME", help="what `preparation` prepares, as prep-data takes it (default: synthetic)"
    )


def _check_actions(flags: argparse.Namespace, arguments: list[str]) -> None:
    """ConfigError for flags that would be ignored, beside --compare or without it."""
    if flags.compare is None:
        if flags.max_loss is not None:
            raise ConfigError("--max-loss means nothing without --compare; leave it out")
        return
    for name in _given(arguments):
        if name not in ("compare", "max_loss", "debug"):
            raise ConfigError(f"--compare does not go with --{name.replace('_', '-')}; leave one of them out")


def _given(arguments: list[str]) -> list[str]:
    """The names of the flags that a command line holds, also of those that repeat a default."""
    parser, absent = build_parser(), object()
    # A value that is there already keeps the parser from filling in a default.
    values = argparse.Namespace(**dict.fromkeys(vars(parser.parse_args([])), absent))
    return [name for name, value in vars(parser.parse_args(arguments, values)).items() if value is not absent]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    flags = build_parser().parse_args(given)
    return run_command(PROGRAM, lambda: _run(flags, given), debug=flags.debug, interrupted="no report was written")


def _run(flags: argparse.Namespace, given: list[str]) -> int:
    _check_actions(flags, given)
    # After parsing: torch takes seconds to import, and --help needs none of it.
    with quick_imports():
        from fast_train.benchmarks.throughput import commands

    return commands.compare_reports(flags) if flags.compare else commands.measure(flags, [PROGRAM, *given])


if __name__ == "__main__":
    sys.exit(main())
