"""The errors of this room, and text that fits on one line of any terminal."""

from __future__ import annotations

import os

#: What to do about a set that is not what it was.
ANEW = "prepare the set anew with --overwrite"


class PreparedSetError(ValueError):
    """A set that can't be made or opened. The message is one line: what is wrong, where, what to do."""


class DownloadError(PreparedSetError):
    """The data could not be fetched: no network, no such file, or not the right content."""


class BadFilesError(PreparedSetError):
    """Some files are not images that can be read.

    ``files`` has (path below the image folder, reason) for each of them.
    """

    def __init__(self, message: str, files: list[tuple[str, str]]) -> None:
        super().__init__(message)
        self.files = files


def show(name: str | os.PathLike[str]) -> str:
    """A path or name that prints on one line anywhere: bytes that are not text and control characters escaped."""
    text = os.fsencode(os.fspath(name)).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """An exception's message in one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
