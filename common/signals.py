"""Ctrl-C, termination and hang-up: as an exception, or as a flag, so that a training finishes its step and saves."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType, TracebackType
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

# Of a signal that was lost where it came.
_SECONDS_TO_REPEAT = 0.05


def discard(descriptor: int) -> None:
    """From here on, drop what is written to a file descriptor."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def exit_status(stop: KeyboardInterrupt) -> int:
    """128 and the signal's number, as a shell reports it; of Ctrl-C where the exception holds no number."""
    return 128 + next((int(value) for value in stop.args if isinstance(value, int)), int(signal.SIGINT))


def end_at_once_by_ctrl_c() -> None:
    """From here on Ctrl-C ends the process silently: for a process that has nothing left to do."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_by_ctrl_c() -> None:
    """Ctrl-C raises KeyboardInterrupt again, after `end_at_once_by_ctrl_c`."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def termination_as_interrupt(*, ends_process: bool = False) -> Iterator[None]:
    """In the block SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does; `exit_status` tells them apart.

    A hang-up takes the terminal away: from then on, what is printed to it is dropped. The kernel and the shell both
    send it, so the second one is ignored; with ``ends_process``, where nothing comes after the block, also behind it.
    A hang-up that is ignored from the start (nohup) stays ignored. Outside of the main thread, the only one that gets
    signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    terminals = _terminals()

    def handle(signum: int, frame: FrameType | None) -> NoReturn:
        del frame
        if signum == signal.SIGHUP:
            signal.signal(signum, signal.SIG_IGN)
            _hang_up(terminals)
        raise KeyboardInterrupt(signum)

    def lost(unraisable: sys.UnraisableHookArgs) -> None:
        # A signal came inside of a destructor or of a library's callback, where Python drops what is raised: once more.
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            hook(unraisable)
            return
        signum = exit_status(unraisable.exc_value) - 128
        if signum in previous:
            signal.signal(signum, handle)
        again.append(threading.Timer(_SECONDS_TO_REPEAT, os.kill, (os.getpid(), signum)))
        again[-1].start()

    again: list[threading.Timer] = []
    hook, sys.unraisablehook = sys.unraisablehook, lost
    previous = {signum: signal.signal(signum, handle) for signum in _heard(signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for timer in again:
            timer.cancel()
        for signum, handler in previous.items():
            # The second hang-up may come while the process ends, and would take its status.
            if not (ends_process and signal.getsignal(signum) is signal.SIG_IGN):
                signal.signal(signum, handler)


def ignore_requests_to_save() -> None:
    """From here on, SIGUSR1 does not end the process: `Interrupt` hears it where there is something to save."""
    if hasattr(signal, "SIGUSR1") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class _BrokenOff(KeyboardInterrupt):
    """A signal ends what `Interrupt.unless_stopped` does."""


class Interrupt:
    """In the block, the first SIGINT, SIGTERM or SIGHUP sets ``signum``; a second one acts as it did before the block.
    Each SIGUSR1, which batch systems send some time before the end, sets ``asked_to_save``.

    So what has to be whole comes to its end. What need not be, such as a wait, is done by `unless_stopped`. A hang-up
    is treated as in `termination_as_interrupt`. Outside of the main thread, the only one that gets signals, nothing
    changes.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.asked_to_save = False
        self._previous: dict[int, Any] = {}
        self._open_terminals: list[int] = []
        self._breaks_off = False

    def unless_stopped(self, work: Callable[[], T]) -> T | None:
        """Do ``work``, such as a wait, which the first signal ends at once. Returns what it returns, or None where a
        signal has come, now or before."""
        try:
            try:
                self._breaks_off = True
                return work() if self.signum is None else None
            finally:
                self._breaks_off = False
        except _BrokenOff:
            return None

    def until_stopped(self, items: Iterator[T]) -> Iterator[T]:
        """``items``, none of which is None, up to the first signal, which also ends the wait for the next one."""
        while (item := self.unless_stopped(partial(next, items, None))) is not None:
            yield item

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._open_terminals = _terminals()
            for signum in _heard(signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._previous[signum] = signal.signal(signum, self._handle)
            if hasattr(signal, "SIGUSR1"):
                self._previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._note)
        return self

    def _note(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        self.asked_to_save = True

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
        if self._breaks_off:
            raise _BrokenOff(signum)

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}


def _heard(*signals: int) -> list[int]:
    """The signals to handle: all but a hang-up that is ignored."""
    return [s for s in signals if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]


def _terminals() -> list[int]:
    return [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]


def _hang_up(terminals: list[int]) -> None:
    for descriptor in terminals:
        discard(descriptor)
