"""How many threads a step on the CPU takes: the number that is fastest here and now, found on the steps of the run.

The threads of a step wait for each other hundreds of times. Where other programs keep the cores busy, one that is not
being run keeps all of them waiting: two threads then take ten times as long as one. No number suits a machine for good.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator

import torch

from fast_train.pipeline.engine.step import TrainStep
from fast_train.pipeline.loaders import AnyBatch

# A number of threads is measured over so many seconds of steps, after one step in which threads start.
_TRIAL_SECONDS = 0.4
# Of steps as long as this, one is enough.
_LONG_STEP = 2.0
# A number whose first step takes so many times as long as the fastest one's steps is given up.
_HOPELESS = 2.0
# Threads that were run for less than this part of the time share their cores with other programs: more would only wait.
_RUN = 0.8
# A rate below this part of the best, over so many seconds of steps, is a reason to measure again.
_FALLEN, _WINDOW_SECONDS = 0.5, 10.0
# Where fewer threads than allowed are fastest, the machine is busy, and may be idle after so many seconds of steps.
_RETRY_SECONDS = 30.0
# Steps of as many times the seconds that were lost by measuring pass before the next time.
_PAUSE = 10.0


class TunedStep:
    """A step on the CPU, called as the step itself. Its first calls try half of ``most`` threads, all of them and one;
    the calls after them take the fastest, until the rate falls or, with fewer than ``most`` threads, for a while. Where
    half of them don't get their cores, more are not tried.

    Outside of the calls torch is set to the best number known. say: gets a line when a number was chosen. watches:
    whether to measure again. clock, cpu_clock: seconds, and those of the process on all cores.
    """

    def __init__(
        self,
        step: Callable[[AnyBatch], None],
        *,
        most: int,
        say: Callable[[str], None],
        watches: bool = True,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._step, self._most, self._say, self._watches = step, most, say, watches
        self._clock, self._cpu_clock = clock, cpu_clock
        # Of the steps so far, on all cores.
        self._cpu_seconds = 0.0
        #: The best number known.
        self.threads = most
        #: Whether it was measured.
        self.settled = False
        self._images = 0
        self._course = self._decide()
        self._next = next(self._course)

    def __call__(self, batch: AnyBatch) -> None:
        self._images = len(batch.indices)
        torch.set_num_threads(self._next)
        started, cpu_started = self._clock(), self._cpu_clock()
        self._step(batch)
        self._cpu_seconds += self._cpu_clock() - cpu_started
        self._next = self._course.send(self._clock() - started)
        torch.set_num_threads(self.threads)

    def _decide(self) -> Generator[int, float, None]:
        """Yields the number for the next step, and is sent the seconds that it took."""
        reason = ""
        while True:
            before, was_settled = self.threads, self.settled
            found, lost = yield from self._try_each()
            self.settled = True
            if reason or not was_settled or self.threads != before:
                rates = ", ".join(f"{count}: {self._rate(seconds)}" for count, seconds in sorted(found.items()))
                busy = "" if self._most in found else "; other programs keep the cores busy"
                self._say(f"{reason}steps take the fastest number of threads, {self.threads} ({rates}{busy})")
            reason = yield from self._keep(found[self.threads], pause=_PAUSE * lost)

    def _rate(self, step_seconds: float) -> str:
        return f"{self._images / max(step_seconds, 1e-9):,.0f} images/s"

    def _try_each(self) -> Generator[int, float, tuple[dict[int, float], float]]:
        """The seconds of a step by number of threads, and the seconds lost by steps that took longer than the best."""
        found: dict[int, float] = {}
        spent, steps, best, crowded = 0.0, 0, math.inf, False
        half = max(self._most // 2, 1)
        # Half of them first: it is never far from the best, which tells the hopeless ones after one step.
        for count in dict.fromkeys((half, self._most, 1)):
            slower_by_fewer = len(found) == 2 and found[half] > found[self._most]
            # One thread would be slower still, and a step of it is long.
            hopeless = slower_by_fewer and half * found[half] > _LONG_STEP
            if hopeless or (crowded and count > half):
                continue
            spent_before, cpu_before = spent, self._cpu_seconds
            seconds = yield count
            spent, steps = spent + seconds, steps + 1
            if seconds < max(_TRIAL_SECONDS, min(_HOPELESS * best, _LONG_STEP)):
                measured, first = 0.0, steps
                while measured < _TRIAL_SECONDS:
                    measured += yield count
                    steps += 1
                seconds = measured / (steps - first)
                spent += measured
            found[count] = seconds
            crowded |= self._cpu_seconds - cpu_before < _RUN * count * (spent - spent_before)
            best = min(found.values())
            self.threads = min(found, key=found.__getitem__)
        return found, spent - steps * best

    def _keep(self, best: float, *, pause: float) -> Generator[int, float, str]:
        """Goes on with the number chosen until it is time to measure again; why, where there is a reason to be told.

        best: seconds of a step. pause: seconds to pass before.
        """
        passed, window, steps = 0.0, 0.0, 0
        while True:
            window += yield self.threads
            steps += 1
            if window < _WINDOW_SECONDS:
                continue
            passed, step_seconds = passed + window, window / steps
            window, steps = 0.0, 0
            if self._watches and passed >= pause:
                if best < _FALLEN * step_seconds:
                    return f"the rate fell from {self._rate(best)} to {self._rate(step_seconds)}, measured again: "
                if self.threads < self._most and passed >= _RETRY_SECONDS:
                    return ""
            best = min(best, step_seconds)


def settle_threads(step: TrainStep, batch: AnyBatch, *, most: int) -> None:
    """Set torch to the number of threads that is fastest for a step on the CPU at present; the step is as before."""
    tuned = TunedStep(step, most=most, say=lambda line: None)
    with step.unchanged():
        while most > 1 and not tuned.settled:
            tuned(batch)
