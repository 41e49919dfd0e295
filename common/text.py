"""Text that fits on one line of any terminal."""

from __future__ import annotations

import os
import re
from pathlib import Path

# Controls, line and paragraph separators, bidirectional controls, and what is not text.
_NOT_PLAIN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def format_bytes(count: float) -> str:
    """A number of bytes for people, in powers of 1000."""
    units = ["B", "kB", "MB", "GB", "TB"]
    power = 0
    while count >= 1000 and power < len(units) - 1:
        count /= 1000
        power += 1
    return f"{count:.{min(power, 1)}f} {units[power]}"


def is_plain(name: str) -> bool:
    """Whether a name prints as it is, on one line of any terminal. Class names are held to it; spaces and signs of any
    script are fine."""
    return _NOT_PLAIN.search(name) is None


def show(name: str | os.PathLike[str]) -> str:
    """A path or name that prints on one line anywhere: what is not plain text (`is_plain`) is escaped."""
    return _NOT_PLAIN.sub(_escape, os.fspath(name))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    # Python's stand-in for a byte of a file's name that is not text.
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else match[0].encode("unicode_escape").decode()


def one_line(error: BaseException) -> str:
    """An exception's message in one line, or its type where it has none; the system's words as ``PATH: words``."""
    if isinstance(error, OSError) and error.strerror:
        place = error.filename2 or error.filename
        return f"{show(str(place))}: {error.strerror}" if place else str(error.strerror)
    return show(" ".join(str(error).split())) or type(error).__name__


def show_path(path: Path) -> str:
    """A path as short as it can be typed here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
