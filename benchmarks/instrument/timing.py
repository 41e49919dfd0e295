"""Repeats in turn, and rates that are long enough to be measured.

Cases that are compared run interleaved: a round runs each case once, and each round begins with another case. So
whatever drifts on the machine (clocks, temperature, other programs) meets all of them alike. Rounds of warm-up come
first, at least one; they are kept, but count for nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from fast_train.benchmarks.instrument.flags import check_counts
from fast_train.common.text import one_line
from fast_train.pipeline.engine.graph import no_garbage_collection

try:
    from triton.errors import TritonError
except ImportError:
    TritonError = RuntimeError

#: What a case may raise without ending the whole: bad settings, a device's or the system's errors, a kernel that does
#: not fit.
FAILURES = (ValueError, RuntimeError, OSError, TritonError)
# A trial shorter than this part of a repeat is too short to size the repeat by.
_SHORTEST_TRIAL = 0.25
# A repeat shorter than this part of what was meant is lengthened for those after it.
_SHORTEST_REPEAT = 0.75


@dataclass(frozen=True)
class Case:
    """name: unique among those that run in turn. run: does one repeat and returns what it measured."""

    name: str
    run: Callable[[], float]


@dataclass(frozen=True)
class Samples:
    """What a case's runs returned, in order."""

    warm_up: tuple[float, ...]
    repeats: tuple[float, ...]


def interleave(
    cases: Sequence[Case],
    *,
    repeats: int,
    warm_up: int,
    after_each: Callable[[], None] = lambda: None,
    on_failure: Callable[[str, str], None],
) -> dict[str, Samples]:
    """Run all cases in turn, round by round; the samples of those that did not fail, by name.

    A case that raises one of `FAILURES` (torch's of any kind, out of memory included) takes no further part, and
    ``on_failure`` gets its name and the reason. Raises ValueError without warm-up or repeats.
    """
    check_counts(repeats, warm_up)
    taken: dict[str, list[float]] = {case.name: [] for case in cases}
    if len(taken) != len(cases):
        raise ValueError("two cases that run in turn have one name")
    for number in range(warm_up + repeats):
        start = number % len(cases) if cases else 0
        for case in [*cases[start:], *cases[:start]]:
            if case.name in taken:
                try:
                    taken[case.name].append(case.run())
                except FAILURES as error:
                    del taken[case.name]
                    on_failure(case.name, one_line(error))
            after_each()
    return {name: Samples(tuple(all_[:warm_up]), tuple(all_[warm_up:])) for name, all_ in taken.items()}


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Rate:
    """A repeat that measures items a second, long enough to be measured well.

    work: does ``n`` iterations, to the end on the device, and returns the seconds. items: of one iteration. seconds:
    how long a repeat takes; the first call finds out how many iterations that is, after one trial that it discards, and
    a repeat that turns out much shorter, since that trial was disturbed, has those after it take more. lot: iterations
    come in multiples of it. most: iterations at most.
    """

    def __init__(
        self, work: Callable[[int], float], *, items: float, seconds: float, lot: int = 1, most: int = 1 << 20
    ) -> None:
        self._work, self._items, self._seconds = work, items, seconds
        self._lot, self._most = lot, max(most // lot * lot, lot)
        self.iterations = 0

    def __call__(self) -> float:
        if not self.iterations:
            self._work(self._lot)
            count = self._lot
            while (taken := self._work(count)) < _SHORTEST_TRIAL * self._seconds and count < self._most:
                count = min(4 * count, self._most)
            self._take(count, taken)
        count = self.iterations
        taken = self._work(count)
        if taken < _SHORTEST_REPEAT * self._seconds:
            self._take(count, taken)
        return self._items * count / taken

    def _take(self, count: int, taken: float) -> None:
        """Choose the iterations of a repeat, where ``count`` of them have taken ``taken`` seconds."""
        lots = math.ceil(count * self._seconds / max(taken, 1e-9) / self._lot)
        self.iterations = min(max(lots, 1) * self._lot, self._most)


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """A replay of ``call`` as one CUDA graph, so that its kernels are measured and not Python; it returns the results,
    which each replay overwrites. ``call`` must have been made before: it may compile and allocate the first time."""
    graph = torch.cuda.CUDAGraph()
    with no_garbage_collection(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = call()
    return partial(_replay, graph, outputs, call)


def _replay(graph: torch.cuda.CUDAGraph, outputs: object, call: Callable[[], object]) -> object:
    """call: kept with its graph, which reads tensors that ``call`` holds, by their addresses."""
    graph.replay()
    return outputs


def timed(call: Callable[[], object], device: torch.device) -> Callable[[int], float]:
    """Work for `Rate`: the seconds of ``n`` calls."""

    def work(count: int) -> float:
        synchronise(device)
        started = time.perf_counter()
        for _ in range(count):
            call()
        synchronise(device)
        return time.perf_counter() - started

    return work
