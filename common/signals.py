"""Ctrl-C, termination and a hang-up: as an exception, or as a flag, so that a training finishes its step and saves."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn


def nowhere(descriptor: int) -> None:
    """What is written to a file descriptor is dropped from here on."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def exit_status(stop: KeyboardInterrupt) -> int:
    """128 and the signal's number, as a shell reports it."""
    return 128 + int(stop.args[0] if stop.args else signal.SIGINT)


def end_at_once_by_ctrl_c() -> None:
    """From here on Ctrl-C ends the process without a word: for one that has nothing left to do but to end."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """In the block SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does; `exit_status` tells them apart.

    With a hang-up goes the terminal: what is printed to it is dropped, where it would be an error. A hang-up that is
    ignored (nohup) stays ignored. Outside of the main thread, which alone gets signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    terminals = _terminals()

    def handle(signum: int, frame: FrameType | None) -> NoReturn:
        del frame
        if signum == signal.SIGHUP:
            _hang_up(terminals)
        raise KeyboardInterrupt(signum)

    previous = {signum: signal.signal(signum, handle) for signum in _heard(signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


class Interrupt:
    """Inside the block, the first SIGINT, SIGTERM or SIGHUP sets ``signum``; a second one acts as usual, but for
    SIGHUP, which comes twice. A hang-up that is ignored (nohup) stays ignored.

    With a hang-up goes the terminal: what is printed to it is dropped, where it would be an error. Outside of the main
    thread, which alone gets signals, nothing is heard.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}
        self._open_terminals: list[int] = []

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._open_terminals = _terminals()
            for signum in _heard(signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
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
            _hang_up(self._open_terminals)

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}


def _heard(*signals: int) -> list[int]:
    """Those that are not ignored where they are a hang-up."""
    return [s for s in signals if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]


def _terminals() -> list[int]:
    return [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]


def _hang_up(terminals: list[int]) -> None:
    for descriptor in terminals:
        nowhere(descriptor)
