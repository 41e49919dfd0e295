"""What each way to a faster training step is worth, on this machine, in minutes:
``python -m fast_train.benchmarks.lab.cli``.

The metric: images per second of wall time of the whole training step (captured as one CUDA graph, on a GPU), on one
fixed batch and fed by the resident loader; cases run in turn, each repeat some half a second, the median counts. Beside
it stand the time of each group of kernels, the least time that each layer could take, the augmentation's share of the
copy bandwidth, and whether an option changes the losses by more than another seed does. The last line is JSON: what
was aimed at, and what was reached.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fast_train.benchmarks.instrument.flags import add_subject, known_names
from fast_train.benchmarks.present.folder import report_folder
from fast_train.benchmarks.throughput import cli
from fast_train.common.command import run_command
from fast_train.common.signals import termination_as_interrupt
from fast_train.common.startup import quick_imports

if TYPE_CHECKING:
    # torch takes seconds to import, and --help needs none of it.
    from fast_train.benchmarks.lab.run import Lab

PROGRAM = "python -m fast_train.benchmarks.lab.cli"
_EPILOG = """points: floors, augmentation, losses, kernels, step, end-to-end

With --copy-bandwidth and --matrix-rate, `--only floors` computes the floors for another machine.

exit status: 0 done, 1 a point failed or figures that can't be true, 2 bad input, 130/143 stopped by a signal"""


def build_parser() -> argparse.ArgumentParser:
    """The flags, with a newcomer's defaults."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Measure each way to a faster training step, alone, beside the step without it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # By SGD: the figures that the aims start from are of its step.
    add_subject(parser, recipe="fast-sgd")
    add = parser.add_argument
    add(
        "--out", type=Path, metavar="DIR", help="where the report goes (default: reports/step-lab, or the next free -N)"
    )
    add("--only", metavar="POINTS", help="these points alone; with commas between")
    add("--batch-sizes", metavar="N,N", help="losses and kernels are of the first (default: 1024,512,2048 on a GPU)")
    add("--repeats", type=int, metavar="N", help="of each case (default: 5; 2 with --quick)")
    add("--minutes", type=float, default=7.0, metavar="X", help="no step is built that may not be ready by then")
    add("--quick", action="store_true", help="small sizes, few steps: a look, not a measurement")
    add("--copy-bandwidth", type=float, metavar="X", help="bytes/s for the floors (default: measured)")
    add("--matrix-rate", type=float, metavar="X", help="FLOP/s for the floors (default: measured)")
    add("--debug", action="store_true", help="show the trace of an error")
    return parser


def measure(flags: argparse.Namespace, command: list[str]) -> int:
    """Measure, write, print; returns the exit status. KeyboardInterrupt where a signal comes before any figure."""
    with quick_imports():
        from fast_train.benchmarks.instrument.bench import conclude
        from fast_train.benchmarks.lab import report
        from fast_train.benchmarks.lab.run import run

    started = time.monotonic()
    stop: KeyboardInterrupt | None = None
    scratch = tempfile.TemporaryDirectory(prefix="step-lab-")
    with termination_as_interrupt(), scratch:
        lab = _build(flags, command, Path(scratch.name), started)
        bench = lab.bench
        with report_folder(flags.out, Path("reports/step-lab"), report.JSON) as folder:
            bench.display.say(f"{bench.config.model.arch} by recipe {bench.config.recipe}; {bench.runtime.describe()}")
            try:
                run(lab)
            except KeyboardInterrupt as error:
                stop = error
                bench.result.complete = False
                bench.result.warnings.append("interrupted: what came later was not measured")
            return conclude(bench, stop, lambda: _write(lab, folder, started), scratch)


def _build(flags: argparse.Namespace, command: list[str], scratch: Path, started: float) -> Lab:
    """What is to be measured, and with what; ValueError for flags that can't be."""
    from fast_train.benchmarks.instrument.bench import build_bench
    from fast_train.benchmarks.instrument.cost import batch_warnings
    from fast_train.benchmarks.lab.run import FLOORS, ON_STEPS, Lab
    from fast_train.common.console import Display

    points = _points(flags.only)
    if not flags.minutes >= 0:
        raise ValueError(f"--minutes {flags.minutes} must be 0 or more")
    for flag, value in (("--copy-bandwidth", flags.copy_bandwidth), ("--matrix-rate", flags.matrix_rate)):
        if value is not None and FLOORS not in points:
            raise ValueError(f"{flag} means nothing without the point {FLOORS}; leave it out, or measure {FLOORS} too")
    settings = vars(cli.build_parser().parse_args([]))
    settings |= {name: value for name, value in vars(flags).items() if name in settings}
    bench = build_bench(argparse.Namespace(**settings), command, Display(), scratch)
    if flags.batch_sizes is None and not flags.quick and any(point in points for point in ON_STEPS):
        bench.result.warnings += batch_warnings(bench.recipe, bench.config)
    cuda = bench.device.type == "cuda"
    default = (1024, 512, 2048) if cuda else (32,) if flags.quick else (bench.config.data.batch_size,)
    return Lab(
        bench=bench,
        points=points,
        batch_sizes=default if flags.batch_sizes is None else _sizes(flags.batch_sizes),
        until=started + 60 * flags.minutes,
        steps=8 if flags.quick else 200,
        seeds=(0, 1) if flags.quick else (0, 1, 2),
        copy=_positive(flags.copy_bandwidth, "--copy-bandwidth"),
        matrix=_positive(flags.matrix_rate, "--matrix-rate"),
    )


def _write(lab: Lab, folder: Path, started: float) -> None:
    """Write the report, print it."""
    from fast_train.benchmarks.lab import report

    bench, say = lab.bench, lab.bench.display.say
    say("\n" + report.write(folder, lab))
    for warning in bench.result.warnings:
        say(f"warning: {warning}")
    say(f"{folder / report.JSON}: {len(bench.result.rows)} rows in {time.monotonic() - started:.0f} s")
    say(json.dumps(report.aims(lab)))


def _points(only: str | None) -> list[str]:
    from fast_train.benchmarks.lab.run import POINTS

    return list(POINTS) if only is None else known_names("--only", only, "point", POINTS)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ValueError(f"--batch-sizes {text} are not sizes; give numbers of 1 or more with commas between")
    return sizes


def _positive(value: float | None, flag: str) -> float | None:
    if value is not None and not 0 < value < float("inf"):
        raise ValueError(f"{flag} {value} must be above 0")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    flags = build_parser().parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    command = [*shlex.split(PROGRAM), *given]
    return run_command(PROGRAM, lambda: measure(flags, command), debug=flags.debug, interrupted="no report was written")


if __name__ == "__main__":
    sys.exit(main())
