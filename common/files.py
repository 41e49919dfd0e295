"""Files that are whole or absent, and folders that one process holds."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fast_train.common.text import show

try:
    import fcntl
except ImportError:
    # Not on Windows; `locked` and `sync_folder` do without.
    fcntl = None  # type: ignore[assignment]

# What a file system says that has no such call, or not for folders; a failed write or a full disk says something else.
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM}
# Open folders that this process has locked.
_held: set[int] = set()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """In the block, an OSError that names no file, as those of open files, names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write ``path`` through the file that the block gets: it lies beside, is flushed to the disk, and is renamed into
    its place as the last act. If the block fails, ``path`` is as it was and nothing is left beside it; an OSError names
    ``path``."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # What a process of the same number left there, which may be a link to elsewhere.
        beside.unlink(missing_ok=True)
        with open(beside, "xb") as file:
            yield file
            file.flush()
            sync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(beside)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        # Where it can't be removed it was not made, or what failed before says why.
        with suppress(OSError):
            beside.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk: what was made or renamed there is found after a power failure."""
    if fcntl is None:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            sync(descriptor)
    finally:
        os.close(descriptor)


def sync(descriptor: int) -> None:
    """Flush an open file or folder to the disk, where the file system can. OSError: the disk is full or broken."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def lock(descriptor: int, *, wait: bool = False) -> bool:
    """Lock an open file or folder until all its descriptors are closed; False where the disk knows no locks.

    The system releases the lock with the process, however that ends. Raises BlockingIOError where another process has
    it, unless ``wait``.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """`lock` a folder in the block, which gets whether it is locked."""
    if fcntl is None:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    _held.add(descriptor)
    try:
        yield lock(descriptor, wait=wait)
    finally:
        # A forked child has closed it already.
        if descriptor in _held:
            _held.remove(descriptor)
            os.close(descriptor)


def _release_in_child() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


# A lock lasts as long as any process has its file open: a forked child (a loader's worker) may outlive a process that
# was killed, and must not keep the folder from the one that goes on with it.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)


def is_running(pid: int) -> bool:
    """Whether there is a process with this number, on this machine and in this container."""
    if os.name == "nt":
        # There, the call below would end it.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        # It is another user's; or there can be no such number, and nobody knows what it means.
        return True
    return True


def cache_folder() -> Path:
    """The folder of what can be made again: ``$XDG_CACHE_HOME/fast-train``, by default ``~/.cache/fast-train``.

    It is made where it is missing, and nobody else can write into it: code that is kept there is run. OSError: there is
    no home, it can't be made, or it is not this user's alone.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The specification (https://specifications.freedesktop.org/basedir-spec) has relative paths ignored.
        folder = (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "fast-train"
    except RuntimeError as error:
        raise OSError("there is no home folder to keep files in; set HOME, or XDG_CACHE_HOME to a folder") from error
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.stat()
    if hasattr(os, "getuid") and (state.st_uid != os.getuid() or state.st_mode & stat.S_IWOTH):
        raise OSError(f"{show(folder)} is not used: others can write into it; remove it, or set XDG_CACHE_HOME")
    if state.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        # Many systems let a user's own group write by default, also into what is made in there.
        folder.chmod(0o700)
    return folder


def remove_empty(folders: list[Path]) -> None:
    """Remove folders, the innermost first, up to the first that something was written into."""
    with suppress(OSError):
        for path in folders:
            path.rmdir()


def user_path(text: str) -> Path:
    """The path that a user means: ``~`` or ``~name`` at its front is a home, unless something of that very name lies
    here, or nobody of that name has a home. ValueError: ``~`` is meant, and there is no home."""
    name, _, rest = text.partition(os.sep)
    home = os.path.expanduser(name)
    if os.path.lexists(name):
        return Path(text)
    if home != name and os.path.isdir(home):
        return Path(home, rest.lstrip(os.sep))
    if name == "~":
        raise ValueError(f"there is no home folder, so {show(text)} is nowhere; set HOME, or give the path without ~")
    return Path(text)
