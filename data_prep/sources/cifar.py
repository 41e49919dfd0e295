"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html).

Checksums decide what is right, wherever the files came from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np

from fast_train.common.files import cache_folder, user_path
from fast_train.common.text import one_line, show
from fast_train.data_prep.errors import DownloadError, PreparedSetError
from fast_train.data_prep.sources.base import Chunk, Plan, Source
from fast_train.data_prep.sources.batches import read_archive, read_folder
from fast_train.data_prep.sources.cifar_files import CIFAR10, CIFAR100, CifarFiles
from fast_train.data_prep.sources.download import download
from fast_train.data_prep.sources.known import KnownFile
from fast_train.data_prep.sources.parquet import check_pyarrow, read_parquet

_CHUNK = 2000
_HUB = "hub"

#: Reads both splits, batch by batch.
_Reader = partial[dict[str, list[Chunk]]]


class _Cifar(Source):
    accepts = frozenset({"source", "val_fraction", "split_seed"})
    #: What the archive holds, and where it is found.
    files: ClassVar[CifarFiles]

    _splits: dict[str, list[Chunk]]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if self.options.val_fraction is None and self.options.split_seed is not None:
            raise PreparedSetError("--split-seed means nothing without --val-fraction; leave it out")

    def identity(self) -> dict[str, Any]:
        # Where it came from makes no difference: the sums say that it is the same.
        fraction = self.options.val_fraction
        drawn = {} if fraction is None else {"split_seed": self.options.split_seed or 0}
        return {"kind": self.kind, "val_fraction": fraction, **drawn}

    def plan(self, scratch: Path) -> Plan:
        self._splits = self._read(scratch)
        fraction = self.options.val_fraction
        if fraction is not None:
            self._splits = _with_validation(self._splits, fraction, self.options.split_seed or 0)
        return Plan(
            classes=self.files.classes,
            shape=self._splits["train"][0].images.shape[1:],
            counts={split: sum(len(batch.labels) for batch in batches) for split, batches in self._splits.items()},
        )

    def read(self, split: str) -> Iterator[Chunk]:
        for images, labels, _ in self._splits[split]:
            for start in range(0, len(labels), _CHUNK):
                yield Chunk(images[start : start + _CHUNK], labels[start : start + _CHUNK])

    def _read(self, scratch: Path) -> dict[str, list[Chunk]]:
        source = self.options.source
        if source is None:
            found = self._look_around()
            return found or read_archive(self._fetch(self.files.addresses, self.files.archive, scratch), self.files)
        if source == _HUB and not Path(source).exists():
            return self._read_hub(scratch)
        if source.startswith(("http://", "https://")):
            archive = self.files.archive
            address = source if _is_archive(source) else f"{source.rstrip('/')}/{archive.name}"
            return read_archive(self._fetch((address,), archive, scratch), self.files)
        place = user_path(source)
        reader = self._reader(place)
        if reader is None:
            fault = f"holds no {self.files.title}" if place.exists() else "is not there"
            raise PreparedSetError(
                f"--source {show(source)} {fault}: it must be {self.files.archive.name}, a folder "
                f"with {self.files.folder} or the hub's parquet files, '{_HUB}', or an http(s) address of the archive"
            )
        return reader()

    def _reader(self, place: Path) -> _Reader | None:
        """What reads ``place``: the archive under any name, or a folder with it, its batches or the hub's files."""
        if place.is_file():
            return partial(read_archive, place, self.files)
        for folder in (place / self.files.folder, place):
            if (folder / self.files.batches["train"][0].name).is_file():
                return partial(read_folder, folder, self.files)
        if (place / self.files.archive.name).is_file():
            return partial(read_archive, place / self.files.archive.name, self.files)
        for folder in (place, place / Path(self.files.hub.folder).name):
            if (folder / self.files.hub.files["train"].name).is_file():
                return partial(read_parquet, folder, self.files.hub)
        return None

    def _look_around(self) -> dict[str, list[Chunk]] | None:
        """The images where this or another program may have left them; None where none has."""
        for place in _usual_places(self.kind):
            try:
                reader = self._reader(place)
                if reader is None or reader.func is read_parquet:
                    continue
                splits = reader()
            except (OSError, PreparedSetError) as error:
                self.display.say(f"passed over: {one_line(error)}")
                continue
            self.display.say(f"{self.files.title} was found in {show(place)}")
            return splits
        return None

    def _read_hub(self, scratch: Path) -> dict[str, list[Chunk]]:
        check_pyarrow()
        hub = self.files.hub
        for known in hub.files.values():
            path = self._fetch((f"{hub.folder}/{known.name}",), known, scratch, self.kind)
        return read_parquet(path.parent, hub)

    def _fetch(self, addresses: tuple[str, ...], known: KnownFile, scratch: Path, folder: str = "") -> Path:
        """The file from the cache folder, where it is downloaded to; where there is none, to the scratch folder."""
        try:
            place = cache_folder()
        except OSError as error:
            self.display.say(f"the download is not kept for another time: {error}")
            place = scratch
        path = place / folder / known.name
        if known.fault(path) is None:
            self.display.say(f"using {show(path)}, downloaded before")
            return path
        try:
            download(addresses, path, known, self.display)
        except DownloadError as error:
            raise DownloadError(
                f"{error}; give --source (a local {self.files.archive.name}, a folder of its batches, a mirror's "
                f"address, or {_HUB}), or --dataset synthetic for made-up images"
            ) from error
        return path


def _with_validation(splits: dict[str, list[Chunk]], fraction: float, seed: int) -> dict[str, list[Chunk]]:
    """The splits, with that part of each class's training images moved to a validation split: those that come first in
    the order of SHA-256(seed, index)."""
    train = splits["train"]
    labels = np.concatenate([batch.labels for batch in train])
    keys = np.array([sha256(f"{seed}\0{index}".encode()).digest()[:8] for index in range(len(labels))], dtype="S8")
    held_out = np.zeros(len(labels), dtype=bool)
    for label in range(labels.max() + 1):
        members = np.flatnonzero(labels == label)
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held_out[members[np.argsort(keys[members], kind="stable")[:count]]] = True
    parts: dict[bool, list[Chunk]] = {False: [], True: []}
    first = 0
    for batch in train:
        chosen = held_out[first : first + len(batch.labels)]
        for part, chunks in parts.items():
            chunks.append(Chunk(batch.images[chosen == part], batch.labels[chosen == part]))
        first += len(batch.labels)
    return {"train": parts[False], "validation": parts[True], "test": splits["test"]}


class Cifar10(_Cifar):
    """60,000 images of 32x32 RGB in 10 classes."""

    kind = "cifar10"
    files = CIFAR10


class Cifar100(_Cifar):
    """60,000 images of 32x32 RGB in 100 classes, the fine labels."""

    kind = "cifar100"
    files = CIFAR100


def _is_archive(address: str) -> bool:
    try:
        return urlsplit(address).path.endswith((".tar.gz", ".tgz"))
    except ValueError as error:
        raise PreparedSetError(f"--source {show(address)} is not an address: {one_line(error)}") from error


def _usual_places(kind: str) -> Iterator[Path]:
    """Files and folders that may hold the archive or its batches: the user's own choice, then where programs put it."""
    if named := os.environ.get("FAST_TRAIN_DATA"):
        yield from _with_folders(user_path(named), kind)
    with suppress(OSError):
        yield cache_folder()
    yield from _with_folders(Path("data"), kind)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    for text in (os.environ.get("TORCH_HOME") or os.path.join(caches, "torch"), caches):
        with suppress(ValueError):
            yield from _with_folders(user_path(text), kind)


def _with_folders(place: Path, kind: str) -> Iterator[Path]:
    yield from (place, place / kind, place / "datasets")
