"""The command `bench-throughput`: parse, measure, report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fast_train.benchmarks.instrument.flags import add_subject
from fast_train.benchmarks.throughput.settings import Flags
from fast_train.benchmarks.throughput.suites import SUITES
from fast_train.common.command import Parser, run_command
from fast_train.common.startup import quick_imports
from fast_train.pipeline.errors import ConfigError

PROGRAM = "bench-throughput"
_EPILOG = f"""examples:
  bench-throughput                                     data/cifar10, this machine, a full report
  bench-throughput --quick                             a look in a minute or two
  bench-throughput --only loaders,end-to-end           some suites alone
  bench-throughput --target-accuracy 0.94 --runs 5     with time to accuracy over five seeds
  bench-throughput --compare old.json new.json --max-loss 0.05

suites: {", ".join(SUITES)}

Ctrl-C ends the measuring; the report then holds the suites that were finished and says that it is not complete.

exit status: 0 done, 1 a loss (--compare), a suite or a training that failed, or figures that can't be true,
2 bad input, 129/130/143 stopped by a signal"""


def build_parser() -> Parser:
    """The flags. None has a default here: `Flags` says what one is that is not given."""
    parser = Parser(
        prog=PROGRAM,
        description="Measure loaders, the training step and both together; write a report with pictures.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
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
    group.add_argument("--warm-up", type=int, metavar="N", help="repeats before that (default: 1)")
    group.add_argument("--workers", type=int, metavar="N", help="of loaders that have them (default: cores)")
    group = parser.add_argument_group("results")
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


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status. arguments: None for those that the process was started with, which ends
    with the command."""
    given = sys.argv[1:] if arguments is None else arguments
    flags = build_parser().parse(Flags, given)
    return run_command(
        PROGRAM,
        lambda: _run(flags, given),
        debug=flags.debug,
        ends_process=arguments is None,
        interrupted="no report was written",
    )


def _run(flags: Flags, given: list[str]) -> int:
    if flags.compare is not None:
        # Only here, as below: --help needs no arrays.
        from fast_train.benchmarks.throughput.compare import compare_reports

        _check_alone(given)
        old, new = flags.compare
        return compare_reports(old, new, flags.max_loss)
    if flags.max_loss is not None:
        raise ConfigError("--max-loss means nothing without --compare; leave it out")
    flags.check()
    # After all that can be refused without torch, which takes seconds to import.
    with quick_imports():
        from fast_train.benchmarks.throughput.commands import measure

    return measure(flags, [PROGRAM, *given])


def _check_alone(given: list[str]) -> None:
    """ConfigError for a flag that --compare would ignore, also for one that repeats a default."""
    for name in vars(build_parser().parse_args(given)):
        if name not in ("compare", "max_loss", "debug"):
            raise ConfigError(f"--compare does not go with --{name.replace('_', '-')}; leave one of them out")


if __name__ == "__main__":
    sys.exit(main())
