"""Which files were found whole, so that their SHA-256 is not computed at every start.

A file is known by its device, inode, size and times; whatever writes to it changes one of them. An empty file in the
cache folder stands for "this one had that hash"; where none can be written, files are compared anew each time.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from fast_train.common.files import cache_folder

# The clock of a file system may tick only every so often: a file touched just now could change again within the tick.
SETTLED_NS = 2_000_000_000


def is_known_whole(path: Path, sha256: str) -> bool:
    """Whether the file had this hash when it was last looked at, and nothing touched it since."""
    try:
        return _mark(path.stat(), sha256).exists()
    except OSError:
        return False


def remember_whole(path: Path, sha256: str) -> None:
    """Note that the file was just found to have this hash."""
    try:
        state = path.stat()
        if time.time_ns() - max(state.st_ctime_ns, state.st_mtime_ns) < SETTLED_NS:
            return
        mark = _mark(state, sha256)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError:
        # No home, or a read-only one: the next start compares again.
        return


def _mark(state: os.stat_result, sha256: str) -> Path:
    known = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns, sha256)
    return cache_folder() / "whole" / hashlib.sha256(repr(known).encode()).hexdigest()
