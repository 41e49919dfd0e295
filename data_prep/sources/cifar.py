"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html), read by torchvision.

torchvision's MD5 sums decide what is right, wherever the files came from. torch is imported only once they are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np

from fast_train.common.files import cache_folder
from fast_train.common.startup import quick_imports
from fast_train.common.text import show
from fast_train.data_prep.errors import DownloadError, PreparedSetError
from fast_train.data_prep.sources.base import Chunk, Plan, Source
from fast_train.data_prep.sources.download import download
from fast_train.data_prep.staging import check_free_disk, disk_room

_CHUNK = 2000
_UNPACKED_BYTES = 190_000_000


class _Cifar(Source):
    accepts = frozenset({"source"})
    dataset_name: ClassVar[str]

    _datasets: dict[str, Any]

    def identity(self) -> dict[str, Any]:
        # Where it came from makes no difference: the sums say that it is the same.
        return {"kind": self.kind}

    def plan(self, scratch: Path) -> Plan:
        self.display.say(f"reading {self.dataset_name} through torchvision")
        dataset = _torchvision_dataset(self.dataset_name)
        place = self._find(dataset)
        if place.is_dir():
            os.symlink(place.resolve(), scratch / dataset.base_folder)
        else:
            _unpack(place, scratch, dataset.filename)
        try:
            self._datasets = _open_both(dataset, scratch)
        except RuntimeError as error:
            raise PreparedSetError(_what_is_wrong(dataset, scratch / dataset.base_folder, place)) from error
        first = self._datasets["train"]
        return Plan(
            classes=tuple(first.classes),
            image_shape=first.data.shape[1:],
            counts={split: len(data) for split, data in self._datasets.items()},
        )

    def read(self, split: str) -> Iterator[Chunk]:
        data = self._datasets[split]
        labels = np.array(data.targets, dtype=np.int64)
        for start in range(0, len(labels), _CHUNK):
            yield data.data[start : start + _CHUNK], labels[start : start + _CHUNK]

    def _find(self, dataset: Any) -> Path:
        """The folder of batches or the archive that the options name; downloaded where need be."""
        source = self.options.source
        if source is None:
            return self._fetch(dataset, dataset.url)
        if source.startswith(("http://", "https://")):
            is_archive = urlsplit(source).path.endswith((".tar.gz", ".tgz"))
            return self._fetch(dataset, source if is_archive else f"{source.rstrip('/')}/{dataset.filename}")
        place = Path(source)
        if place.is_file():
            return self._check_archive(dataset, place)
        for folder in (place, place / dataset.base_folder):
            if (folder / dataset.train_list[0][0]).is_file():
                return folder
        if (place / dataset.filename).is_file():
            return self._check_archive(dataset, place / dataset.filename)
        raise PreparedSetError(
            f"--source {show(source)} holds no {self.dataset_name}: it must be {dataset.filename}, a folder with "
            f"{dataset.base_folder}, or an http(s) address of the archive"
        )

    def _check_archive(self, dataset: Any, archive: Path) -> Path:
        from torchvision.datasets.utils import check_integrity

        if not check_integrity(archive, dataset.tgz_md5):
            raise PreparedSetError(
                f"{show(archive)} is not torchvision's {dataset.filename} (wrong MD5); download it again"
            )
        return archive

    def _fetch(self, dataset: Any, url: str) -> Path:
        from torchvision.datasets.utils import check_integrity

        def is_right(path: Path) -> bool:
            return bool(check_integrity(path, dataset.tgz_md5))

        archive = cache_folder() / str(dataset.filename)
        if is_right(archive):
            self.display.say(f"using {show(archive)}, downloaded before")
            return archive
        self.display.say(f"downloading {show(url)}")
        try:
            download(url, archive, is_right=is_right, display=self.display)
        except DownloadError as error:
            raise DownloadError(
                f"{error}; give --source (a local {dataset.filename}, a folder of its batches, or a mirror's address), "
                "or --dataset synthetic for made-up images"
            ) from error
        return archive


class Cifar10(_Cifar):
    """60,000 images of 32x32 RGB in 10 classes."""

    kind = "cifar10"
    dataset_name = "CIFAR10"


class Cifar100(_Cifar):
    """60,000 images of 32x32 RGB in 100 classes, the fine labels."""

    kind = "cifar100"
    dataset_name = "CIFAR100"


def _torchvision_dataset(name: str) -> Any:
    with quick_imports():
        import torchvision.datasets
    return getattr(torchvision.datasets, name)


def _open_both(dataset: Any, root: Path) -> dict[str, Any]:
    """Both splits, side by side: each checks the MD5 sums of all the files."""
    with ThreadPoolExecutor() as pool:
        opened = {split: pool.submit(dataset, str(root), train=split == "train") for split in ("train", "test")}
        return {split: future.result() for split, future in opened.items()}


def _unpack(archive: Path, folder: Path, name: str) -> None:
    """Unpack into ``folder``; by the dataset's own ``name``, which says how, whatever the file is called here."""
    from torchvision.datasets.utils import extract_archive

    check_free_disk(folder, _UNPACKED_BYTES, f"unpacking {show(archive.name)}")
    named = archive if archive.name == name else folder / name
    try:
        if named is not archive:
            named.symlink_to(archive.resolve())
        with disk_room(folder):
            extract_archive(str(named), str(folder))
    except (OSError, EOFError, RuntimeError) as error:
        raise PreparedSetError(f"{show(archive)} can't be unpacked: {error}") from error


def _what_is_wrong(dataset: Any, folder: Path, source: Path) -> str:
    from torchvision.datasets.utils import check_integrity

    meta = (dataset.meta["filename"], dataset.meta["md5"])
    for name, md5 in [*dataset.train_list, *dataset.test_list, meta]:
        if not check_integrity(folder / name, md5):
            reason = "has the wrong MD5" if (folder / name).is_file() else "is missing"
            return f"{name} in {show(source)} {reason}; get {dataset.filename} again"
    return f"torchvision can't read {show(source)}; get {dataset.filename} again"
