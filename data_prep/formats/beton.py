"""FFCV's format: one ``.beton`` file per split with the fields ``image`` (RGB), ``label`` and ``index``.

Layout (ffcv 1.0.2, ``ffcv/types.py``, ``writer.py`` and ``memory_allocator.py``), little-endian: a header; a descriptor
of each field; a row of metadata per sample, which points at its pixels; from the next multiple of the page size on, the
pixels, no sample across the border of a page; last, a table of (sample, pointer, size). The format has no checksums,
and its reader trusts every number in it: `open_beton` checks them all first.

FFCV's own writer starts processes and waits forever for one that died, so this one writes the file by itself, as the
images come. The tests read what it writes with FFCV, and compare it with what FFCV writes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fast_train.common.text import show
from fast_train.data_prep.errors import ANEW, PreparedSetError
from fast_train.data_prep.formats.base import Encoded, FormatOptions, RaggedWriter, SplitFile, Writer, flush, jpeg_of
from fast_train.data_prep.formats.decode import decode_rgb

#: FFCV's structures, as they lie in the file.
VERSION = 2
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD = np.dtype([("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
_IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
SAMPLE = np.dtype([("", _IMAGE), ("", "<i8"), ("", "<i8")], align=True)
#: Name of each field and FFCV's number for its type: 2 an RGB image, 1 a whole number.
FIELDS = (("image", 2), ("label", 1), ("index", 1))
_JPG, _RAW = 0, 1
METADATA_AT = HEADER.itemsize + len(FIELDS) * FIELD.itemsize
_SMALLEST_PAGE = 2 << 20
_LARGEST_SIDE = 65535
_LARGEST_IMAGE = 1 << 30


class _BetonFile(SplitFile):
    """``SPLIT.beton`` in a folder, of up to ``count`` samples, to which they are appended."""

    def __init__(self, folder: Path, split: str, count: int, page: int) -> None:
        self._name, self._page = f"{split}.beton", page
        self._samples = np.zeros(count, dtype=SAMPLE)
        self._sizes = np.zeros(count, dtype=np.uint64)
        self._written = 0
        self._at = -(-(METADATA_AT + self._samples.nbytes) // page) * page
        self._file = open(folder / self._name, "xb")  # noqa: SIM115  # open until `close`

    def append(self, blobs: Sequence[Any], heights: Any, widths: Any, labels: NDArray[np.int64]) -> None:
        """blobs: of each sample a JPEG file as ``bytes``, or its pixels as an array uint8. heights, widths: of each, or
        of all."""
        first, end = self._written, self._written + len(labels)
        rows = self._samples[first:end]
        rows["f0"]["height"], rows["f0"]["width"] = heights, widths
        rows["f0"]["mode"] = [_JPG if isinstance(blob, bytes) else _RAW for blob in blobs]
        rows["f0"]["data_ptr"] = [self._put(blob) for blob in blobs]
        rows["f1"], rows["f2"] = labels, np.arange(first, end)
        self._sizes[first:end] = [len(blob) for blob in blobs]
        self._written = end

    def _put(self, blob: Any) -> int:
        """Write the bytes of a sample, in the next page where they don't fit this one; where they begin."""
        left = self._page - self._at % self._page
        if len(blob) > left:
            self._at += left
        self._file.seek(self._at)
        self._file.write(blob)
        begin = self._at
        self._at += len(blob)
        return begin

    def finish(self) -> tuple[str, ...]:
        samples = self._samples[: self._written]
        table = np.zeros(self._written, dtype=ALLOCATION)
        table["sample_id"], table["ptr"] = np.arange(self._written), samples["f0"]["data_ptr"]
        table["size"] = self._sizes[: self._written]
        self._file.seek(self._at)
        self._file.write(table.data)
        self._file.seek(0)
        self._file.write(_head(self._written, self._page, self._at))
        self._file.write(samples.tobytes())
        flush(self._file)
        return (self._name,)

    def close(self) -> None:
        self._file.close()


class BetonWriter(Writer):
    """Writes ``SPLIT.beton``."""

    def __init__(
        self, folder: Path, split: str, count: int, image_shape: Sequence[int], options: FormatOptions
    ) -> None:
        super().__init__(folder, split, count, image_shape, options)
        height, width, channels = image_shape
        if channels != 3 or max(height, width) > _LARGEST_SIDE or math.prod(image_shape) > _LARGEST_IMAGE:
            raise PreparedSetError(f"FFCV can't hold images of {width}x{height}x{channels}; leave out --formats ffcv")
        self._share = {"raw": 0.0, "jpg": 1.0, "proportion": options.jpeg_share}[options.ffcv_mode]
        self._quality = options.quality
        # Its own generator, used in the order of the images: the same request gives the same file.
        self._coin = np.random.default_rng(0)
        self._file: _BetonFile = _BetonFile(folder, split, count, page_size(height * width))

    @staticmethod
    def encoding(options: FormatOptions) -> dict[str, Any]:
        return options.encoding(options.ffcv_mode)

    @staticmethod
    def estimate_bytes(count: int, image_shape: Sequence[int], options: FormatOptions) -> int:
        page = page_size(image_shape[0] * image_shape[1])
        pages = -(-count // (page // options.stored_bytes(options.ffcv_mode, image_shape)))
        return METADATA_AT + count * (SAMPLE.itemsize + ALLOCATION.itemsize) + (pages + 1) * page

    def _append(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        height, width, _ = self._shape
        self._file.append(self._encode(images), height, width, labels)

    def _encode(self, images: NDArray[np.uint8]) -> list[Any]:
        """The bytes of each image: a JPEG file as ``bytes``, or its pixels as an array."""
        blobs: list[Any] = list(images.reshape(len(images), -1))
        chosen = np.flatnonzero(self._coin.random(len(images)) < self._share).tolist()
        encode = partial(jpeg_of, quality=self._quality)
        for i, blob in zip(chosen, self._threads.map(encode, images[chosen]), strict=True):
            blobs[i] = blob
        return blobs


class RaggedBetonWriter(RaggedWriter):
    """Writes ``SPLIT.beton``: JPEG files as they are, the pixels of PNG files, which FFCV can't decode."""

    def __init__(self, folder: Path, split: str, count: int, pixels: int) -> None:
        super().__init__(folder, split, count, pixels)
        self._file: _BetonFile = _BetonFile(folder, split, count, page_size(pixels))

    @staticmethod
    def estimate_bytes(count: int, content: int, pixels: int) -> int:
        page = page_size(pixels)
        # A page ends where the next image does not fit, and the last one anywhere.
        pages = content // (page - min(3 * pixels, page // 2)) + 2
        return METADATA_AT + count * (SAMPLE.itemsize + ALLOCATION.itemsize) + pages * page

    def _append(self, images: Sequence[Encoded], labels: NDArray[np.int64]) -> None:
        blobs = list(self._threads.map(_as_ffcv_reads, images))
        self._file.append(blobs, [image.height for image in images], [image.width for image in images], labels)


def _as_ffcv_reads(image: Encoded) -> Any:
    return image.data if image.is_jpeg else decode_rgb(*image).reshape(-1)


def page_size(pixels: int) -> int:
    """A power of two that holds an image of so many pixels however badly JPEG compresses it, and for small ones FFCV's
    smallest."""
    return max(_SMALLEST_PAGE, 1 << (6 * pixels).bit_length())


def _head(count: int, page: int, table_at: int) -> bytes:
    """Header and field descriptors."""
    fields = np.zeros(len(FIELDS), dtype=FIELD)
    for descriptor, (name, type_id) in zip(fields, FIELDS, strict=True):
        descriptor["type_id"] = type_id
        descriptor["name"][: len(name)] = np.frombuffer(name.encode(), dtype=np.uint8)
    return np.array((VERSION, len(FIELDS), page, count, table_at), dtype=HEADER).tobytes() + fields.tobytes()


@dataclass(frozen=True)
class BetonSplit:
    """What a checked file holds: labels int64 [N]; heights, widths int32 [N], in pixels; and where the JPEG files among
    its images lie, jpeg_begins and jpeg_sizes int64 [n], in bytes; is_jpeg bool [N] says which these are."""

    path: Path
    labels: NDArray[np.int64]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    is_jpeg: NDArray[np.bool_]
    jpeg_begins: NDArray[np.int64]
    jpeg_sizes: NDArray[np.int64]


def open_beton(path: Path, shape: Sequence[int]) -> BetonSplit:
    """`open_ragged_beton` of images of shape (N, H, W, 3), as `BetonWriter` leaves them."""
    count, height, width, channels = shape
    if channels != 3:
        raise _broken(path, f"FFCV reads images of 3 channels, not {channels}")
    split = open_ragged_beton(path, count, height * width)
    if (split.heights != height).any() or (split.widths != width).any():
        raise _broken(path, f"its images are not {width}x{height}")
    return split


def open_ragged_beton(path: Path, count: int, pixels: int) -> BetonSplit:
    """PreparedSetError unless the file holds ``count`` images as `RaggedBetonWriter` leaves them where the largest in
    the set has ``pixels`` pixels.

    Every number that FFCV takes on trust is compared: version, fields, modes, sizes, pointers and the table, but for
    the sides of what is encoded. What FFCV makes of a JPEG file rests on that file's header too, see `formats.headers`.
    """
    page = page_size(pixels)
    samples, table, table_at = _read_tables(path, count, page)
    image = samples["f0"]
    if not np.isin(image["mode"], (_JPG, _RAW)).all() or (samples["f2"] != np.arange(count)).any():
        raise _broken(path, "its images are not JPEG files and pixels, in the order of their indices")
    pointers, sizes = table["ptr"], table["size"]
    is_jpeg = image["mode"] == _JPG
    # FFCV copies an image that is not encoded into room for exactly its bytes.
    raw_sizes = image["height"].astype(np.uint64) * image["width"] * 3
    sizes_fit = np.where(is_jpeg, (sizes > 0) & (sizes <= page), (sizes == raw_sizes) & (sizes <= page))
    first = -(-(METADATA_AT + samples.nbytes) // page) * page
    # Each of these bounds what the next one adds up: a sum that wraps around would pass.
    fits = sizes_fit.all() and (pointers >= first).all() and (pointers <= table_at).all()
    ends = pointers + sizes
    apart = fits and (ends[:-1] <= pointers[1:]).all() and ends[-1] <= table_at
    in_pages = pointers // page == (ends - 1) // page
    named = (image["data_ptr"] == pointers) & (table["sample_id"] == np.arange(count))
    if not (apart and in_pages.all() and named.all()):
        raise _broken(path, "its pointers do not fit its pages")
    begins, lengths = (column[is_jpeg].astype(np.int64) for column in (pointers, sizes))
    heights, widths = (image[side].astype(np.int32) for side in ("height", "width"))
    return BetonSplit(path, samples["f1"].astype(np.int64), heights, widths, is_jpeg, begins, lengths)


def _read_tables(path: Path, count: int, page: int) -> tuple[NDArray[Any], NDArray[Any], int]:
    """The rows of metadata, the table of allocations, and where in the file that begins."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(METADATA_AT)
            if METADATA_AT + count * (SAMPLE.itemsize + ALLOCATION.itemsize) > size:
                raise _broken(path, "it ends within its metadata")
            samples = np.frombuffer(file.read(count * SAMPLE.itemsize), dtype=SAMPLE)
            table_at = size - count * ALLOCATION.itemsize
            if head != _head(count, page, table_at):
                raise _broken(path, f"its header is not that of {count} images with labels and indices")
            file.seek(table_at)
            table = np.frombuffer(file.read(count * ALLOCATION.itemsize), dtype=ALLOCATION)
    except OSError as error:
        raise PreparedSetError(f"{show(path)} can't be read: {error.strerror}") from error
    return samples, table, table_at


def _broken(path: Path, what: str) -> PreparedSetError:
    return PreparedSetError(f"{show(path)} is not a whole FFCV file of this set: {what}; {ANEW}")
