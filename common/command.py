"""How every command begins and ends: flags as a typed record, errors in one line, signals, an output that fails.

Exit status: what the work returns; 2 for bad input, a full disk or lack of memory; 128 and a signal's number.
"""

from __future__ import annotations

import argparse
import atexit
import errno
import io
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

from fast_train.common.files import user_path
from fast_train.common.processes import leave_for_torchrun, world
from fast_train.common.signals import (
    discard,
    end_at_once_by_ctrl_c,
    exit_status,
    raise_by_ctrl_c,
    termination_as_interrupt,
)
from fast_train.common.text import one_line, printable
from fast_train.common.version import VERSION

Flags = TypeVar("Flags")
_OUT_OF_MEMORY = "the computer is out of memory"
# The reader of a pipe has ended, or the terminal has been closed.
_NO_READER = {errno.EPIPE, errno.EIO}
_STDOUT = 1
# What to do about an error of the system's, which only says what is wrong and where.
_WHAT_TO_DO = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "allow it, or name another place"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room, or name another place"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR), "something else is there; name another place"),
    errno.EIO: "the disk fails; name another place",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "allow more open files (ulimit -n)",
}


class Parser(argparse.ArgumentParser):
    """A parser whose error is one line, like every other error of a command, that leaves the lines of its description
    and epilog as they are, and that knows --version."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **arguments)
        version = f"%(prog)s, fast-train {VERSION}"
        self.add_argument("--version", action="version", version=version, help="show the version and exit")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)}; {self.prog} --help lists the flags\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        with steady_output():
            super().exit(status, message)

    def print_help(self, file: Any = None) -> None:
        with steady_output():
            super().print_help(file)

    def parse(self, cls: type[Flags], arguments: list[str] | None) -> Flags:
        """The flags as a record: each has the name of a field of ``cls``. SystemExit after --help or an error."""
        return cls(**vars(self.parse_args(arguments)))


def flag_path(text: str) -> Path:
    """`user_path` as the type of a flag: argparse would replace the words of a ValueError by its own."""
    try:
        return user_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run_command(
    program: str,
    work: Callable[[], int],
    *,
    debug: bool,
    ends_process: bool = False,
    on_ranks: bool = False,
    interrupted: str = "",
    statuses: Mapping[type[Exception], int] | None = None,
    explain: Callable[[Exception], Exception | None] = lambda error: None,
) -> int:
    """Do ``work`` and return the exit status; an error or a signal that ends it is reported in one line on stderr.

    During the work SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, and output that can't be written is
    dropped (`steady_output`): the work goes on.

    debug: show the trace of an error. ends_process: the process ends with the command, by `end_process`, and this
    returns only where a profiler or a debugger waits for Python's own end. on_ranks: whether it may be one of several
    processes that torchrun started. interrupted: what to add to the line about a signal. statuses: exit statuses of
    errors other than 2. explain: what to tell the user in place of an error that came from a library; an error that is
    neither explained nor in ``statuses`` nor a ValueError, OSError or MemoryError keeps its trace.
    """
    statuses = {**(statuses or {}), ValueError: 2, OSError: 2, MemoryError: 2}
    with steady_output():
        try:
            if ends_process:
                raise_by_ctrl_c()
            with termination_as_interrupt(ends_process=ends_process), _quiet_threads(debug=debug):
                status = work() if on_ranks or _is_alone(program) else 2
        except KeyboardInterrupt as stop:
            word = "interrupted" if exit_status(stop) == 128 + signal.SIGINT else "terminated"
            print(f"{program}: {word}" + (f"; {interrupted}" if interrupted else ""), file=sys.stderr)
            status = exit_status(stop)
        except Exception as error:
            told = explain(error) or error
            kind = next((kind for kind in statuses if isinstance(told, kind)), None)
            if kind is None:
                raise
            leave_for_torchrun(complain(program, told, debug=debug))
            status = statuses[kind]
        finally:
            if ends_process:
                end_at_once_by_ctrl_c()
    if ends_process and not _is_watched():
        end_process(status)
    return status


def end_process(status: int) -> NoReturn:
    """End here and now. Python's own end takes a quarter of a second once torch is imported, and
    threads and half-built objects of libraries crash meanwhile, above all after a signal. Processes that they left
    behind end too."""
    sys.unraisablehook = lambda _: None
    # torch has a handler that raises where a worker ends.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Who never imported it has started none.
    if "multiprocessing" in sys.modules:
        for child in sys.modules["multiprocessing"].active_children():
            child.kill()
    atexit._run_exitfuncs()
    os._exit(status)


def _is_watched() -> bool:
    """Whether a profiler or a debugger is at work."""
    # What they use from Python 3.12 on.
    monitoring = getattr(sys, "monitoring", None)
    tools = [] if monitoring is None else filter(None, map(monitoring.get_tool, range(6)))
    return any((sys.getprofile(), sys.gettrace(), *tools))


def _is_alone(program: str) -> bool:
    """Whether no other process does the same work. ValueError in the first one of several, which speaks for all."""
    place = world()
    if place is None or place.size == 1:
        return True
    if place.rank == 0:
        raise ValueError(
            f"{place.size} processes were started, and {program} is the work of one; start it without torchrun"
        )
    return False


def complain(program: str, error: Exception, *, debug: bool) -> str:
    """Print an error as a command does, in one line on stderr, and return it; with ``debug`` its trace before that."""
    if debug:
        print(printable("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    text = _OUT_OF_MEMORY if isinstance(error, MemoryError) and not str(error) else one_line(error)
    if isinstance(error, OSError) and error.errno in _WHAT_TO_DO:
        text = f"{text}; {_WHAT_TO_DO[error.errno]}"
    line = f"{program}: error: {text}"
    print(line, file=sys.stderr)
    return line


@contextmanager
def _quiet_threads(*, debug: bool) -> Iterator[None]:
    """In the block, an OSError that ends a thread shows no trace: whoever waits for the thread gets it and reports it.

    TensorBoard's writer is such a thread, on a full disk.
    """
    before = threading.excepthook

    def hook(ended: threading.ExceptHookArgs) -> None:
        if debug or not issubclass(ended.exc_type, OSError):
            before(ended)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


@contextmanager
def steady_output() -> Iterator[None]:
    """In the block, printing never fails.

    Where the reader is gone (``| head``) or the disk behind a stream is full, the rest is dropped; a full disk behind
    standard output is reported on standard error. A character that standard output's encoding lacks becomes a question
    mark, on standard error an escape. A closed stream takes everything and shows nothing. A stream that is no
    file (a notebook's, a test's) is left as it is.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = steady = _steady(sys.stdout, "replace"), _steady(sys.stderr, "backslashreplace")
    try:
        yield
    finally:
        for stream in steady:
            stream.flush()
        sys.stdout, sys.stderr = before


def _steady(stream: TextIO | None, errors: str) -> TextIO:
    """A text stream into the same file; Python has None for a stream that was closed before it started."""
    if stream is None:
        return open(os.devnull, "w")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    if stream.closed:
        return open(os.devnull, "w")
    try:
        descriptor = stream.fileno()
    except OSError:
        return stream
    with suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        _SteadyFile(descriptor, "w", closefd=False),
        encoding=stream.encoding,
        errors=errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def lost(stream: TextIO) -> bool | None:
    """Whether all that is written to a `steady_output` up to here is lost, as on a full disk; None where its reader is
    gone, and nobody misses it."""
    stream.flush()
    error = getattr(getattr(stream, "buffer", None), "error", 0)
    return None if error in _NO_READER else error != 0


class _SteadyFile(io.FileIO):
    """A file that takes all that is written; from the first error on, whose number it keeps, it is dropped."""

    error = 0

    def write(self, data: Any) -> int:
        left = memoryview(data)
        try:
            while left:
                written = super().write(left)
                # A terminal or pipe that another process made non-blocking takes nothing (None) while it is full.
                if written is None:
                    select.select([], [self], [])
                else:
                    left = left[written:]
        except OSError as error:
            descriptor, self.error = self.fileno(), error.errno or 0
            discard(descriptor)
            if descriptor == _STDOUT and error.errno not in _NO_READER:
                print(f"standard output is dropped: {error.strerror}", file=sys.stderr)
        return len(data)
