"""What a signal is to a measurement: one way out for Ctrl-C and termination, and the exit status of each."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """In the block SIGTERM raises KeyboardInterrupt, as Ctrl-C does; `exit_status` tells them apart."""

    def handle(signum: int, frame: FrameType | None) -> None:
        del frame
        raise KeyboardInterrupt(signum)

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def exit_status(stop: KeyboardInterrupt) -> int:
    """128 and the signal's number, as a shell reports it."""
    return 128 + int(stop.args[0] if stop.args else signal.SIGINT)
