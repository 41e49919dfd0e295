"""How a command of this room ends: one way out for Ctrl-C and termination, and the exit status of every end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from fast_train.common.signals import nowhere
from fast_train.common.text import one_line


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


def run_command(program: str, work: Callable[[], int], *, debug: bool, interrupted: str) -> int:
    """The exit status: what ``work`` returns, or that of the error or signal that ended it, which is said on stderr.
    interrupted: what to say besides of a signal."""
    try:
        status = work()
        # Here, not when Python ends, it must show that nobody reads the last lines.
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader has seen enough, as `head` does. What is still to be written goes nowhere, without a message.
        nowhere(sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:
        complain(program, error, debug=debug)
        return 2
    except KeyboardInterrupt as stop:
        print(f"{program}: interrupted; {interrupted}", file=sys.stderr)
        return exit_status(stop)


def complain(program: str, error: Exception, *, debug: bool) -> None:
    """Print an error as a command does, in one line on stderr; with ``debug`` its trace before that."""
    if debug:
        import traceback

        traceback.print_exception(error)
    print(f"{program}: error: {one_line(error)}", file=sys.stderr)
