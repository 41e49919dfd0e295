"""Text that fits on one line of any terminal."""

from __future__ import annotations

import os
from pathlib import Path


def format_bytes(count: float) -> str:
    """A number of bytes for people, in powers of 1000."""
    units = ["B", "kB", "MB", "GB", "TB"]
    power = 0
    while count >= 1000 and power < len(units) - 1:
        count /= 1000
        power += 1
    return f"{count:.{min(power, 1)}f} {units[power]}"


def show(name: str | os.PathLike[str]) -> str:
    """A path or name that prints on one line anywhere: bytes that are not text and control characters escaped."""
    text = os.fsencode(os.fspath(name)).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """An exception's message in one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def show_path(path: Path) -> str:
    """A path as short as it can be typed here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
