"""A prepared set: a folder with a manifest and the data files it names."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar, get_type_hints

import numpy as np
from numpy.typing import NDArray

from fast_train.common.text import is_plain, one_line, show, show_path
from fast_train.data_prep.errors import ANEW, DownloadError, PreparedSetError
from fast_train.data_prep.formats.beton import BetonSplit, open_beton, open_ragged_beton
from fast_train.data_prep.formats.headers import check_images, check_jpegs
from fast_train.data_prep.formats.packed import PackedSplit, open_packed, read_header
from fast_train.data_prep.formats.ragged import LONGEST_SIDE, EncodedSplit, open_ragged
from fast_train.data_prep.formats.tfrecord import TFRecordSplit, open_ragged_tfrecords, open_tfrecords
from fast_train.data_prep.names import decode_names
from fast_train.data_prep.whole import check_once, open_regular, sha256_of

__all__ = ["DownloadError", "FileEntry", "Manifest", "PreparedSet", "PreparedSetError"]

MANIFEST_NAME = "manifest.json"
# Sets of images that keep their own shapes came with the second one; all others are still written as the first.
FORMAT_VERSION, RAGGED_VERSION = 1, 2
# Far beyond what people have; below these, nothing that follows from a manifest overflows or fills the memory.
_LARGEST_MANIFEST = 16 << 20
_LARGEST_SIDE, _LARGEST_IMAGE = 65535, 1 << 30
_DEEPEST = 8
_RAGGED, _RAGGED_CHANNELS = "ragged", 3

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One data file: its path below the set's folder, what it holds, its size in bytes and SHA-256 in hex."""

    path: str
    split: str
    format: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class RaggedShapes:
    """Of images that keep their own shapes, all of three channels: the largest height, width and number of pixels of
    one, and ``side``, the median of their shorter sides."""

    height: int
    width: int
    pixels: int
    side: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a prepared set holds.

    ``shape`` is (H, W, C), or says what there is to know of images that each have their own; ``counts`` gives, per
    split, the number of images of each class; ``mean`` and ``std`` are per channel, of the training split, in units of
    1 = byte 255; ``source`` has ``kind`` (cifar10, folder ..., as ``--dataset``) and what else identifies where the
    images came from. ``encodings`` says, per format, how its files store the images: ``mode`` is ``raw`` where they
    hold the bytes as they came, ``encoded`` where they hold JPEG and PNG files. ``files`` hold images; ``name_files``
    say from which files those of a split came, where they came from files (`data_prep.names`). ``pixels`` gives, per
    split, a SHA-256 of its pixels and labels, whatever the format (`data_prep.stats.PixelHash`); sets of earlier
    versions have none.
    """

    format_version: int
    classes: tuple[str, ...]
    shape: tuple[int, int, int] | RaggedShapes
    counts: dict[str, tuple[int, ...]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    files: tuple[FileEntry, ...]
    source: dict[str, Any]
    encodings: dict[str, dict[str, Any]] = field(default_factory=dict)
    name_files: tuple[FileEntry, ...] = ()
    pixels: dict[str, str] = field(default_factory=dict)

    @property
    def ragged(self) -> RaggedShapes | None:
        """What there is to know of the shapes where each image has its own; None where all have one."""
        return self.shape if isinstance(self.shape, RaggedShapes) else None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The images' one shape (H, W, C); PreparedSetError where each has its own."""
        if isinstance(self.shape, RaggedShapes):
            raise PreparedSetError("the images differ in shape, which can't be used here; prepare them with --size N")
        return self.shape

    @property
    def channels(self) -> int:
        return _RAGGED_CHANNELS if isinstance(self.shape, RaggedShapes) else self.shape[2]

    @property
    def formats(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(entry.format for entry in self.files))

    @property
    def all_files(self) -> tuple[FileEntry, ...]:
        return self.files + self.name_files

    def encoding(self, format: str) -> Mapping[str, Any]:
        """How the files of a format store the images; sets made before there was a choice are raw."""
        return self.encodings.get(format, {"mode": "raw"})

    def to_json(self) -> str:
        plain = asdict(self)
        shape = plain.pop("shape")
        shapes = {"image_shape": list(shape)} if self.ragged is None else {"image_shape": _RAGGED, "ragged": shape}
        return json.dumps({**plain, **shapes}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str) -> Manifest:
        """Read and check a manifest's text; PreparedSetError, naming ``where``, for anything out of order."""
        try:
            return _manifest_of(json.loads(text))
        except (ValueError, OverflowError, RecursionError) as error:
            if isinstance(error, _NewerVersionError):
                raise PreparedSetError(f"{where} {one_line(error)}") from error
            raise PreparedSetError(
                f"{where} is not a usable manifest: {one_line(error)}; move it away and prepare the set anew"
            ) from error


class _NewerVersionError(ValueError):
    pass


def _manifest_of(data: Any) -> Manifest:
    """ValueError says what is wrong, without the place."""
    _require(isinstance(data, dict), "it is not a JSON object")
    version = _field(data, "format_version", int)
    if version > RAGGED_VERSION:
        raise _NewerVersionError(
            f"has format version {version}, this program reads up to {RAGGED_VERSION}; upgrade fast-train"
        )
    ragged = data.get("image_shape") == _RAGGED
    _require(version == (RAGGED_VERSION if ragged else FORMAT_VERSION), f"format_version is {version}")
    classes = _items(data, "classes", str)
    _require(len(classes) == len(set(classes)) > 0 and all(classes), "classes are not distinct names")
    _require_plain(*classes)
    shape = _ragged_of(data) if ragged else _shape_of(data)
    mean, std = (tuple(map(float, _items(data, name, float))) for name in ("mean", "std"))
    channels = _RAGGED_CHANNELS if isinstance(shape, RaggedShapes) else shape[2]
    _require(len(mean) == len(std) == channels, "mean and std do not have one number per channel")
    _require(all(0 <= value <= 1 for value in mean + std), "mean and std are not numbers from 0 to 1")
    name_files = _field({"name_files": [], **data}, "name_files", list)
    by_split = _field(data, "counts", dict)
    counts = {split: _items(by_split, split, int) for split in by_split}
    _require("train" in counts, "counts have no split 'train'")
    _require(not counts.keys().isdisjoint(("validation", "test")), "counts have neither 'validation' nor 'test'")
    for split, numbers in counts.items():
        _require(len(numbers) == len(classes) and min(numbers) >= 0, f"counts of '{split}' do not fit the classes")
        _require(any(numbers), f"counts of '{split}' are all 0")
    source = _field(data, "source", dict)
    _require_plain(_field(source, "kind", str), *counts)
    _require(_is_shallow(source, _DEEPEST), "source is nested too deep")
    encodings = _field({"encodings": {}, **data}, "encodings", dict)
    for name in encodings:
        _field(_field(encodings, name, dict), "mode", str)
    _require(_is_shallow(encodings, _DEEPEST), "encodings are nested too deep")
    pixels = _field({"pixels": {}, **data}, "pixels", dict)
    hashed = pixels.keys() <= counts.keys() and all(_is_sha256(_field(pixels, split, str)) for split in pixels)
    _require(hashed, "pixels are not the SHA-256 of its splits")
    return Manifest(
        format_version=version,
        classes=classes,
        shape=shape,
        counts=counts,
        mean=mean,
        std=std,
        files=_files_of(data, counts),
        source=source,
        encodings=encodings,
        name_files=_files_of({"files": name_files}, counts) if name_files else (),
        pixels=pixels,
    )


def _shape_of(data: dict[str, Any]) -> tuple[int, int, int]:
    shape = _items(data, "image_shape", int)
    _require(len(shape) == 3 and min(shape) > 0, "image_shape is not (height, width, channels)")
    _require(max(shape) <= _LARGEST_SIDE and math.prod(shape) <= _LARGEST_IMAGE, "image_shape is out of range")
    return shape[0], shape[1], shape[2]


def _ragged_of(data: dict[str, Any]) -> RaggedShapes:
    ragged = _record(_field(data, "ragged", dict), RaggedShapes)
    longest = max(ragged.height, ragged.width)
    in_range = 1 <= ragged.side <= longest <= LONGEST_SIDE and longest <= ragged.pixels
    _require(in_range and ragged.pixels <= ragged.height * ragged.width, "ragged is out of range")
    return ragged


def _files_of(data: dict[str, Any], counts: dict[str, tuple[int, ...]]) -> tuple[FileEntry, ...]:
    entries = []
    for item in _items(data, "files", dict):
        entry = _record(item, FileEntry)
        path = PurePosixPath(entry.path)
        inside = path.parts and not path.is_absolute() and ".." not in path.parts and path.as_posix() == entry.path
        _require(inside and "\\" not in entry.path, f"the path {entry.path!r} leaves the set")
        _require_plain(entry.path, entry.format)
        _require(entry.split in counts, f"file '{entry.path}' belongs to the unknown split '{entry.split}'")
        _require(entry.bytes > 0, f"file '{entry.path}' has {entry.bytes} bytes")
        _require(_is_sha256(entry.sha256), f"file '{entry.path}' has no SHA-256")
        entries.append(entry)
    _require(entries, "it names no files")
    _require(len({entry.path for entry in entries}) == len(entries), "it names a file twice")
    held = Counter[tuple[str, str]]()
    for entry in entries:
        held[entry.split, entry.format] += entry.bytes
    for (split, format), size in held.items():
        _require(sum(counts[split]) <= size, f"'{format}' files of {size} bytes can't hold the images of '{split}'")
    _require({split for split, _ in held} == counts.keys(), "a split has no files")
    return tuple(entries)


def _is_sha256(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def _require(condition: object, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _require_plain(*names: str) -> None:
    """Names that a manifest from somewhere else brings are those that a folder of images could give."""
    for name in names:
        _require(is_plain(name), f"the name '{show(name)}' is not plain text")


def _is_shallow(value: Any, depth: int) -> bool:
    """Whether nothing in a value of JSON is nested deeper; Python copies and writes no more than 1,000 levels."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_is_shallow(item, depth - 1) for item in items)


def _field(data: dict[str, Any], name: str, kind: type) -> Any:
    _require(name in data, f"'{name}' is missing")
    value = data[name]
    # A JSON `true` is an int to Python, but a number it is not; and 1 stands for 1.0.
    fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    _require(fits, f"'{name}' is not of type {_KIND_NAMES[kind]}")
    return value


def _record(data: dict[str, Any], cls: type[T]) -> T:
    return cls(**{name: _field(data, name, kind) for name, kind in get_type_hints(cls).items()})


def _items(data: dict[str, Any], name: str, kind: type) -> tuple[Any, ...]:
    values = _field(data, name, list)
    return tuple(_field({name: value}, name, kind) for value in values)


_KIND_NAMES = {int: "whole number", float: "number", str: "text", dict: "object", list: "list"}


@dataclass(frozen=True)
class PreparedSet:
    """A prepared set on the disk. Build it with `open`."""

    root: Path
    manifest: Manifest

    @classmethod
    def open(cls, root: str | Path, *, verify: bool = False) -> PreparedSet:
        """Open a set: the manifest, and the size of every file, agree. With ``verify`` every byte is read and its
        SHA-256 compared, also of files that are known to be whole: it finds what left a file's times as they were.

        The files are regular ones in the set's folder, links to others are refused. Raises PreparedSetError, which
        names the broken file.
        """
        root = Path(root)
        prepared = cls(root, Manifest.from_json(_read_manifest(root), where=show(root / MANIFEST_NAME)))
        for entry in prepared.manifest.all_files:
            prepared._check_file(entry)
            if verify:
                prepared.check_hash(entry)
        return prepared

    @property
    def synthetic(self) -> bool:
        """Whether the images are made up."""
        return bool(self.manifest.source["kind"] == "synthetic")

    @property
    def source_name(self) -> str:
        """What the images are called: the dataset, or for the user's own images the set's folder."""
        kind: str = self.manifest.source["kind"]
        # Only the user's own images are known by a listing of their files.
        return self.root.resolve().name if "listing" in self.manifest.source else kind

    @property
    def evaluated_split(self) -> str:
        """The split that training is judged by: ``validation`` where there is one, else ``test``."""
        return "validation" if "validation" in self.manifest.counts else "test"

    @property
    def final_split(self) -> str:
        """The split of a training's last figure: ``test`` where there is one, else ``validation``."""
        return "test" if "test" in self.manifest.counts else "validation"

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.manifest.counts)

    def size(self, split: str) -> int:
        """The number of images in a split; PreparedSetError names the splits there are."""
        if split not in self.manifest.counts:
            there = ", ".join(self.splits)
            raise PreparedSetError(f"{show(self.root)} has no split '{split}'; it has {there}")
        return sum(self.manifest.counts[split])

    def entries(self, split: str, format: str) -> list[FileEntry]:
        """The manifest's entries of a split in a format; PreparedSetError names the formats there are where this one is
        not."""
        self.size(split)
        entries = [entry for entry in self.manifest.files if (entry.split, entry.format) == (split, format)]
        if not entries:
            there = dict.fromkeys(entry.format for entry in self.manifest.files if entry.split == split)
            raise PreparedSetError(
                f"{show(self.root)} has no '{format}' files of split '{split}', only {', '.join(there)}; "
                f"prepare it with --formats {','.join([*there, format])} --overwrite"
            )
        return entries

    def files(self, split: str, format: str) -> tuple[Path, ...]:
        """The files that hold a split in a format, the main one first.

        They are whole: their SHA-256 is compared, once, until something touches them. Raises PreparedSetError for a
        file that is broken, and as of `entries`.
        """
        entries = self.entries(split, format)
        for entry in entries:
            self.check_hash(entry, again=False)
        return tuple(self.root / entry.path for entry in entries)

    def packed(self, split: str) -> PackedSplit:
        """The split's packed file, opened; PreparedSetError if it is not whole."""
        expected, path = self._shape(split), self.files(split, "packed")[0]
        packed = open_packed(path)
        if packed.images.shape != expected:
            raise _of_another_shape(path, packed.images.shape, expected)
        self._check_labels(path, split, packed.labels)
        return packed

    def encoded(self, split: str) -> EncodedSplit:
        """The packed file of a split whose images keep their own shapes, opened; PreparedSetError if it is not
        whole."""
        path = self.files(split, "packed")[0]
        if self.manifest.ragged is None:
            raise PreparedSetError(f"{show(self.root)} holds images of one shape, not JPEG and PNG files")
        encoded = open_ragged(path)
        if len(encoded.labels) != self.size(split):
            raise PreparedSetError(f"{show(path)} does not hold the images that its manifest counts; {ANEW}")
        self._check_sides(path, encoded.heights, encoded.widths)
        begins, sizes = encoded.offsets[:-1] + encoded.begin, np.diff(encoded.offsets)
        with _readable(path):
            check_images(path, begins, sizes, encoded.heights, encoded.widths)
        self._check_labels(path, split, encoded.labels)
        return encoded

    def any_packed(self, split: str) -> PackedSplit | EncodedSplit:
        """The split's packed file, opened, whether the images have one shape (`packed`) or keep their own
        (`encoded`)."""
        return self.packed(split) if self.manifest.ragged is None else self.encoded(split)

    def beton(self, split: str) -> BetonSplit:
        """The split's FFCV file, safe to be opened by FFCV; PreparedSetError if it is not whole."""
        path, shapes = self.files(split, "ffcv")[0], self.manifest.ragged
        if shapes is None:
            beton = open_beton(path, self._shape(split))
            with _readable(path):
                check_jpegs(path, beton.jpeg_begins, beton.jpeg_sizes, self.manifest.image_shape)
        else:
            beton = open_ragged_beton(path, self.size(split), shapes.pixels)
            self._check_sides(path, beton.heights, beton.widths)
            sides = beton.heights[beton.is_jpeg], beton.widths[beton.is_jpeg]
            with _readable(path):
                check_images(path, beton.jpeg_begins, beton.jpeg_sizes, *sides, png=False)
        self._check_labels(path, split, beton.labels)
        return beton

    def tfrecords(self, split: str) -> TFRecordSplit:
        """The split's TFRecord shards, opened; PreparedSetError if one is not whole."""
        paths, shapes = self.files(split, "dali"), self.manifest.ragged
        raw = self.manifest.encoding("dali")["mode"] == "raw"
        if shapes is None:
            shards = open_tfrecords(paths, self._shape(split), raw=raw)
        else:
            shards = open_ragged_tfrecords(paths, self.size(split))
            self._check_sides(paths[0], shards.heights, shards.widths)
        for number, path in enumerate(() if raw and shapes is None else paths[: len(shards.shards)]):
            inside = shards.shard_of == number
            places = shards.offsets[inside], shards.sizes[inside]
            with _readable(path):
                if shapes is None:
                    check_jpegs(path, *places, self.manifest.image_shape)
                else:
                    check_images(path, *places, shards.heights[inside], shards.widths[inside])
        self._check_labels(paths[0], split, shards.labels)
        return shards

    def names(self, split: str) -> list[str] | None:
        """The files that a split's images came from, in the order of the images, as paths below the folder of images;
        None where they came from none, and in sets of earlier versions. PreparedSetError if they are not whole."""
        count = self.size(split)
        entry = next((entry for entry in self.manifest.name_files if entry.split == split), None)
        if entry is None:
            return None
        self.check_hash(entry, again=False)
        path = self.root / entry.path
        with _readable(path):
            names = decode_names(path.read_bytes())
        if len(names) != count:
            raise PreparedSetError(f"{show(path)} names {len(names)} files for {count} images; {ANEW}")
        return names

    def _shape(self, split: str) -> tuple[int, int, int, int]:
        return (self.size(split), *self.manifest.image_shape)

    def _check_sides(self, path: Path, heights: NDArray[np.int32], widths: NDArray[np.int32]) -> None:
        """PreparedSetError where an image has no pixels or is larger than the manifest says. heights, widths: int32
        [N]."""
        shapes = self.manifest.ragged
        assert shapes is not None
        pixels = heights.astype(np.int64) * widths
        larger = heights.max() > shapes.height or widths.max() > shapes.width or pixels.max() > shapes.pixels
        if larger or min(heights.min(), widths.min()) < 1:
            raise PreparedSetError(f"{show(path)} holds images of no pixels, or larger than its manifest says; {ANEW}")

    def _check_labels(self, path: Path, split: str, labels: NDArray[np.int64]) -> None:
        classes = len(self.manifest.classes)
        within = labels.min() >= 0 and labels.max() < classes
        if not within or tuple(np.bincount(labels, minlength=classes)) != self.manifest.counts[split]:
            raise PreparedSetError(f"the labels in {show(path)} are not those its manifest counts; {ANEW}")

    def check_hash(self, entry: FileEntry, *, again: bool = True) -> None:
        """PreparedSetError unless the file's SHA-256 is the manifest's. again: also of one known to be whole."""
        path = self.root / entry.path

        def check(file: BinaryIO) -> None:
            if sha256_of(file) != entry.sha256:
                raise PreparedSetError(f"{show(path)} is broken: its SHA-256 is wrong; {ANEW}")

        with _readable(path):
            check_once(path, entry.sha256, check, again=again)

    def _check_file(self, entry: FileEntry) -> None:
        path = self.root / entry.path
        with _readable(path):
            if os.path.realpath(path) != os.path.join(os.path.realpath(self.root), entry.path):
                raise PreparedSetError(f"{show(path)} is a link; copy the file that it leads to into its place")
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
        if size != entry.bytes:
            raise PreparedSetError(f"{show(path)} is broken: {size} bytes instead of {entry.bytes}; {ANEW}")
        if entry.format == "packed" and self.manifest.ragged is None:
            expected, (images, _) = self._shape(entry.split), read_header(path)
            if images.shape != expected:
                raise _of_another_shape(path, images.shape, expected)


def _of_another_shape(path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> PreparedSetError:
    return PreparedSetError(f"{show(path)} holds images of shape {shape}, its manifest says {expected}; {ANEW}")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """In the block, PreparedSetError for a file that can't be read."""
    try:
        yield
    except OSError as error:
        raise PreparedSetError(f"{show(path)} can't be read: {error.strerror or one_line(error)}; {ANEW}") from error


def _read_manifest(root: Path) -> bytes:
    path = root / MANIFEST_NAME
    try:
        with open_regular(path) as file:
            text = file.read(_LARGEST_MANIFEST + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        command = "prep-data" if isinstance(error, NotADirectoryError) else _how_to_make(root)
        raise PreparedSetError(f"{show(root)} is not a prepared set; make one with {command}") from error
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise PreparedSetError(
            f"{show(path)} can't be read: {reason}; mend that, or prepare the set elsewhere"
        ) from error
    if len(text) > _LARGEST_MANIFEST:
        raise PreparedSetError(f"{show(path)} is not a usable manifest: it is too long; prepare the set anew")
    return text


def _how_to_make(root: Path) -> str:
    """What to type for a prepared set: of the images in ``root`` if something is in it, at ``root`` if nothing is."""
    if not root.is_dir() or not any(root.iterdir()):
        return show(f"prep-data --out {shlex.quote(str(root))}")
    images = root.resolve()
    place = Path("data", images.name)
    if place.resolve().is_relative_to(images):
        place = images.with_name(f"{images.name}-set")
    flags = ("--dataset", f"folder:{root}", "--out", show_path(place))
    return show(f"prep-data {shlex.join(flags)}")


def data_note(prepared: PreparedSet) -> str:
    """What to write after a figure that does not come from real images; empty if it does."""
    return " (synthetic data)" if prepared.synthetic else ""
