"""The command `bench-study`: an experiment of a paper, repeated with this library, as a report with curves."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
import traceback
from pathlib import Path

from benchmarks.studies import STUDIES

PROGRAM = "bench-study"


def build_parser() -> argparse.ArgumentParser:
    """The flags, with a newcomer's defaults."""
    studies = "\n".join(f"  {name:<13} {study.title}" for name, study in STUDIES.items())
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Repeat an experiment of He et al. 2015 and write a report with its curves.",
        epilog=f"studies:\n{studies}\n\nA study that was stopped goes on when the same command is typed again; "
        "finished trainings are kept.\n\nexit status: 0 done, 2 bad input, 130/143 stopped by a signal",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="which study, see below")
    add("--data", default="data/cifar10", metavar="DIR", help="prepared set (default: data/cifar10)")
    add("--out", type=Path, metavar="DIR", help="where it goes (default: studies/NAME)")
    add("--archs", metavar="LIST", help="only these architectures; with commas between")
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
    add("--amp", nargs="?", const="bf16", metavar="TYPE", help="as fast-train takes it (default: auto)")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    add("--debug", action="store_true", help="show the trace of an error")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    flags = build_parser().parse_args(given)
    command = shlex.join([PROGRAM, *given])
    # After parsing: torch takes seconds to import, and --help needs none of it.
    from benchmarks.studies.train import Interrupted

    try:
        _run(flags, command)
    except Interrupted as error:
        print(f"{PROGRAM}: {error}; go on with: {command}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; go on with: {command}", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if flags.debug:
            traceback.print_exception(error)
        print(f"{PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _run(flags: argparse.Namespace, command: str) -> None:
    from benchmarks.machine import fingerprint
    from benchmarks.studies.report import Findings, write_report
    from benchmarks.studies.train import Options, train_variant, variant_config
    from data_prep.display import Display
    from data_prep.manifest import PreparedSet
    from pipeline.cli import show_path
    from pipeline.errors import ConfigError, check_name
    from pipeline.runtime import resolve_runtime

    check_name("study", flags.name, STUDIES)
    study, display = STUDIES[flags.name], Display()
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
    device = resolve_runtime(variant_config(study.variants[0], options, 0).run).device
    names = _names(flags.variants)
    archs = _names(flags.archs)
    if device.type == "cpu":
        # The paper's length takes days there: less of it, unless asked for.
        names = study.cpu_variants if names is None and archs is None else names
        if options.epochs is None and options.steps is None:
            options = Options(**{**vars(options), "epochs": study.cpu_epochs})
    variants = study.select(archs, names)
    configs = [variant_config(variant, options, 0) for variant in variants]
    prepared = PreparedSet.open(flags.data)
    folder = flags.out or Path("studies") / study.name
    wanted = [(variant, seed) for seed in range(flags.seeds) for variant in variants]
    settings = {"command": command, "batch_size": configs[0].data.batch_size, "seeds": flags.seeds}
    runs = []
    for place, (variant, seed) in enumerate(wanted):
        display.say(f"training {place + 1} of {len(wanted)}: {variant.name}, seed {seed}{_left(place, len(wanted))}")
        runs.append(train_variant(variant, options, seed, folder / "runs" / f"{variant.name}-seed{seed}"))
        findings = Findings(
            study=study,
            runs=runs,
            wanted=len(wanted),
            data={
                "source": prepared.manifest.source["kind"],
                "synthetic": prepared.synthetic,
                "train_images": prepared.size("train"),
            },
            machine=fingerprint(device),
            settings=settings,
        )
        # After each training: what an interruption leaves is a report that says how far it is.
        write_report(folder, findings)
    display.say(f"report: {show_path(folder / 'report.html')}")


_STARTED = time.monotonic()


def _left(done: int, total: int) -> str:
    """How long the rest takes, if the trainings to come are like those behind."""
    if not done:
        return ""
    return f"; about {(time.monotonic() - _STARTED) / done * (total - done) / 60:.0f} min left"


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


if __name__ == "__main__":
    sys.exit(main())
