"""The ways to a faster step that are compared, and the step of each, built as `fast-train` builds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fast_train.benchmarks.instrument.bench import Bench
from fast_train.benchmarks.instrument.cost import in_batches
from fast_train.benchmarks.instrument.feeds import LoaderFeed
from fast_train.benchmarks.instrument.flags import Settings
from fast_train.benchmarks.lab.records import Option
from fast_train.kernels.switches import switched
from fast_train.pipeline.config.settings import Config
from fast_train.pipeline.engine.build import build_augmenter, build_step, ready_step
from fast_train.pipeline.engine.runtime import Runtime, resolve_runtime
from fast_train.pipeline.engine.step import TrainStep
from fast_train.pipeline.loaders import AnyBatch, Loader


@dataclass(frozen=True, kw_only=True)
class Built:
    """ready: the step as a run calls it. batch: a fixed one. feed: batches in the run's order."""

    option: Option
    config: Config
    runtime: Runtime
    step: TrainStep
    ready: Callable[[AnyBatch], None]
    batch: AnyBatch
    feed: LoaderFeed

    def once(self) -> None:
        self.ready(self.batch)


def why_not(option: Option, runtime: Runtime) -> str | None:
    """Why an option is of no use on this device; None where it is. runtime: of the plain step."""
    if option.plans is not None and (runtime.device.type != "cuda" or runtime.amp is None):
        return "cuDNN's plans are timed anew in half precision alone, on a GPU"
    if runtime.device.type == "cuda":
        if option.switches.get("tma"):
            from fast_train.kernels.convolution_tma import why_not

            return why_not(runtime.device)
        return None
    if option.run.get("amp") == "fp16":
        return "float16 is a type of tensor cores; a CPU emulates it"
    if "compile_mode" in option.run:
        return "the step is not compiled on a CPU"
    if option.switches:
        return "it is about kernels of a GPU"
    return None


def build(bench: Bench[Settings], option: Option, loader: Loader) -> Built:
    """The step of an option. loader: the resident one of this batch size. ValueError or RuntimeError where it fails."""
    run = dataclasses.replace(bench.config.run, **option.run)
    config = in_batches(dataclasses.replace(bench.config, run=run), loader.batch_size)
    runtime = resolve_runtime(run)
    if runtime.less_fused is not None:
        raise ValueError(runtime.less_fused)
    augmenter = build_augmenter(config, bench.prepared, runtime, train=True)
    step = build_step(config, augmenter, runtime)
    with switched(**option.switches), _timing(option.plans):
        ready = ready_step(step, loader.example(), runtime)
    feed = LoaderFeed(loader, augmenter, raw=False)
    (given,) = feed.batches(1)
    # Indices of its own: the loader's belong to an epoch.
    batch = given.clone()
    return Built(option=option, config=config, runtime=runtime, step=step, ready=ready, batch=batch, feed=feed)


@contextmanager
def _timing(plans: int | None) -> Iterator[None]:
    """Inside of the block cuDNN times so many plans of a convolution anew, None for as it is."""
    cudnn = torch.backends.cudnn
    limit, tf32 = cudnn.benchmark_limit, cudnn.allow_tf32
    try:
        if plans is not None:
            # torch keeps what was the fastest of a convolution under its shapes and settings. This one means nothing in
            # bfloat16, but finds nothing that an option before has left.
            cudnn.benchmark_limit, cudnn.allow_tf32 = plans, not tf32
        yield
    finally:
        cudnn.benchmark_limit, cudnn.allow_tf32 = limit, tf32
