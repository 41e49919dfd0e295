"""The errors of data preparation."""

from __future__ import annotations

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
