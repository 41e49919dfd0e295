"""The step alone on one resident batch, from the baseline's to ours, one change a rung."""

from __future__ import annotations

import dataclasses
import gc
from dataclasses import dataclass
from typing import Any

import torch

from fast_train.benchmarks.instrument.bench import Bench, Measured, tf32
from fast_train.benchmarks.instrument.cost import count_work, in_batches
from fast_train.benchmarks.instrument.flags import Settings
from fast_train.benchmarks.instrument.roofline import NO_TF32, kind_of, peak_flops
from fast_train.benchmarks.instrument.timing import FAILURES
from fast_train.benchmarks.throughput.records import RungDetails
from fast_train.common.text import one_line
from fast_train.pipeline.config.settings import Config
from fast_train.pipeline.device import has_tf32
from fast_train.pipeline.engine.build import build_augmenter, build_step, ready_step
from fast_train.pipeline.engine.runtime import Runtime, resolve_runtime
from fast_train.pipeline.engine.step import TrainStep
from fast_train.pipeline.loaders import Loader, RaggedView, SplitView, build_loader

SUITE = "ladder"
#: Far below any recipe's: the step costs the same, and a loss that is not a number any more would not.
RATE = 1e-4
_COUNTED_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class Rung:
    """change: what distinguishes it from the rung before."""

    change: str
    config: Config
    tf32: bool


def run(bench: Bench[Settings]) -> None:
    """A row for each rung, with TFLOP/s, share of the peak, peak memory."""
    cases = []
    with build_loader("resident", bench.prepared, "train", batch_size=1, device=bench.data_device) as loader:
        for number, rung in enumerate(rungs(bench)):
            try:
                cases.append(_case(bench, number, rung, loader))
            except FAILURES as error:
                bench.skip(SUITE, _name(number, rung), one_line(error))
        rows = bench.measure(SUITE, "step ladder", cases)
    for row in rows:
        peak = peak_flops(bench.result, row.details.kind)
        flops = row.value * row.details.flops_per_image
        share = None if peak is None else flops / peak
        bench.amend(row, dataclasses.replace(row.details, flops_per_second=flops, share_of_peak=share))


def rungs(bench: Bench[Settings]) -> list[Rung]:
    """The rungs that this machine has; the others are listed with their reasons."""
    recipe = bench.config
    cuda, quick = bench.device.type == "cuda", bench.settings.quick
    ladder = [Rung(change="float32, eager", config=bench.baseline, tf32=False)]

    def climb(
        change: str, reason: str | None, *, tf32: bool | None = None, batch: int | None = None, **run: Any
    ) -> None:
        if reason is not None:
            bench.skip(SUITE, change, reason)
            return
        last = ladder[-1]
        config = dataclasses.replace(last.config, run=dataclasses.replace(last.config.run, **run))
        if batch is not None:
            config = in_batches(config, batch)
        ladder.append(Rung(change=change, config=config, tf32=last.tf32 if tf32 is None else tf32))

    climb("TF32", None if has_tf32(bench.device) else NO_TF32, tf32=True)
    amp = bench.runtime.amp
    no_amp = "the recipe trains in float32 on this device" if amp is None else None
    climb(f"AMP, {str(amp).removeprefix('torch.')}" if amp else "AMP", no_amp, amp=recipe.run.amp)
    plain = None if bench.runtime.channels_last else "the recipe keeps images in plain memory on this device"
    climb("channels_last", plain, channels_last=True)
    if recipe.data.batch_size != bench.baseline.data.batch_size:
        climb(f"batch {recipe.data.batch_size:,}", None, batch=recipe.data.batch_size)
    climb("torch.compile", _no_compile(bench, quick), compile=True)
    climb("captured graph", None if cuda else "CUDA graphs need a CUDA device", graph=True)
    # With what the rungs above it changed; their run has neither the recipe's fusion nor its mode of compiling.
    last = ladder[-1].config.run
    run = dataclasses.replace(recipe.run, compile=last.compile, graph=last.graph)
    config = dataclasses.replace(recipe, run=run)
    ladder.append(Rung(change=f"recipe {recipe.recipe}", config=config, tf32=ladder[-1].tf32 and run.tf32))
    return ladder


def _no_compile(bench: Bench[Settings], quick: bool) -> str | None:
    if quick:
        return "left out by --quick: compiling takes most of a minute"
    try:
        resolve_runtime(dataclasses.replace(bench.config.run, compile=True))
    except ValueError as error:
        return str(error)
    return None


def _name(number: int, rung: Rung) -> str:
    return f"{number + 1}. {'+ ' if number else ''}{rung.change}"


def _case(bench: Bench[Settings], number: int, rung: Rung, loader: Loader) -> Measured[RungDetails]:
    before = _allocated(bench.device)
    runtime, size = resolve_runtime(rung.config.run), rung.config.data.batch_size
    with tf32(rung.tf32):
        plain = dataclasses.replace(runtime, compile=False, graph=False)
        step = _build(bench, rung.config, plain)
        work = count_work(step, _first(loader, _COUNTED_IMAGES), batch_size=size)
        # What it was counted on is no part of the rung's memory.
        del step
        gc.collect()
        batch = _first(loader, size)
        step = _build(bench, rung.config, runtime)
        step.set_rate(RATE)
        ready = ready_step(step, batch, runtime)
        ready(batch)
    details = RungDetails(
        rung=number,
        change=rung.change,
        batch_size=size,
        kind=kind_of(runtime.amp, tf32=rung.tf32),
        flops_per_image=work.flops,
        bytes_per_image=work.bytes,
        peak_memory_bytes=_peak(bench.device, before),
    )
    rate = bench.rate(lambda: ready(batch), items=size)
    return Measured(name=_name(number, rung), run=tf32(rung.tf32)(rate.__call__), details=details)


def _build(bench: Bench[Settings], config: Config, runtime: Runtime) -> TrainStep:
    return build_step(config, build_augmenter(config, bench.prepared, runtime, train=True), runtime)


def _first(loader: Loader, count: int) -> SplitView | RaggedView:
    """The whole split, with ``count`` random indices of it."""
    whole = loader.example()
    assert isinstance(whole, SplitView | RaggedView), "a resident split is seen whole"
    if count > len(whole.labels):
        raise ValueError(f"the training split holds {len(whole.labels)} images, fewer than one batch of {count}")
    return whole._replace(indices=torch.randperm(len(whole.labels), device=loader.device)[:count])


def _allocated(device: torch.device) -> int:
    """Bytes on the device; its peak is counted from here on."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak(device: torch.device, before: int) -> int | None:
    """Bytes that the step needed at most, without the split and other rungs; None where nobody keeps count."""
    return torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else None
