"""Files that are whole or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write ``path`` through the file that the block gets: it lies beside, is flushed to the disk, and is renamed into
    its place as the last act. If the block fails, ``path`` is as it was and nothing is left beside it; an OSError names
    ``path``."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(beside)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def cache_folder() -> Path:
    """What can be made anew lies here: ``$XDG_CACHE_HOME/fast-train``, by default ``~/.cache/fast-train``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification (https://specifications.freedesktop.org/basedir-spec) has relative paths ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "fast-train"
