"""Ctrl-C, termination and a hang-up as a flag, so that a training finishes its step and saves."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any


def nowhere(descriptor: int) -> None:
    """What is written to a file descriptor is dropped from here on."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


class Interrupt:
    """Inside the block, the first SIGINT, SIGTERM or SIGHUP sets ``signum``; a second one acts as usual, but for
    SIGHUP, which comes twice. A hang-up that is ignored (nohup) stays ignored.

    With a hang-up goes the terminal: what is printed to it is dropped, where it would be an error.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}
        self._terminals: list[int] = []

    def __enter__(self) -> Interrupt:
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN:
                continue
            self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        del frame
        self.signum = signum
        self._restore()
        if signum == signal.SIGHUP:
            self._previous[signum] = signal.signal(signum, signal.SIG_IGN)
            for descriptor in self._terminals:
                nowhere(descriptor)

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}
