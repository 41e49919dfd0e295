"""The command `bench-study`: an experiment of a paper, repeated with this library, as a report with curves."""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fast_train.benchmarks.instrument.flags import names_in
from fast_train.benchmarks.studies import STUDIES
from fast_train.benchmarks.studies.base import Study, Variant
from fast_train.common.command import run_command
from fast_train.common.startup import quick_imports
from fast_train.pipeline.errors import ConfigError, check_name

if TYPE_CHECKING:
    # torch takes seconds to import, and --help needs none of it.
    import torch

    from fast_train.benchmarks.studies.train import Options, Run
    from fast_train.data_prep.manifest import PreparedSet

PROGRAM = "bench-study"
#: The trainings' folder in that of the study.
RUNS = "runs"
_EPILOG = """A study that was stopped goes on when the same command is typed again; finished trainings are kept.

The report is of all finished trainings that its folder holds: with other --archs, --variants or --seeds it grows, and
loses none. One that diverged is tried again. A folder with trainings of other settings or other data, or with the
report of another study, is refused.

exit status: 0 done, 2 bad input or a training that failed, 130/143 stopped by a signal"""


def build_parser() -> argparse.ArgumentParser:
    """The flags, with a newcomer's defaults."""
    studies = "\n".join(f"  {name:<13} {study.title}" for name, study in STUDIES.items())
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Repeat an experiment of He et al. 2015 and write a report with its curves.",
        epilog=f"studies:\n{studies}\n\n{_EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="which study, see below")
    add("--data", default="data/cifar10", metavar="DIR", help="prepared set (default: data/cifar10)")
    add("--out", type=Path, metavar="DIR", help="where it goes, or goes on (default: studies/NAME)")
    add("--archs", metavar="LIST", help="only these architectures, with commas between")
    add("--variants", metavar="LIST", help="only these variants, such as resnet20-A, or options, such as A,B")
    add(
        "--epochs",
        type=int,
        metavar="N",
        help="length of each training (default: the paper's 64,000 steps; 5 on a CPU)",
    )
    add("--steps", type=int, metavar="N", help="length in steps instead")
    add("--seeds", type=int, default=1, metavar="N", help="trainings of each variant, seeds 0 to N-1 (default: 1)")
    add("--batch-size", type=int, metavar="N", help="images a step (default: 128, the paper's)")
    add("--loader", metavar="NAME", help="as fast-train takes it")
    add("--amp", nargs="?", const="auto", metavar="TYPE", help="as fast-train takes it (default: auto)")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    add("--debug", action="store_true", help="show the trace of an error")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    flags = build_parser().parse_args(given)
    command = shlex.join([PROGRAM, *given])
    return run_command(
        PROGRAM, lambda: _resumable(flags, command), debug=flags.debug, interrupted=f"go on with: {command}"
    )


def _resumable(flags: argparse.Namespace, command: str) -> int:
    # After parsing, as in all functions below: it imports torch.
    with quick_imports():
        from fast_train.benchmarks.studies.train import Interrupted

    try:
        _run(flags, command)
    except Interrupted as error:
        print(f"{PROGRAM}: {error}; go on with: {command}", file=sys.stderr)
        return error.status
    return 0


def _run(flags: argparse.Namespace, command: str) -> None:
    from fast_train.benchmarks.instrument.machine import fingerprint
    from fast_train.benchmarks.studies.report import Findings, write_report
    from fast_train.benchmarks.studies.train import train_variant
    from fast_train.common.console import Display
    from fast_train.common.text import show_path

    plan, display = _plan(flags), Display()
    runs = _finished(plan)
    asked = [(variant, seed) for seed in range(flags.seeds) for variant in plan.variants]
    missing = [(variant, seed) for variant, seed in asked if (variant.name, seed) not in runs]
    wanted, machine = len(runs) + len(missing), fingerprint(plan.device)

    def report() -> None:
        names = [variant.name for variant in plan.study.variants]
        findings = Findings(
            study=plan.study,
            runs=sorted(runs.values(), key=lambda run: (run.seed, names.index(run.variant))),
            wanted=wanted,
            data=plan.data(),
            machine=machine,
            settings={"command": command, "batch_size": plan.options.batch_size, "seeds": flags.seeds},
        )
        write_report(plan.folder, findings)

    if runs:
        display.say(f"{len(runs)} of {wanted} trainings are finished already")
        report()
    seconds: list[float] = []
    for number, (variant, seed) in enumerate(missing):
        left = _left(seconds, len(missing) - number)
        display.say(f"training {number + 1} of {len(missing)}: {variant.name}, seed {seed}{left}")
        started = time.monotonic()
        runs[variant.name, seed] = train_variant(variant, plan.options, seed, plan.run_folder(variant, seed))
        seconds.append(time.monotonic() - started)
        # After each training: what an interruption leaves is a report that says how far it is.
        report()
    display.say(f"report: {show_path(plan.folder / 'report.html')}")


def _finished(plan: Plan) -> dict[tuple[str, int], Run]:
    """The finished trainings in the study's folder by variant and seed, also those that were not asked for now.

    Raises ConfigError, before anything is trained, where one there, finished or not, is of other settings or data.
    """
    from fast_train.benchmarks.studies.train import finished_run

    found = {}
    by_name = {variant.name: variant for variant in plan.study.variants}
    for folder in (plan.folder / RUNS).glob("*-seed*"):
        name, _, seed = folder.name.rpartition("-seed")
        if name in by_name and seed.isdecimal():
            run = finished_run(by_name[name], plan.options, int(seed), folder, plan.prepared)
            if run is not None:
                found[name, int(seed)] = run
    return found


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is known before the first training."""

    study: Study
    variants: Sequence[Variant]
    options: Options
    prepared: PreparedSet
    device: torch.device
    folder: Path

    def run_folder(self, variant: Variant, seed: int) -> Path:
        """Where a training goes; `_finished` reads its name."""
        return self.folder / RUNS / f"{variant.name}-seed{seed}"

    def data(self) -> dict[str, Any]:
        """What the report says of the images."""
        return {
            "source": self.prepared.source_name,
            "synthetic": self.prepared.synthetic,
            "train_images": self.prepared.size("train"),
        }


def _plan(flags: argparse.Namespace) -> Plan:
    """Check everything that can be checked before a training; ValueError for what does not fit."""
    from fast_train.benchmarks.studies.report import check_folder
    from fast_train.benchmarks.studies.train import Options, variant_config
    from fast_train.data_prep.manifest import PreparedSet
    from fast_train.pipeline.engine.runtime import resolve_runtime

    check_name("study", flags.name, STUDIES)
    study = STUDIES[flags.name]
    folder = flags.out or Path("studies") / study.name
    check_folder(folder, study)
    if flags.seeds < 1:
        raise ConfigError(f"--seeds {flags.seeds} is too few; give 1 or more")
    if flags.epochs is not None and flags.steps is not None:
        raise ConfigError("--epochs and --steps both give the length; give one of them")
    options = Options(
        data=flags.data,
        epochs=flags.epochs,
        steps=flags.steps,
        batch_size=flags.batch_size,
        device=flags.device,
        amp=flags.amp or "auto",
        loader=flags.loader,
    )
    config = variant_config(study.variants[0], options, 0)
    device = resolve_runtime(config.run).device
    archs, names = _names(flags.archs), _names(flags.variants)
    if device.type == "cpu":
        # The paper's length takes days there: less of it, unless asked for.
        if archs is None and names is None:
            names = list(study.cpu_variants)
        if options.epochs is None and options.steps is None:
            options = replace(options, epochs=study.cpu_epochs)
    prepared = PreparedSet.open(flags.data)
    # As fast-train does where a split fills no batch.
    batch_size = min(config.data.batch_size, prepared.size("train"))
    return Plan(
        study=study,
        variants=study.select(archs, names),
        options=replace(options, batch_size=batch_size),
        prepared=prepared,
        device=device,
        folder=folder,
    )


def _left(seconds: Sequence[float], trainings: int) -> str:
    """How long the rest takes, if it is like what was trained just now; empty while nothing was."""
    if not seconds:
        return ""
    return f"; about {max(statistics.mean(seconds) * trainings / 60, 1):.0f} min left"


def _names(text: str | None) -> list[str] | None:
    return None if text is None else names_in(text)


if __name__ == "__main__":
    sys.exit(main())
