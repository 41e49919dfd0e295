"""The error of a setting that cannot work, the one of a name that is not known, and how a command prints an error."""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Iterable

from data_prep.errors import one_line


class ConfigError(ValueError):
    """A setting that cannot work: what is wrong, where, what to do."""


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raise ConfigError with the nearest names, whatever their case, hyphens and underscores, if it is not known."""
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
        traceback.print_exception(error)
    print(f"{program}: error: {one_line(error)}", file=sys.stderr)


def _squeeze(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
