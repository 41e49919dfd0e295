"""How every command begins and ends: flags as a typed record, errors in one line, signals, a reader that goes away.

exit status: what the work returns; 2 for bad input, a full disk or lack of memory; 128 and a signal's number.
"""

from __future__ import annotations

import argparse
import io
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn, TextIO, TypeVar

from fast_train.common.signals import end_at_once_by_ctrl_c, exit_status, nowhere, termination_as_interrupt
from fast_train.common.text import one_line

Flags = TypeVar("Flags")
_OUT_OF_MEMORY = "the computer is out of memory"


class Parser(argparse.ArgumentParser):
    """One whose error is a line, like every other error of a command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; {self.prog} --help lists the flags\n")

    def parse(self, cls: type[Flags], arguments: list[str] | None) -> Flags:
        """The flags as a record: each has the name of a field of ``cls``."""
        return cls(**vars(self.parse_args(arguments)))


def run_command(
    program: str,
    work: Callable[[], int],
    *,
    debug: bool,
    ends_process: bool = False,
    interrupted: str = "",
    statuses: Mapping[type[Exception], int] | None = None,
    explain: Callable[[Exception], Exception | None] = lambda error: None,
) -> int:
    """Do ``work`` and return the exit status; an error or a signal that ends it is said in one line on stderr.

    Inside of it SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, and what is printed to a reader that has
    gone away (``| head``), or to a full disk, goes nowhere: the work goes on.

    debug: show the trace of an error. ends_process: nothing comes after the command, so that Ctrl-C while Python ends
    is without a word. interrupted: what to say besides of a signal. statuses: of errors that end with another status
    than 2. explain: what to tell the user in place of an error that came from a library; an error that is neither
    explained nor in ``statuses`` nor a ValueError, OSError or MemoryError keeps its trace.
    """
    statuses = {**(statuses or {}), ValueError: 2, OSError: 2, MemoryError: 2}
    try:
        with steady_output(), termination_as_interrupt():
            return work()
    except KeyboardInterrupt as stop:
        word = "interrupted" if exit_status(stop) == 128 + signal.SIGINT else "terminated"
        print(f"{program}: {word}" + (f"; {interrupted}" if interrupted else ""), file=sys.stderr)
        return exit_status(stop)
    except Exception as error:
        told = explain(error) or error
        status = next((status for kind, status in statuses.items() if isinstance(told, kind)), None)
        if status is None:
            raise
        complain(program, told, debug=debug)
        return status
    finally:
        if ends_process:
            end_at_once_by_ctrl_c()


def complain(program: str, error: Exception, *, debug: bool) -> None:
    """Print an error as a command does, in one line on stderr; with ``debug`` its trace before that."""
    if debug:
        traceback.print_exception(error)
    text = _OUT_OF_MEMORY if isinstance(error, MemoryError) and not str(error) else one_line(error)
    print(f"{program}: error: {text}", file=sys.stderr)


@contextmanager
def steady_output() -> Iterator[None]:
    """In the block standard output takes whatever is printed: a letter that its encoding lacks becomes a question mark,
    and where nobody reads on, or the disk that it goes to is full, the rest is dropped.

    Standard error never raises an error for a letter, and is left as it is.
    """
    before = sys.stdout
    # Whoever embeds a command may have put any object there.
    if isinstance(before, io.TextIOWrapper):
        before.reconfigure(errors="replace")
    sys.stdout = _Steady(before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout = before


class _Steady:
    """Stands for a text stream; what it can't write goes nowhere, from then on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._safely(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._safely(self._stream.flush)

    def _safely(self, call: Callable[[], object]) -> None:
        try:
            call()
        except (OSError, ValueError):
            # ValueError: the stream is closed.
            self._drop()

    def _drop(self) -> None:
        try:
            nowhere(self._stream.fileno())
        except (OSError, ValueError):
            self._stream = io.StringIO()
