"""TFRecord shards with index files, as DALI's and TensorFlow's readers take them.

A shard is a sequence of records (https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details):
length uint64, masked CRC-32C of the length, data, masked CRC-32C of the data. The data is a serialized
``tf.train.Example`` with the features ``label`` and ``index`` (int64), ``shape`` (int64, three: H, W, C) and ``image``
(bytes: the pixels [H, W, C], or a JPEG or PNG file). The index file beside it, which DALI's reader wants, has one line
"offset size" per record, as NVIDIA's ``tfrecord2idx`` writes it.

Every number is a varint of five bytes, whether or not it needs them, and ``image`` comes last: protocol buffers allow
both. So the part before the image has a fixed length, and `open_tfrecords` finds every image without parsing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from fast_train.common.text import one_line, show
from fast_train.data_prep.errors import ANEW, PreparedSetError
from fast_train.data_prep.formats.base import Encoded, FormatOptions, RaggedWriter, SplitFile, Writer, flush, jpeg_of

#: Shards of about this size: large enough to read in one go, small enough to share out.
SHARD_BYTES = 128 << 20
_LARGEST_SIDE = 65535
_HEAD, _CRC = 12, 4
_VARINT = 5
# Types of field on the wire, as (field number << 3 | type): 2 is "length and bytes".
_FIELD_1, _FIELD_2, _FIELD_3 = b"\x0a", b"\x12", b"\x1a"


def _varint(value: int) -> bytes:
    """A number below 2**35 in five bytes of seven bits, all but the last with the continuation bit set."""
    return bytes(value >> 7 * i & 127 | (128 if i < _VARINT - 1 else 0) for i in range(_VARINT))


def _sized(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


def _feature(name: str, kind: bytes, values: bytes) -> bytes:
    """An entry of the map Example.features.feature: the name, and a Feature that holds a list of ``kind``."""
    return _sized(_FIELD_1, _sized(_FIELD_1, name.encode()) + _sized(_FIELD_2, _sized(kind, _sized(_FIELD_1, values))))


def _example(label: int, index: int, shape: Sequence[int], image: bytes) -> bytes:
    """The serialized Example; the part before the image has the same length for every image."""
    features = (
        _feature("label", _FIELD_3, _varint(label))
        + _feature("index", _FIELD_3, _varint(index))
        + _feature("shape", _FIELD_3, b"".join(map(_varint, shape)))
        + _feature("image", _FIELD_1, image)
    )
    return _sized(_FIELD_1, features)


def _masked_crc(data: bytes) -> bytes:
    crc = int(google_crc32c.value(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")


_EMPTY = _example(0, 0, (0, 0, 0), b"")
#: Bytes of an Example before the image, and of a record besides the image.
_BEFORE_IMAGE = len(_EMPTY)
_AROUND_IMAGE = _HEAD + _BEFORE_IMAGE + _CRC
_NAMES = ("label", "index", "shape", "image")
#: Bytes of a line of the index, at most.
_INDEX_LINE = 24
#: After its name, a feature's values follow three tags and lengths: Feature, list, values.
_BEFORE_VALUES = 3 * (1 + _VARINT)


class _Shards(SplitFile):
    """``SPLIT-*.tfrecord`` and an ``.idx`` for each in a folder, to which records are appended."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split = folder, split
        self._shard: BinaryIO | None = None
        self._lengths: list[list[int]] = []
        self._room = 0

    def put(self, example: bytes) -> None:
        size = len(example).to_bytes(8, "little")
        if self._room < len(example):
            self._next_shard()
        assert self._shard is not None
        self._shard.write(b"".join((size, _masked_crc(size), example, _masked_crc(example))))
        self._lengths[-1].append(_HEAD + len(example) + _CRC)
        self._room -= self._lengths[-1][-1]

    def _next_shard(self) -> None:
        self._end_shard()
        self._shard = open(self._folder / self._part(len(self._lengths)), "xb")  # noqa: SIM115  # until the next
        self._lengths.append([])
        self._room = SHARD_BYTES

    def _end_shard(self) -> None:
        if self._shard is not None:
            flush(self._shard)
            self._shard.close()

    def _part(self, number: int) -> str:
        """A shard's name until it is known how many there are."""
        return f"{self._split}-{number:05}.tfrecord.part"

    def finish(self) -> tuple[str, ...]:
        self._end_shard()
        shards, indices = [], []
        for number, lengths in enumerate(self._lengths):
            name = f"{self._split}-{number:05}-of-{len(self._lengths):05}"
            shards.append(f"{name}.tfrecord")
            indices.append(f"{name}.idx")
            os.rename(self._folder / self._part(number), self._folder / shards[-1])
            offsets = np.cumsum([0, *lengths[:-1]]).tolist()
            with open(self._folder / indices[-1], "x", encoding="ascii") as file:
                file.writelines(f"{offset} {size}\n" for offset, size in zip(offsets, lengths, strict=True))
                flush(file)
        return (*shards, *indices)

    def close(self) -> None:
        if self._shard is not None:
            self._shard.close()


class TFRecordWriter(Writer):
    """Writes ``SPLIT-*.tfrecord`` and an ``.idx`` for each."""

    def __init__(
        self, folder: Path, split: str, count: int, image_shape: Sequence[int], options: FormatOptions
    ) -> None:
        super().__init__(folder, split, count, image_shape, options)
        if options.dali_mode == "jpg" and image_shape[2] not in (1, 3):
            raise PreparedSetError(f"JPEG can't hold images of {image_shape[2]} channels; leave out --dali-mode jpg")
        self._jpeg = partial(jpeg_of, quality=options.quality) if options.dali_mode == "jpg" else None
        self._file: _Shards = _Shards(folder, split)

    @staticmethod
    def encoding(options: FormatOptions) -> dict[str, Any]:
        return options.encoding(options.dali_mode)

    @staticmethod
    def estimate_bytes(count: int, image_shape: Sequence[int], options: FormatOptions) -> int:
        return count * (options.stored_bytes(options.dali_mode, image_shape) + _AROUND_IMAGE + _INDEX_LINE)

    def _append(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        blobs = self._threads.map(self._jpeg, images) if self._jpeg else map(np.ndarray.tobytes, images)
        for index, (blob, label) in enumerate(zip(blobs, labels.tolist(), strict=True), start=self._written):
            self._file.put(_example(label, index, self._shape, blob))


class RaggedTFRecordWriter(RaggedWriter):
    """Writes ``SPLIT-*.tfrecord`` and an ``.idx`` for each: ``image`` is the JPEG or PNG file."""

    def __init__(self, folder: Path, split: str, count: int, pixels: int) -> None:
        super().__init__(folder, split, count, pixels)
        self._file: _Shards = _Shards(folder, split)

    @staticmethod
    def estimate_bytes(count: int, content: int, pixels: int) -> int:
        del pixels
        return content + count * (_AROUND_IMAGE + _INDEX_LINE)

    def _append(self, images: Sequence[Encoded], labels: NDArray[np.int64]) -> None:
        for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True), start=self._written):
            self._file.put(_example(label, index, (image.height, image.width, 3), image.data))


@dataclass(frozen=True)
class TFRecordSplit:
    """The shards of one split. ``offsets`` and ``sizes``, int64 [N], give each image's bytes within its shard;
    ``shard_of``, int64 [N], its shard in ``shards``, read-only memory maps; ``labels`` int64 [N]; ``heights`` and
    ``widths``, int32 [N], in pixels, with ``channels`` its shape."""

    shards: tuple[NDArray[np.uint8], ...]
    shard_of: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    channels: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the first image, and so of all where they have one shape."""
        return int(self.heights[0]), int(self.widths[0]), self.channels

    def blob(self, index: int) -> NDArray[np.uint8]:
        """The bytes of one image as they are stored: uint8 [size], a view."""
        begin = self.offsets[index]
        shard: NDArray[np.uint8] = self.shards[self.shard_of[index]]
        return shard[begin : begin + self.sizes[index]]

    def take(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Of a split of raw images of one shape, those of ``indices``, int64 [n]: uint8 [n, H, W, C], read-only."""
        pixels = math.prod(self.image_shape)
        shards = [shard.data for shard in self.shards]
        # One join copies them all, faster than NumPy gathers rows that lie apart.
        rows = b"".join(
            [
                shards[shard][begin : begin + pixels]
                for shard, begin in zip(self.shard_of[indices].tolist(), self.offsets[indices].tolist(), strict=True)
            ]
        )
        return np.frombuffer(rows, dtype=np.uint8).reshape(-1, *self.image_shape)


def open_tfrecords(paths: Sequence[Path], shape: Sequence[int], *, raw: bool) -> TFRecordSplit:
    """Map the shards of a split, which holds images of shape (N, H, W, C), into memory.

    ``paths``: the shards, then their index files. Raises PreparedSetError for anything that `TFRecordWriter` would
    not have written; the checksums are those of the manifest, not the records' own.
    """
    count, height, width, channels = shape
    if not raw and channels not in (1, 3):
        raise _broken(paths[0], f"JPEG can't hold images of {channels} channels")
    split = open_ragged_tfrecords(paths, count, channels)
    wrong_size = raw and (split.sizes != math.prod(shape[1:])).any()
    if wrong_size or (split.heights != height).any() or (split.widths != width).any():
        raise _broken(paths[0], f"its images are not {width}x{height}x{channels}")
    return split


def open_ragged_tfrecords(paths: Sequence[Path], count: int, channels: int = 3) -> TFRecordSplit:
    """As `open_tfrecords`, of ``count`` images whose sides and sizes are not looked at."""
    if len(paths) % 2:
        raise _broken(paths[0], "its shards and their index files are not as many")
    shards, indices = paths[: len(paths) // 2], paths[len(paths) // 2 :]
    maps: list[NDArray[np.uint8]] = []
    columns: list[tuple[NDArray[np.int64], ...]] = []
    first = 0
    for number, (path, index_path) in enumerate(zip(shards, indices, strict=True)):
        records = _map(path)
        begins = _read_index(index_path, len(records))
        ends = np.append(begins[1:], len(records))
        heads = records[begins[:, None] + np.arange(_HEAD, _HEAD + _BEFORE_IMAGE)]
        sizes = ends - begins - _AROUND_IMAGE
        _check_heads(path, heads, np.arange(first, first + len(begins)), channels, sizes)
        height, width = (_number(heads, "shape", place) for place in range(2))
        maps.append(records)
        columns.append(
            (
                np.full(len(begins), number),
                begins + _HEAD + _BEFORE_IMAGE,
                sizes,
                _number(heads, "label"),
                height,
                width,
            )
        )
        first += len(begins)
    if first != count:
        raise _broken(paths[0], f"the shards hold {first} images, not {count}")
    shard_of, offsets, lengths, labels, heights, widths = map(np.concatenate, zip(*columns, strict=True))
    if max(heights.max(), widths.max()) > _LARGEST_SIDE:
        raise _broken(paths[0], f"its images are of more than {_LARGEST_SIDE} pixels a side")
    heights, widths = heights.astype(np.int32), widths.astype(np.int32)
    return TFRecordSplit(tuple(maps), shard_of, offsets, lengths, labels, heights, widths, channels)


def _map(path: Path) -> NDArray[np.uint8]:
    try:
        return np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise PreparedSetError(f"{show(path)} can't be mapped into memory: {one_line(error)}") from error


def _read_index(path: Path, shard_bytes: int) -> NDArray[np.int64]:
    """Where each record of a shard begins; the records must fill it, and each must have room for an Example."""
    longest = shard_bytes // _AROUND_IMAGE * _INDEX_LINE
    try:
        with open(path, "rb") as file:
            text = file.read(longest + 1)
        if len(text) > longest:
            raise _broken(path, "it is longer than an index of the shard's records")
        lines = np.array(text.split(), dtype=np.int64).reshape(-1, 2)
    except OSError as error:
        raise PreparedSetError(f"{show(path)} can't be read: {error.strerror}") from error
    except (ValueError, OverflowError) as error:
        raise _broken(path, "its lines are not offset and size") from error
    begins, sizes = lines.T
    ends = np.append(begins[1:], shard_bytes)
    # Within the shard first: differences of numbers from anywhere wrap around.
    within = len(begins) > 0 and begins[0] == 0 and begins.min() >= 0 and begins.max() < shard_bytes
    if not (within and (ends - begins == sizes).all() and sizes.min() > _AROUND_IMAGE):
        raise _broken(path, "its offsets and sizes are not those of the shard's records")
    return np.ascontiguousarray(begins)


def _check_heads(
    path: Path,
    heads: NDArray[np.uint8],
    indices: NDArray[np.int64],
    channels: int,
    image_sizes: NDArray[np.int64],
) -> None:
    """``heads``: the bytes of each Example before its image, uint8 [n, _BEFORE_IMAGE]."""
    named = all(
        (heads[:, _EMPTY.index(name.encode()) :][:, : len(name)] == np.frombuffer(name.encode(), np.uint8)).all()
        for name in _NAMES
    )
    agree = (
        named
        and (_number(heads, "index") == indices).all()
        and (_number(heads, "shape", 2) == channels).all()
        and (_decode(heads[:, -_VARINT:]) == image_sizes).all()
    )
    if not agree:
        raise _broken(path, "its records are not Examples of label, index, shape and image, in order")


def _number(heads: NDArray[np.uint8], name: str, place: int = 0) -> NDArray[np.int64]:
    """A feature's number in each Example, int64 [n]; ``place``: which of its numbers."""
    begin = _EMPTY.index(name.encode()) + len(name) + _BEFORE_VALUES + place * _VARINT
    return _decode(heads[:, begin : begin + _VARINT])


def _decode(varints: NDArray[np.uint8]) -> NDArray[np.int64]:
    """uint8 [n, 5] to int64 [n]."""
    groups: NDArray[np.int64] = (varints & 127).astype(np.int64) << 7 * np.arange(_VARINT)
    return np.asarray(groups.sum(axis=1))


def _broken(path: Path, what: str) -> PreparedSetError:
    return PreparedSetError(f"{show(path)} is not a whole TFRecord file of this set: {what}; {ANEW}")
