"""When a training stops or saves because somebody asks for it: by a signal to its process, or to any of its ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

from fast_train.common.signals import Interrupt
from fast_train.pipeline.ranks import Agreement, Wishes, current

T = TypeVar("T")


class BrokenOff(Exception):
    """A signal ended an evaluation."""


class Requests:
    """Those of one training. On several ranks they are known to all after the same step, and obeyed by all.

    lag: steps after which ranks hear of each other.
    """

    def __init__(self, interrupt: Interrupt, *, lag: int) -> None:
        self._interrupt, self._ranks = interrupt, current()
        self._agreement = Agreement(self._ranks, lag=lag)
        self._signum: int | None = None
        self._save = False

    @property
    def signum(self) -> int | None:
        """Of the signal that the training is to stop by; None where it goes on."""
        return self._signum if self._ranks.joined else self._interrupt.signum

    def batches(self, items: Iterator[T]) -> Iterator[T]:
        """``items`` up to a signal, which ends a wait for the next one too. A rank takes part in a step that the others
        may have begun."""
        return items if self._ranks.joined else self._interrupt.until_stopped(items)

    def after_step(self, *, due: bool) -> None:
        """due: whether this rank finds that it is time to save."""
        heard = self._agreement.hear(Wishes(self._interrupt.signum, due or self._interrupt.asked_to_save))
        self._signum = self._signum or heard.signum
        self._save |= heard.save

    def between_steps(self, *, due: bool = False) -> None:
        """As `after_step`, heard at once: the ranks wait for each other."""
        self._signum = self._signum or self._ranks.highest(self._interrupt.signum)
        self._save |= bool(self._ranks.highest(int(due or self._interrupt.asked_to_save)))

    def take_save(self) -> bool:
        """Whether to save now; it is then no longer asked for."""
        save, self._save = self._save, False
        if save:
            self._interrupt.asked_to_save = False
        return save

    def unless_stopped(self, work: Callable[[Callable[[], bool]], T]) -> T | None:
        """What ``work`` returns, or None where a signal has come. It is given a function that tells whether one has, on
        this rank, and raises BrokenOff on all ranks where it has on any."""
        if not self._ranks.joined:
            return self._interrupt.unless_stopped(lambda: work(lambda: False))
        result = None
        with suppress(BrokenOff):
            result = work(lambda: self._interrupt.signum is not None)
        self.between_steps()
        return result

    def end(self) -> None:
        """After the last step, on all ranks."""
        self._agreement.last()
