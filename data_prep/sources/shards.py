"""Images in parquet files of Hugging Face's form: a column of encoded images, one of labels, a file or more a split."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fast_train.common.files import user_path
from fast_train.common.text import is_plain, one_line, show
from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.sources.base import Plan
from fast_train.data_prep.sources.folder import ImageFolder
from fast_train.data_prep.sources.listing import SPLIT_OF, ImageFile, Listing, files_below, normal, same_looks
from fast_train.data_prep.sources.parquet import check_pyarrow
from fast_train.data_prep.staging import check_free_disk

_IMAGES, _LABELS = ("image", "img"), ("label", "labels", "fine_label")
_SERIES = re.compile("(.*)-[0-9]+-of-([0-9]+)(?:-[0-9a-f]+)?")
_BATCH, _BUFFER = 64, 1 << 20


class ParquetImages(ImageFolder):
    """``parquet:PATH``: a file, or all ``*.parquet`` below a folder. The images are unpacked beside the set that is
    made, and from there on are files of a folder. They keep the order of the rows, and are called by their parquet file
    and row, counted from 0."""

    kind, takes = "parquet", "PATH"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.place = Path(os.path.abspath(user_path(self.argument)))
        self._shards: list[_Shard] = []

    @property
    def default_name(self) -> str:
        return self.place.name.removesuffix(".parquet")

    def _list(self) -> Listing:
        check_pyarrow()
        self._shards = _find(self.place)
        return _list_shards(self.place, self._shards)

    def plan(self, scratch: Path) -> Plan:
        # What is planned anew is unpacked already.
        if self._pool is None:
            self.root = scratch
            self._unpack(self.listing)
        return super().plan(scratch)

    def _unpack(self, listing: Listing) -> None:
        used = {os.path.dirname(file.name) for file in listing.files}
        shards = [shard for shard in self._shards if shard.name in used]
        check_free_disk(self.root, sum(shard.path.stat().st_size for shard in shards), "unpacking the images")
        with self.display.progress("unpacking", len(listing.files)) as advance:
            for shard in shards:
                (self.root / shard.name).mkdir(parents=True, exist_ok=True)
                for row, content in enumerate(_images(shard)):
                    # Without bytes it is no image, as the scan of the files says.
                    (self.root / shard.file_name(row)).write_bytes(content or b"")
                    advance(1)
        if _digest(self._shards) != listing.digest:
            raise PreparedSetError(f"the files of {show(self.place)} changed while they were read; try again")


class _Shard(NamedTuple):
    """name: the path below what the user named, without suffix. image: the column of encoded images, or PARENT.bytes.
    classes: what the numbers in the column of labels mean; empty where the file doesn't say."""

    path: Path
    name: str
    split: str
    image: str
    label: str
    classes: tuple[str, ...]

    def file_name(self, row: int) -> str:
        return f"{self.name}/{row:07}"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise PreparedSetError(f"{show(path)} can't be read: {one_line(error)}; get it again") from error


def _images(shard: _Shard) -> Iterator[bytes | None]:
    import pyarrow.parquet

    # Otherwise it reads all images of a row group ahead, and a file may be a single one.
    sparing = {"pre_buffer": False, "buffer_size": _BUFFER}
    with _reading(shard.path), pyarrow.parquet.ParquetFile(shard.path, **sparing) as file:
        for batch in file.iter_batches(_BATCH, columns=[shard.image]):
            column = batch.column(0)
            yield from (column.field("bytes") if "." in shard.image else column).to_pylist()


def _find(place: Path) -> list[_Shard]:
    """The files in natural order of their paths, of which nothing but the schema has been read."""
    base, names = place.parent, [place.name]
    if not place.is_file():
        base, below = place, files_below(place) if place.is_dir() else []
        names = [name for name in below if name.lower().endswith(".parquet")]
    if not names:
        raise PreparedSetError(f"{show(place)} holds no parquet file; give --dataset parquet:PATH one, or their folder")
    splits = {name: _split_of(name) for name in names}
    odd = [name for name, split in splits.items() if split is None]
    if odd and len(odd) < len(names):
        raise PreparedSetError(
            f"{show(base / odd[0])} is of no split, others are: call it train-*, validation-* or test-*"
        )
    folders: dict[str, str] = {}
    for name, split in splits.items():
        folder = os.path.dirname(name)
        if split and (first := folders.setdefault(split, folder)) != folder:
            both = f"{show(base / first)} and {show(base / folder)}"
            raise PreparedSetError(f"{both} each have a {split} split; prepare one data set at a time")
    return [
        _Shard(base / name, os.path.splitext(name)[0], split or "train", *_columns(base / name))
        for name, split in splits.items()
    ]


def _gaps(shards: list[_Shard]) -> list[str]:
    """A note for each series, such as train-00000-of-00004 and so on, of which not all files are there."""
    found = Counter(match.groups() for shard in shards if (match := _SERIES.fullmatch(shard.name)))
    return [
        f"{show(name)}-*-of-{total}: {count:,} of {int(total):,} files are there"
        for (name, total), count in found.items()
        if count != int(total)
    ]


def _split_of(name: str) -> str | None:
    """By the first word of the file's name, as in train-00000-of-00002, or else the folder's, as in train/0000."""
    *folders, last = name.lower().split("/")
    return SPLIT_OF.get(re.split("[-_.]", last)[0]) or SPLIT_OF.get(folders[-1] if folders else "")


def _columns(path: Path) -> tuple[str, str, tuple[str, ...]]:
    """The columns of images and labels, and the names of the classes."""
    import pyarrow.parquet

    with _reading(path):
        schema = pyarrow.parquet.read_schema(path)
        names = schema.names
    images = (_bytes_column(schema.field(name)) for name in _IMAGES if name in names)
    image, label = next(filter(None, images), None), next((name for name in _LABELS if name in names), None)
    if image is None or label is None:
        raise PreparedSetError(
            f"{show(path)} is not of Hugging Face's form: it needs columns {' or '.join(_IMAGES)}, with bytes, and "
            f"{' or '.join(_LABELS)}; it has {', '.join(map(show, names))}; rename them, or move the file away"
        )
    return image, label, _class_names(schema.metadata or {}, label)


def _bytes_column(field: Any) -> str | None:
    """The column of bytes that a column of images is or holds; None where it doesn't."""
    from pyarrow import types

    name, kind = field.name, field.type
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        name, kind = f"{name}.bytes", kind.field("bytes").type
    return name if types.is_binary(kind) or types.is_large_binary(kind) else None


def _class_names(metadata: dict[bytes, bytes], label: str) -> tuple[str, ...]:
    """As the library datasets writes them, its ClassLabel; empty where it didn't."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"]
        return tuple(map(normal, names))
    except (KeyError, TypeError, ValueError):
        return ()


def _list_shards(place: Path, shards: list[_Shard]) -> Listing:
    """All rows in order. The digest covers every parquet file's path, size and time of change."""
    import pyarrow.parquet

    if len({shard.classes for shard in shards}) > 1:
        raise PreparedSetError(f"the files of {show(place)} name different classes; prepare one data set at a time")
    listing, trained = Listing(place, digest=_digest(shards)), set[Any]()
    for shard in shards:
        with _reading(shard.path):
            labels = pyarrow.parquet.read_table(shard.path, columns=[shard.label])[shard.label].to_pylist()
        if all(label in (None, -1) for label in labels):
            listing.notes.append(f"{show(shard.path)} has no labels and is left out")
            continue
        for row, label in enumerate(labels):
            name = _class(label, shard.classes)
            if name is None:
                takes = f"a number below {len(shard.classes)}" if shard.classes else "a whole number or text"
                raise PreparedSetError(
                    f"{show(shard.path)}, row {row}: {shard.label} {show(str(label)[:40])} is no class; each row needs "
                    f"one, {takes}"
                )
            listing.files.append(ImageFile(shard.file_name(row), name, shard.split))
        if shard.split == "train":
            trained.update(labels)
    if len({isinstance(label, str) for label in trained}) > 1:
        raise PreparedSetError(f"the labels of {show(place)} are text and numbers; prepare one data set at a time")
    # In the order of the numbers that the file has for them, or else of the labels themselves.
    listing.classes = tuple(dict.fromkeys(str(_class(label, shards[0].classes)) for label in sorted(trained)))
    known = set(listing.classes)
    listing.notes += _gaps(shards) + same_looks(listing.classes)
    if unused := [name for name in shards[0].classes if name not in known]:
        listing.notes.append(f"{len(unused):,} of {len(shards[0].classes):,} classes have no training images")
    if len(listing.classes) < 2:
        raise PreparedSetError(f"{show(place)} holds {len(listing.classes)} classes for training; it takes two or more")
    unknown = {file.class_name for file in listing.files} - known
    if unknown:
        raise PreparedSetError(f"{show(place)} has images of class '{min(unknown)}', but none for training; add some")
    return listing


def _class(label: Any, classes: tuple[str, ...]) -> str | None:
    """The name of a label's class; None for what is no label or has no name that prints."""
    if isinstance(label, int) and classes:
        label = classes[label] if 0 <= label < len(classes) else None
    name = normal(str(label)) if isinstance(label, (int, str)) and label != -1 else ""
    return name if name and is_plain(name) else None


def _digest(shards: list[_Shard]) -> str:
    facts = [(shard.name, shard.path.stat()) for shard in shards]
    return hashlib.sha256(repr([(name, s.st_size, s.st_mtime_ns) for name, s in facts]).encode()).hexdigest()
