"""CIFAR's batches, from a folder or out of the archive: pickles of Python 2, of which no name is looked up.

A pickle names functions for its reader to call. Each file is held to its checksums before it is read, and the reader
knows three names alone, of which it makes an array of bytes.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fast_train.common.cores import usable_cores
from fast_train.common.text import one_line, show
from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.sources.base import Chunk
from fast_train.data_prep.sources.cifar_files import CifarFiles
from fast_train.data_prep.sources.known import KnownFile

_SIDE = 32


def read_folder(folder: Path, files: CifarFiles) -> dict[str, list[Chunk]]:
    """The batches of each split, in order. PreparedSetError names what is missing or another file."""
    return _read(((known, _content(folder / known.name, known)) for known in _batches(files)), folder, files)


def read_archive(archive: Path, files: CifarFiles) -> dict[str, list[Chunk]]:
    """The batches of each split, in order, straight from the archive: nothing is unpacked to the disk.

    PreparedSetError: it is not the archive.
    """
    fault = files.archive.fault(archive)
    if fault:
        raise PreparedSetError(f"{show(archive)} is not {files.archive.name}: it {fault}; download it again")
    try:
        return _read(_members(archive, files), archive, files)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise PreparedSetError(f"{show(archive)} can't be unpacked: {one_line(error)}; download it again") from error


def _batches(files: CifarFiles) -> list[KnownFile]:
    return [known for batches in files.batches.values() for known in batches]


def _content(path: Path, known: KnownFile) -> bytes | None:
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return file.read(known.size + 1)


def _members(archive: Path, files: CifarFiles) -> Iterator[tuple[KnownFile, bytes | None]]:
    """The batches as they come out of the archive; of the rest of it nothing is read."""
    wanted = {f"{files.folder}/{known.name}": known for known in _batches(files)}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            known = wanted.pop(member.name, None) if member.isreg() else None
            content = tar.extractfile(member) if known else None
            if known and content:
                yield known, content.read(known.size + 1)
    yield from ((known, None) for known in wanted.values())


def _read(contents: Iterator[tuple[KnownFile, bytes | None]], place: Path, files: CifarFiles) -> dict[str, list[Chunk]]:
    def parse(known: KnownFile, content: bytes | None) -> Chunk:
        fault = "is missing" if content is None else known.fault_of(content)
        if fault or content is None:
            raise PreparedSetError(f"{known.name} in {show(place)} {fault}; get {files.archive.name} again")
        try:
            return _parse(content, files.label)
        except Exception as error:
            # A pickle may raise anything.
            raise PreparedSetError(f"{known.name} in {show(place)} is no batch of images: {one_line(error)}") from error

    # Hashing and unpacking release the GIL.
    with ThreadPoolExecutor(usable_cores()) as pool:
        parsed = {known: pool.submit(parse, known, content) for known, content in contents}
    return {split: [parsed[known].result() for known in batches] for split, batches in files.batches.items()}


def _parse(content: bytes, label: bytes) -> Chunk:
    """Images as a view [n, H, W, 3] of the pixels, which lie plane by plane, and their labels."""
    batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    pixels = np.frombuffer(batch[b"data"].content, dtype=np.uint8)
    images = pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    labels = np.array(batch[label], dtype=np.int64)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{len(images):,} images and {len(labels):,} labels")
    return Chunk(images, labels)


class _Stub:
    """In place of what a pickle names: takes any arguments and does nothing; of an array's state it keeps the bytes."""

    content = b""

    def __init__(self, *arguments: Any) -> None:
        del arguments

    def __setstate__(self, state: Any) -> None:
        self.content = state[-1]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }:
            return _Stub
        raise pickle.UnpicklingError(f"it names {show(module)}.{show(name)}")
