"""Checkpoints: written beside their place, flushed and renamed; read without executing anything from the file.

A checkpoint is what `torch.save` writes: a zip archive. The comment that such an archive may end with, which torch and
other readers pass over, holds the SHA-256 of all before it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from fast_train.common.files import naming, whole_file
from fast_train.common.phases import phase
from fast_train.common.text import show

FORMAT_VERSION = 2
# Version 1 has no checksum.
_READ_VERSIONS = (1, FORMAT_VERSION)
_RUN_STATE: dict[str, type | tuple[type, ...]] = {
    "config": dict,
    "classes": list,
    "step": dict,
    "loader": dict,
    "schedule": dict,
    "rng": dict,
    "done_steps": int,
    "train_seconds": (int, float),
    "history": list,
}
# An archive ends with the length of its comment, in two bytes, and the comment.
_COMMENT = b"fast-train sha256 "
_COMMENT_BYTES = len(_COMMENT) + 2 * hashlib.sha256().digest_size
_LENGTH, _NO_LENGTH = _COMMENT_BYTES.to_bytes(2, "little"), b"\0\0"
_CHUNK = 1 << 20


class CheckpointError(ValueError):
    """A checkpoint that can't be read or doesn't fit the run."""


class DamagedCheckpoint(CheckpointError):
    """A file that holds no checkpoint, or not a whole one: another one may take its place."""


class _Hashing:
    """A file to write to that hashes what goes into it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.flush, self.digest = file, file.flush, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)


@phase("saving")
def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values to ``path``, whose folder is made if need be; at any moment it holds the old file
    or the whole new one."""
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as file:
        hashing = _Hashing(file)
        try:
            torch.save({"format_version": FORMAT_VERSION, **state}, cast(BinaryIO, hashing))
        except RuntimeError as error:
            # What torch makes of a disk that is full.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.seek(-len(_NO_LENGTH), os.SEEK_END)
        file.write(_LENGTH + _COMMENT + hashing.digest.hexdigest().encode())


def copy_checkpoint(source: Path, path: Path) -> None:
    """Copy a checkpoint, as whole or absent as `save_checkpoint` writes it; the folder is made if need be."""
    path.parent.mkdir(exist_ok=True)
    with open(source, "rb") as old, whole_file(path) as new:
        shutil.copyfileobj(old, new, _CHUNK)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The dictionary that `save_checkpoint` wrote, on the CPU. ``format_version`` 1: there was no checksum to compare.

    Raises CheckpointError, in one line, for what is not whole, not of this program or not of a version that it reads.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {show(path)}; give the path of a .pt file that fast-train wrote")
    with naming(path), open(path, "rb") as file:
        summed = _compare_sum(file, path)
        file.seek(0)
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # torch.load raises many kinds for a damaged file
            raise _damaged(path) from error
    if not isinstance(state, dict) or "format_version" not in state:
        raise DamagedCheckpoint(f"{show(path)} is no checkpoint of fast-train; use one that it wrote")
    version = state["format_version"]
    if version not in _READ_VERSIONS:
        raise CheckpointError(
            f"{show(path)} has format version {show(str(version))}, this program reads up to {FORMAT_VERSION}; use the "
            "version of fast-train that wrote it"
        )
    if version > 1 and not summed:
        raise _damaged(path)
    return state


def _damaged(path: Path) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"{show(path)} is damaged, or no checkpoint of fast-train; use another one")


def says_sum(path: Path) -> bool:
    """Whether a file ends as `save_checkpoint` ends one."""
    with naming(path), open(path, "rb") as file:
        return bool(_comment(file))


def _comment(file: BinaryIO) -> bytes:
    """What the file says of its SHA-256; empty where it says nothing."""
    left = os.fstat(file.fileno()).st_size - len(_LENGTH) - _COMMENT_BYTES
    if left < 0:
        return b""
    file.seek(left)
    length, comment = file.read(len(_LENGTH)), file.read()
    return comment if length == _LENGTH and comment.startswith(_COMMENT) else b""


def _compare_sum(file: BinaryIO, path: Path) -> bool:
    """Whether the file says its SHA-256; DamagedCheckpoint if it is another one."""
    comment = _comment(file)
    if not comment:
        return False
    left = file.tell() - len(_LENGTH) - _COMMENT_BYTES
    file.seek(0)
    digest = hashlib.sha256()
    while left > 0 and (chunk := file.read(min(left, _CHUNK))):
        digest.update(chunk)
        left -= len(chunk)
    # It was summed before it had a comment.
    digest.update(_NO_LENGTH)
    if comment != _COMMENT + digest.hexdigest().encode():
        raise _damaged(path)
    return True


def load_run_state(path: Path) -> dict[str, Any]:
    """`load_checkpoint` of one that a training wrote; CheckpointError where it lacks something of that."""
    state = load_checkpoint(path)
    lacking = sorted(_RUN_STATE.keys() - state.keys())
    if lacking:
        raise DamagedCheckpoint(f"{show(path)} lacks {', '.join(lacking)}; use a checkpoint that fast-train wrote")
    odd = sorted(name for name, kind in _RUN_STATE.items() if not isinstance(state[name], kind))
    if odd:
        raise DamagedCheckpoint(
            f"{show(path)} holds no usable {', '.join(odd)}; use a checkpoint that fast-train wrote"
        )
    return state
