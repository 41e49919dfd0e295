"""A set is made beside its place and renamed into it as the last act."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fast_train.common.files import is_running, locked, remove_empty, sync_folder
from fast_train.common.text import format_bytes, show
from fast_train.data_prep.errors import PreparedSetError

_SPARE_BYTES = 16 << 20
_DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# A run locks its folder as soon as it has made it; this is far longer than that takes.
_SURELY_LOCKED_SECONDS = 60.0


@dataclass
class Stage:
    """The folder ``.<name>.partial-<pid>`` beside a set's place: the set to be, and what only its preparation needs."""

    place: Path
    folder: Path

    def __post_init__(self) -> None:
        self.new_set, self.scratch, self._old_set = (self.folder / name for name in ("set", "scratch", "old"))

    def publish(self, *, replace: bool) -> None:
        """Flush the new set to the disk and rename it into its place.

        With ``replace`` an old set is moved aside first; without, PreparedSetError if something is there.
        """
        sync_folder(self.new_set)
        try:
            if replace and self.place.exists():
                os.rename(self.place, self._old_set)
            os.rename(self.new_set, self.place)
        except OSError as error:
            self.put_back()
            raise PreparedSetError(
                f"{show(self.place)} can't be put into place: {error.strerror}; name another --out"
            ) from error
        sync_folder(self.place.parent)

    def put_back(self) -> None:
        """Undo a replacement that was stopped after the old set was moved aside."""
        if self._old_set.exists() and not self.place.exists():
            os.rename(self._old_set, self.place)


@contextmanager
def staging(place: Path) -> Iterator[Stage]:
    """A stage for the set at ``place``, removed at the end in any case, with the folders made for it that are empty
    then. PreparedSetError: no folder can be made there, or the disk is full."""
    if os.path.ismount(place):
        raise PreparedSetError(f"{show(place)} is a disk's own folder, which can't be replaced; name a folder in it")
    if place.exists() and place.samefile(os.curdir):
        raise PreparedSetError(f"{show(place)} is the folder you are in, which can't be replaced; name a folder in it")
    stage = Stage(place, place.parent / f".{place.name}.partial-{os.getpid()}")
    missing = [folder for folder in place.parents if not folder.exists()]
    try:
        _make_folder(stage)
        # Another process holds the lock only for a moment, to look whether this run is alive.
        with locked(stage.folder, wait=True):
            try:
                stage.new_set.mkdir()
                stage.scratch.mkdir()
                with disk_room(place.parent):
                    yield stage
            finally:
                stage.put_back()
                shutil.rmtree(stage.folder, ignore_errors=True)
    finally:
        remove_empty(missing)


def _make_folder(stage: Stage) -> None:
    place = stage.place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        stage.folder.mkdir()
    except OSError as error:
        taken = isinstance(error, (FileExistsError, NotADirectoryError))
        reason = "something else is in the way" if taken else error.strerror
        raise PreparedSetError(
            f"no set can be made in {show(place.parent)}: {reason}; name another place as --out"
        ) from error


@contextmanager
def disk_room(folder: Path) -> Iterator[None]:
    """PreparedSetError, which names the folder, where the disk or the quota turns out full in the block."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_IS_FULL:
            raise
        raise PreparedSetError(
            f"{show(folder)} can't take more: {error.strerror}; make room or name another place"
        ) from error


def check_free_disk(folder: Path, needed: int, what: str) -> None:
    """PreparedSetError unless the disk of ``folder`` (or of its nearest parent there is) has ``needed`` bytes free."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    needed += _SPARE_BYTES
    if free < needed:
        raise PreparedSetError(
            f"{what} needs {format_bytes(needed)} of disk, {show(folder)} has {format_bytes(free)} free; "
            "make room or name another place"
        )


def remove_leftovers(place: Path) -> None:
    """Remove what killed runs left beside ``place``; an old set that one of them had moved aside comes back."""
    try:
        beside = list(place.parent.iterdir())
    except OSError:
        # There is no such folder, or it may not be listed.
        return
    for folder in beside:
        match = re.fullmatch(rf"\.{re.escape(place.name)}\.partial-(\d+)", folder.name)
        if match and folder.is_dir() and _is_dead(folder, int(match[1])):
            Stage(place, folder).put_back()
            shutil.rmtree(folder, ignore_errors=True)


def _is_dead(folder: Path, pid: int) -> bool:
    """Whether no run works in the folder.

    A run locks its folder, and the system releases the lock with the run, however that ends. The number in the name
    says less: it may be another process's by now, and machines and containers that share a disk each have a process 7.
    It counts until a run has surely locked its folder. On a disk that knows no locks a leftover stays.
    """
    # A folder with this process's number is another one's: this one has made none yet.
    running = pid != os.getpid() and is_running(pid)
    try:
        young = time.time() - folder.stat().st_mtime < _SURELY_LOCKED_SECONDS
        with locked(folder) as holds:
            return holds and not (young and running)
    except OSError:
        return False
