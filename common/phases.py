"""Where the seconds of a command go, by name."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_OTHER = "other"


class Phases:
    """The time since it was made, divided among names. Of phases inside of each other, the innermost one counts."""

    def __init__(self, **before: float) -> None:
        """before: seconds that went by already, by name."""
        self._seconds, self._name, self._since = before, _OTHER, time.perf_counter()

    def seconds(self) -> Mapping[str, float]:
        """By name, in the order in which they were first left; what belongs to none is ``other``, the last one."""
        self.enter(self._name)
        return {name: seconds for name, seconds in self._seconds.items() if name != _OTHER} | {
            _OTHER: self._seconds[_OTHER]
        }

    def enter(self, name: str) -> str:
        """What comes from here on belongs to ``name``; returns the name that it belonged to until here."""
        now, before = time.perf_counter(), self._name
        self._seconds[before] = self._seconds.get(before, 0.0) + now - self._since
        self._name, self._since = name, now
        return before


# Python's own start, by its processor time: the process may have been a shell's before (`exec`), and then it is older
# than the command. Waiting for a slow disk is not in it.
_phases = Phases(start=time.process_time())


@contextmanager
def phase(name: str) -> Iterator[None]:
    """The time of the block, or of a function that this decorates, belongs to ``name``; for the main thread."""
    phases = _phases
    before = phases.enter(name)
    try:
        yield
    finally:
        phases.enter(before)


def begin_phases() -> None:
    """Count from here on: a command in a process that did something else before."""
    global _phases
    _phases = Phases()


def seconds_by_phase() -> Mapping[str, float]:
    """Of this command so far, in the order of happening: ``start`` (of Python), the phases, and ``other``."""
    return _phases.seconds()
