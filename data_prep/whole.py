"""What was found out about files, so that it is not found out anew at every start.

A file is known by its device, inode, size and times; an ordinary write to it changes one of them. An empty file in the
cache folder stands for "this one passed that check"; where none can be written, files are checked anew each time. What
changes a file without changing its times (bit rot, a write through a shared mapping) goes unnoticed until somebody asks
for the check again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from fast_train.common.files import cache_folder
from fast_train.common.text import show
from fast_train.data_prep.errors import PreparedSetError

# The clock of a file system may tick only every so often: a file touched just now could change again within the tick.
SETTLED_NS = 2_000_000_000
# A pipe would keep `open` waiting. Windows knows neither.
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_HASH_CHUNK = 1 << 20


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; OSError for a link, a pipe and a device too."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | _FLAGS))  # noqa: SIM115  # the caller's
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def check_once(path: Path, claim: str, check: Callable[[BinaryIO], None], *, again: bool = False) -> None:
    """Have ``check`` look through a file, unless it has passed and nothing has touched the file since.

    claim: what the check says of the file. again: check in any case. PreparedSetError where the file changes meanwhile;
    OSError, and what ``check`` raises.
    """
    with open_regular(path) as file:
        state = os.fstat(file.fileno())
        mark = _mark(state, claim)
        if not again and mark is not None and os.path.exists(mark):
            return
        check(file)
        if not _known(state) == _known(os.fstat(file.fileno())) == _known(os.lstat(path)):
            raise PreparedSetError(f"{show(path)} changed while it was read; try again once nothing writes to it")
    if mark is not None and time.time_ns() - max(state.st_ctime_ns, state.st_mtime_ns) >= SETTLED_NS:
        try:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError:
            # A read-only home, a full disk: the next start checks again.
            return


def sha256_of(file: BinaryIO) -> str:
    """SHA-256, in hex, of an open file from where it stands to its end."""
    digest = hashlib.sha256()
    while chunk := file.read(_HASH_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _known(state: os.stat_result) -> tuple[int, ...]:
    return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def _mark(state: os.stat_result, claim: str) -> Path | None:
    """The file that stands for the claim about a file in this state; None where there is no cache folder."""
    try:
        return cache_folder() / "whole" / hashlib.sha256(repr((*_known(state), claim)).encode()).hexdigest()
    except OSError:
        return None
