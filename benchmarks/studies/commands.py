"""How `bench-study` trains and reports; `benchmarks.studies.cli` parses, checks and calls."""

from __future__ import annotations

import shlex
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fast_train.benchmarks.instrument.machine import fingerprint
from fast_train.benchmarks.studies.base import Variant, variant_config
from fast_train.benchmarks.studies.report import Findings, check_folder, write_report
from fast_train.benchmarks.studies.train import Run, finished_run, train_variant
from fast_train.common.console import Display
from fast_train.common.text import show_path
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.engine.runtime import resolve_device

if TYPE_CHECKING:
    from fast_train.benchmarks.studies.cli import Flags

#: The trainings' folder in that of the study.
RUNS = "runs"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is known before the first training. flags: with what they leave open decided."""

    flags: Flags
    variants: Sequence[Variant]
    prepared: PreparedSet
    device: torch.device
    command: str

    def run_folder(self, variant: Variant, seed: int) -> Path:
        """Where a training goes; `_finished` reads its name."""
        return self.flags.folder / RUNS / f"{variant.name}-seed{seed}"


def measure(flags: Flags, command: Sequence[str]) -> int:
    """Train what is missing, and write the report after each training. command: what goes on with it.

    Raises ConfigError for what can't be trained, and KeyboardInterrupt after a signal.
    """
    plan, display = _plan(flags, shlex.join(command)), Display()
    runs = _finished(plan)
    asked = [(variant, seed) for seed in range(plan.flags.seeds) for variant in plan.variants]
    missing = [(variant, seed) for variant, seed in asked if (variant.name, seed) not in runs]
    wanted, machine = len(runs) + len(missing), fingerprint(plan.device)

    def report() -> None:
        for line in write_report(plan.flags.folder, _findings(plan, runs, wanted, machine)):
            display.say(f"warning: {line}")

    if runs:
        display.say(f"{len(runs)} of {wanted} trainings are finished already")
        report()
    seconds: list[float] = []
    for number, (variant, seed) in enumerate(missing):
        left = _left(seconds, len(missing) - number)
        display.say(f"training {number + 1} of {len(missing)}: {variant.name}, seed {seed}{left}")
        started = time.monotonic()
        runs[variant.name, seed] = train_variant(variant, plan.flags, seed, plan.run_folder(variant, seed))
        seconds.append(time.monotonic() - started)
        # After each training: what an interruption leaves is a report that says how far it is.
        report()
    display.say(f"report: {show_path(plan.flags.folder / 'report.html')}")
    return 0


def _plan(flags: Flags, command: str) -> Plan:
    """Check what `Flags.check` could not; ValueError for what does not fit."""
    study = flags.study
    check_folder(flags.folder, study)
    config = variant_config(study.variants[0], flags, 0)
    device = resolve_device(config.run.device)
    archs, names = flags.chosen()
    if device.type == "cpu":
        # The paper's length takes days there: less of it, unless asked for.
        if archs is None and names is None:
            names = list(study.cpu_variants)
        if flags.epochs is None and flags.steps is None:
            flags = replace(flags, epochs=study.cpu_epochs)
    prepared = PreparedSet.open(flags.data)
    # As fast-train does where a split fills no batch.
    batch_size = min(config.data.batch_size, prepared.size("train"))
    return Plan(
        flags=replace(flags, batch_size=batch_size),
        variants=study.select(archs, names),
        prepared=prepared,
        device=device,
        command=command,
    )


def _finished(plan: Plan) -> dict[tuple[str, int], Run]:
    """The finished trainings in the study's folder by variant and seed, also those that are not asked for.

    Raises ConfigError, before anything is trained, where one there, finished or not, is of other settings or data.
    """
    found = {}
    by_name = {variant.name: variant for variant in plan.flags.study.variants}
    for folder in (plan.flags.folder / RUNS).glob("*-seed*"):
        name, _, seed = folder.name.rpartition("-seed")
        if name in by_name and seed.isdecimal():
            run = finished_run(by_name[name], plan.flags, int(seed), folder, plan.prepared)
            if run is not None:
                found[name, int(seed)] = run
    return found


def _findings(plan: Plan, runs: dict[tuple[str, int], Run], wanted: int, machine: dict[str, Any]) -> Findings:
    names, prepared = [variant.name for variant in plan.flags.study.variants], plan.prepared
    return Findings(
        study=plan.flags.study,
        runs=sorted(runs.values(), key=lambda run: (run.seed, names.index(run.variant))),
        wanted=wanted,
        data={
            "source": prepared.source_name,
            "synthetic": prepared.synthetic,
            "train_images": prepared.size("train"),
        },
        machine=machine,
        settings={"command": plan.command, "batch_size": plan.flags.batch_size, "seeds": plan.flags.seeds},
    )


def _left(seconds: Sequence[float], trainings: int) -> str:
    """How long the rest takes, if it is like what was trained just now; empty while nothing was."""
    if not seconds:
        return ""
    return f"; about {max(statistics.mean(seconds) * trainings / 60, 1):.0f} min left"
