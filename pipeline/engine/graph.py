"""A training step captured once as a CUDA graph and replayed: one launch instead of hundreds."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fast_train.common.phases import phase
from fast_train.pipeline.engine.step import TrainStep
from fast_train.pipeline.loaders import AnyBatch

_WARM_UP_STEPS = 3
# Replays that may be queued: the device never waits for the host, and what a loader hands over is soon free again.
_MOST_AHEAD = 16


@phase("compilation")
def warm_up(step: TrainStep, batch: AnyBatch) -> None:
    """Run a few steps and undo them: compilation, algorithm choice and allocations happen here, once."""
    with step.unchanged():
        for _ in range(_WARM_UP_STEPS):
            step(batch)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """What the collector frees during a capture may make CUDA calls that break it, such as unloading the candidates
    that torch.compile tried and dropped; so it runs just before."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class CapturedStep:
    """Call it as the step itself. Each batch is copied into the buffers that the graph reads.

    batch: an example of the training type and shape. What of this type does not change from batch to batch, such as the
    split that a `SplitView` holds, is read where it lies: it must be the same tensor at every call. beside: a step that
    was captured before, for images of another size, from the same kind of batch; both graphs use its buffers and its
    memory, so that one of them runs at a time.
    """

    def __init__(self, step: TrainStep, batch: AnyBatch, *, beside: CapturedStep | None = None) -> None:
        # Threads of other libraries may free garbage with calls that wait for the whole device, which would break the
        # capture: collect it before.
        gc.collect()
        # The graph reads and writes the step's tensors by their addresses, and keeps none of them alive.
        self._step = step
        self._static: AnyBatch = batch.clone() if beside is None else beside._static
        # Warm-up runs on a stream of its own, as capture does, so that no work is left over on the first one. Graphs
        # that share memory share it: what one stream freed, the allocator gives to that stream alone.
        self._stream: torch.cuda.Stream = torch.cuda.Stream(step.device) if beside is None else beside._stream
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream(step.device))
        with torch.cuda.stream(stream):
            warm_up(step, self._static)
        torch.cuda.current_stream(step.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        pool = None if beside is None else beside._graph.pool()
        # Only this thread's calls are recorded; a loader's thread may pin memory meanwhile.
        with (
            phase("capture"),
            no_garbage_collection(),
            torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            step(self._static)
        self._done = [torch.cuda.Event() for _ in range(_MOST_AHEAD)]
        self._calls = 0

    def __call__(self, batch: AnyBatch) -> None:
        expected, got = type(self._static).__name__, type(batch).__name__
        if got != expected:
            raise ValueError(f"this is a {got}, but the step was captured for a {expected}")
        # Wait for the replay of _MOST_AHEAD calls ago; an event that was never recorded is done.
        self._done[self._calls % _MOST_AHEAD].synchronize()
        changing = batch.changing()
        for name, static, given in zip(batch._fields, self._static, batch, strict=True):
            if name not in changing:
                if given.data_ptr() != static.data_ptr():
                    raise ValueError(f"{name} moved since the step was captured; give the same tensor")
                continue
            if given.shape != static.shape or given.dtype != static.dtype or given.device != static.device:
                raise ValueError(
                    f"{name} is {given.dtype} {tuple(given.shape)} on {given.device}, but the step was captured "
                    f"for {static.dtype} {tuple(static.shape)} on {static.device}"
                )
            static.copy_(given, non_blocking=True)
        self._graph.replay()
        self._done[self._calls % _MOST_AHEAD].record(torch.cuda.current_stream(self._step.device))
        self._calls += 1
