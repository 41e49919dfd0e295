"""The error of a setting that cannot work, the one of a name that is not known, and how a command prints an error.

What only an error needs is imported where it is used: a command imports this before it can tell anyone of Ctrl-C.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

from data_prep.errors import one_line

_OUT_OF_MEMORY = "the GPU is out of memory; give a smaller --batch-size, or --loader torch"
_OUT_OF_HOST_MEMORY = "the computer is out of memory; give a smaller --batch-size"
_LOADING_KILLED = (
    "a loading process was killed, likely for lack of memory; give fewer --workers, or --loader resident, ffcv or dali"
)
# Words of errors that torch raises as plain RuntimeErrors.
_MEMORY_ERRORS = {
    _OUT_OF_MEMORY: r"CUDA error: out of memory|CU(DNN|BLAS)_STATUS_ALLOC_FAILED",
    _OUT_OF_HOST_MEMORY: r"DefaultCPUAllocator: (can't allocate|not enough) memory|std::bad_alloc",
    # By the kernel, or where shared memory is full.
    _LOADING_KILLED: r"DataLoader worker \(pid\D*\d+\) is killed by signal: (Killed|Bus error)",
}


class ConfigError(ValueError):
    """A setting that cannot work: what is wrong, where, what to do."""


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raise ConfigError with the nearest names, whatever their case, hyphens and underscores, if it is not known."""
    import difflib

    names = list(known)
    if name in names:
        return
    squeezed = {_squeeze(k): k for k in names}
    wanted = _squeeze(name)
    near = [wanted] if wanted in squeezed else difflib.get_close_matches(wanted, squeezed, n=3)
    if near:
        hint = f"did you mean {' or '.join(repr(squeezed[n]) for n in near)}?"
    else:
        hint = f"choose from {', '.join(names)}"
    raise ConfigError(f"unknown {what} '{name}'; {hint}")


def complain(program: str, error: Exception, *, debug: bool) -> None:
    """Print an error as a command does, in one line on stderr; with ``debug`` its trace before that."""
    if debug:
        import traceback

        traceback.print_exception(error)
    print(f"{program}: error: {one_line(error)}", file=sys.stderr)


def memory_error(error: Exception) -> ConfigError | None:
    """What to tell the user of an error that lack of memory has caused; None for one of another cause."""
    import torch

    hint: str | None = None
    cause: BaseException | None = error
    while hint is None and cause is not None:
        if isinstance(cause, torch.OutOfMemoryError):
            hint = _OUT_OF_MEMORY
        elif isinstance(cause, MemoryError):
            hint = _OUT_OF_HOST_MEMORY
        elif isinstance(cause, RuntimeError):
            hint = next((hint for hint, words in _MEMORY_ERRORS.items() if re.search(words, str(cause))), None)
        # A worker's end is told by one error, its reason by the one that this came from.
        cause = cause.__cause__ or cause.__context__
    if hint is None:
        return None
    told = ConfigError(hint)
    told.__cause__ = error
    return told


def _squeeze(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
