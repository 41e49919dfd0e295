"""Measure the points of `benchmarks.lab.cli`, one after the other, as long as there is time, and report."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fast_train.benchmarks.instrument import roofline
from fast_train.benchmarks.instrument.bench import Bench, Measured, build_bench, measure_and_report
from fast_train.benchmarks.instrument.cost import batch_warnings
from fast_train.benchmarks.instrument.flags import Settings, repeat_seconds
from fast_train.benchmarks.instrument.records import Details
from fast_train.benchmarks.instrument.result import Row
from fast_train.benchmarks.instrument.statistics import bootstrap_ratio
from fast_train.benchmarks.instrument.timing import FAILURES
from fast_train.benchmarks.lab import augmentation_cpu, floors, losses, options, profile, report
from fast_train.benchmarks.lab.options import Built
from fast_train.benchmarks.lab.records import (
    AUGMENTATION,
    AUGMENTATION_CPU,
    END_TO_END,
    FLOORS,
    KERNELS,
    LOSSES,
    ON_STEPS,
    PLAIN,
    POINTS,
    STEP,
    GroupDetails,
    Kernel,
    KernelsDetails,
    Option,
    StepDetails,
)
from fast_train.benchmarks.throughput.suites import augmentation
from fast_train.benchmarks.throughput.suites.ladder import RATE
from fast_train.common.console import Display
from fast_train.common.text import one_line
from fast_train.pipeline.config.settings import Config
from fast_train.pipeline.loaders import Loader, build_loader

if TYPE_CHECKING:
    from fast_train.benchmarks.lab.cli import Flags

AUGMENTATION_BATCHES = (8_192, 32_768)
_MOST_EPOCHS = 20
_STEPS_A_PROFILE = 10
_NAMED_KERNELS = 40


@dataclass(kw_only=True)
class Lab:
    """points: which to measure. until: of time.monotonic(), where no further step is built."""

    bench: Bench[Settings]
    flags: Flags
    points: Sequence[str]
    batch_sizes: Sequence[int]
    until: float
    floors: dict[str, Any] | None = None
    losses: dict[str, Any] | None = None


def measure(flags: Flags, command: Sequence[str]) -> int:
    """Measure, write, print; see `measure_and_report`."""
    started = time.monotonic()

    def settings(_: Config, cuda: bool) -> Settings:
        seconds = repeat_seconds(quick=flags.quick, cuda=cuda)
        return Settings(repeats=flags.rounds, seconds=seconds, quick=flags.quick)

    with tempfile.TemporaryDirectory(prefix="step-lab-") as scratch:
        bench = build_bench(flags, settings, command=command, display=Display(), scratch=Path(scratch))
        lab = _lab(flags, bench, started)
        write = partial(_write, lab, started)
        return measure_and_report(bench, partial(_run, lab), write, out=flags.out, default=Path("reports/step-lab"))


def _write(lab: Lab, started: float, folder: Path) -> list[str]:
    lab.bench.display.say("\n" + report.write(folder, lab))
    path, rows = folder / report.JSON, len(lab.bench.result.rows)
    return [f"{path}: {rows} rows in {time.monotonic() - started:.0f} s", json.dumps(report.aims(lab))]


def _lab(flags: Flags, bench: Bench[Settings], started: float) -> Lab:
    """What is to be measured; ValueError for flags that can't be."""
    cuda = bench.device.type == "cuda"
    points, sizes = flags.points(cpu=not cuda), flags.sizes()
    if sizes is None and not flags.quick and any(point in points for point in ON_STEPS):
        bench.result.warnings += batch_warnings(bench.recipe, bench.config)
    default = (1024, 512, 2048) if cuda else (32,) if flags.quick else (bench.config.data.batch_size,)
    return Lab(
        bench=bench,
        flags=flags,
        points=points,
        batch_sizes=default if sizes is None else sizes,
        until=started + 60 * flags.minutes,
    )


def _run(lab: Lab) -> None:
    """All points; what can't be measured is listed with its reason."""
    bench, given = lab.bench, lab.flags.copy_bandwidth is not None and lab.flags.matrix_rate is not None
    for point in POINTS:
        if point not in lab.points:
            reason = "of a CPU; --only asks for it" if lab.flags.only is None else "left out by --only"
            bench.skip(point, "the point", reason)
    if (FLOORS in lab.points and not given) or {AUGMENTATION, STEP} & set(lab.points):
        bench.attempt(roofline.SUITE, "the rest", partial(roofline.run, bench))
    for point, work in (
        (FLOORS, partial(_floors, lab, given=given)),
        (AUGMENTATION, partial(augmentation.measure, bench, AUGMENTATION_BATCHES)),
        (AUGMENTATION_CPU, partial(augmentation_cpu.run, bench)),
    ):
        if point in lab.points:
            bench.attempt(point, "the rest", work)
    if any(point in lab.points for point in ON_STEPS):
        if bench.device.type != "cuda":
            bench.skip(
                STEP, "the captured step", "CUDA graphs need a CUDA device; the step is measured as it runs here"
            )
        for place, size in enumerate(lab.batch_sizes):
            bench.attempt(f"batch {size:,}", "the rest", partial(_batch, lab, size, first=place == 0))


def _floors(lab: Lab, *, given: bool) -> None:
    bench = lab.bench
    kind = bench.runtime.dtype_name
    copy = lab.flags.copy_bandwidth or roofline.copy_bandwidth(bench.result)
    matrix = lab.flags.matrix_rate or roofline.peak_flops(bench.result, kind)
    if copy is None or matrix is None:
        raise ValueError(f"neither measured nor given: copy bandwidth {copy}, {kind} matrix rate {matrix}")
    batch = lab.batch_sizes[0]
    found = floors.parts(bench.config.model, bench.runtime.image_dtype.itemsize)
    lab.floors = {
        "batch": batch,
        "copy_bytes_per_second": copy,
        "matrix_flops_per_second": matrix,
        "given": given,
        "groups": floors.groups(found, batch, copy=copy, matrix=matrix),
        "parts": floors.describe(found, batch, copy=copy, matrix=matrix),
    }


def _batch(lab: Lab, size: int, *, first: bool) -> None:
    """All that is measured on steps of one batch size: losses and kernels only with the first one."""
    bench = lab.bench
    chosen = [p for p in ON_STEPS if p in lab.points and (first or p in (STEP, END_TO_END))]
    if not chosen:
        return
    with build_loader("resident", bench.prepared, "train", batch_size=size, device=bench.data_device) as loader:
        built = [b for option in lab.flags.chosen_options() if (b := _build(lab, option, loader, chosen)) is not None]
        if built and LOSSES in chosen:
            _losses(lab, built)
        if built and KERNELS in chosen:
            _kernels(bench, built)
        if built:
            _rates(bench, built, size, chosen)


def _build(lab: Lab, option: Option, loader: Loader, chosen: Sequence[str]) -> Built | None:
    bench, size = lab.bench, loader.batch_size
    reason = options.why_not(option, bench.runtime)
    if reason is None and time.monotonic() + option.build_seconds > lab.until:
        reason = f"no time left; --minutes gives more, or --only step --batch-sizes {size}"
    if reason is None:
        try:
            started = time.monotonic()
            built = options.build(bench, option, loader)
            bench.display.say(f"  {_name(option, size)}: built in {time.monotonic() - started:.0f} s")
            return built
        except FAILURES as error:
            reason = one_line(error)
    for point in chosen:
        bench.skip(point, _name(option, size), reason)
    return None


def _name(option: Option, size: int) -> str:
    return f"{option.name}, batch {size:,}"


def _losses(lab: Lab, built: Sequence[Built]) -> None:
    if built[0].option is not PLAIN:
        lab.bench.skip(LOSSES, "all options", "the plain step, to compare with, could not be built")
        return
    steps, seeds = (8, (0, 1)) if lab.flags.quick else (200, (0, 1, 2))
    plain = {seed: losses.train(built[0], seed=seed, steps=steps) for seed in seeds}
    others = {b.option.name: losses.train(b, seed=seeds[0], steps=steps) for b in built[1:]}
    lab.losses = losses.compare(plain, others)


def _kernels(bench: Bench[Settings], built: Sequence[Built]) -> None:
    if bench.device.type != "cuda":
        bench.skip(KERNELS, "all options", "kernels are what a CUDA device runs; there is none here")
        return
    for one in built:
        one.step.set_rate(RATE)
        one.once()
        taken = [profile.kernel_seconds(one.once, _STEPS_A_PROFILE) for _ in range(bench.settings.repeats)]
        kernel_rows(bench, _name(one.option, len(one.batch.indices)), taken)


def kernel_rows(bench: Bench[Settings], name: str, taken: Sequence[dict[str, float]]) -> None:
    """A row for each group of kernels, and one for all together. taken: seconds by kernel, of each repeat."""
    grouped = [profile.by_group(kernels) for kernels in taken]
    whole = [sum(groups.values()) for groups in grouped]
    if not sum(whole):
        raise RuntimeError("torch.profiler saw no kernel; another profiler may be attached to the device")
    longest = sorted(taken[-1].items(), key=lambda item: -item[1])[:_NAMED_KERNELS]
    named = tuple(Kernel(kernel=kernel, ms=1e3 * s, group=profile.classify(kernel)) for kernel, s in longest)
    bench.add(_milliseconds(f"{name}: all", whole, KernelsDetails(longest=named)))
    for group in profile.GROUPS:
        values = [groups[group] for groups in grouped]
        details = GroupDetails(group=group, share=sum(values) / sum(whole))
        bench.add(_milliseconds(f"{name}: {group}", values, details))


def _milliseconds(name: str, seconds: Sequence[float], details: Details) -> Row[Details]:
    repeats = tuple(1e3 * value for value in seconds)
    return Row(suite=KERNELS, name=name, unit="ms", better="lower", repeats=repeats, details=details)


def _rates(bench: Bench[Settings], built: Sequence[Built], size: int, chosen: Sequence[str]) -> None:
    """Images/s of each option, on a fixed batch and fed by the loader, all in turn."""
    cases: list[Measured[StepDetails]] = []
    for one in built:
        one.step.set_rate(RATE)
        if STEP in chosen or END_TO_END in chosen:
            rate = bench.rate(one.once, items=size)
            cases.append(Measured(name=_name(one.option, size), run=rate, details=_details(one, size, STEP)))
        if END_TO_END in chosen:
            rate = one.feed.rate(one.ready, seconds=bench.settings.seconds, epochs=_MOST_EPOCHS)
            name = f"{_name(one.option, size)}, resident loader"
            cases.append(Measured(name=name, run=rate, details=_details(one, size, END_TO_END)))
    if not cases:
        return
    rows = bench.measure(STEP, f"batch {size:,}", cases)
    by_name = {row.name: row for row in rows}
    plain = by_name.get(_name(PLAIN, size))
    for row in rows:
        alone = by_name.get(f"{row.details.option}, batch {size:,}")
        if row.details.point == END_TO_END and alone is not None:
            bench.amend(row, replace(row.details, share_of_step=row.value / alone.value))
        elif plain is not None:
            ends = bootstrap_ratio(row.repeats, plain.repeats)
            bench.amend(row, replace(row.details, over_plain=row.value / plain.value, over_plain_interval=ends))


def _details(one: Built, size: int, point: str) -> StepDetails:
    return StepDetails(option=one.option.name, batch=size, runtime=one.runtime.describe(), point=point)
