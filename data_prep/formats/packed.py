"""The packed format: one safetensors file per split, whose pixels can be mapped into memory as they are.

Layout (https://github.com/huggingface/safetensors#format): 8 bytes little-endian length of the header, the header in
JSON padded with spaces to byte 4096, then ``images`` uint8 [N, H, W, C] and ``labels`` int64 [N], little-endian. Where
the images do not end on a multiple of 8 bytes, a tensor ``padding`` of up to 7 zeros puts the labels there: the format
knows no holes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fast_train.common.text import one_line, show
from fast_train.data_prep.errors import ANEW, PreparedSetError
from fast_train.data_prep.formats.base import FormatOptions, Writer, flush

#: Where the images begin: a whole page, so that a mapping of them is aligned.
DATA_START = 4096
_MAX_HEADER = 1 << 20
_ITEM_BYTES = {"U8": 1, "I64": 8}
_LABEL = np.dtype("<i8")


@dataclass
class PackedSplit:
    """One split: images, a read-only memory map uint8 [N, H, W, C]; labels int64 [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PackedHeader:
    """What the header says: the shape (N, H, W, C) and the bytes of the file at which each tensor begins."""

    shape: tuple[int, int, int, int]
    images_at: int
    labels_at: int


def open_packed(path: str | os.PathLike[str]) -> PackedSplit:
    """Map a packed file into memory. Raises PreparedSetError for a file that is not a whole one."""
    path = Path(path)
    header = read_header(path)
    try:
        images = np.memmap(path, dtype=np.uint8, mode="r", offset=header.images_at, shape=header.shape)
        labels = np.fromfile(path, dtype=_LABEL, count=header.shape[0], offset=header.labels_at)
    except (OSError, ValueError) as error:
        raise PreparedSetError(f"{show(path)} can't be mapped into memory: {one_line(error)}") from error
    return PackedSplit(images, labels.astype(np.int64, copy=False))


def read_header(path: Path) -> PackedHeader:
    """The header, checked against the file's size; PreparedSetError for anything that is not as the format says."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_MAX_HEADER, size - 8):
                raise _broken(path, f"its {size} bytes can't hold the header it announces")
            text = file.read(length)
    except OSError as error:
        raise PreparedSetError(f"{show(path)} can't be read: {error.strerror}") from error
    try:
        tensors = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken(path, "its header is not JSON") from error
    return _check_tensors(path, tensors, start=8 + length, size=size)


def _check_tensors(path: Path, tensors: Any, *, start: int, size: int) -> PackedHeader:
    if not isinstance(tensors, dict):
        raise _broken(path, "its header is not a JSON object")
    tensors.pop("__metadata__", None)
    if not {"images", "labels"} <= tensors.keys() <= {"images", "labels", "padding"}:
        raise _broken(path, "its tensors are not images and labels")
    places = {name: _check_tensor(path, name, tensor) for name, tensor in tensors.items()}
    images, labels = tensors["images"], tensors["labels"]
    if images["dtype"] != "U8" or len(images["shape"]) != 4 or not all(images["shape"]):
        raise _broken(path, "its images are not uint8 [N, H, W, C]")
    if labels["dtype"] != "I64" or labels["shape"] != images["shape"][:1]:
        raise _broken(path, "its labels are not int64 [N], one for each image")
    end = 0
    for begin, stop in sorted(places.values()):
        if begin != end:
            raise _broken(path, "its tensors overlap or leave holes")
        end = stop
    if start + end != size:
        raise _broken(path, f"it has {size} bytes, its header describes {start + end}")
    return PackedHeader(
        shape=tuple(images["shape"]), images_at=start + places["images"][0], labels_at=start + places["labels"][0]
    )


def _check_tensor(path: Path, name: str, tensor: Any) -> tuple[int, int]:
    """The tensor's first byte and the one after its last, counted from the end of the header."""
    fields: dict[str, Any] = tensor if isinstance(tensor, dict) else {}
    shape: Any
    offsets: Any
    shape, offsets, dtype = fields.get("shape"), fields.get("data_offsets"), fields.get("dtype")
    if not (_are_counts(shape) and _are_counts(offsets) and len(offsets) == 2 and isinstance(dtype, str)):
        raise _broken(path, f"its header does not describe the tensor '{name}'")
    if dtype not in _ITEM_BYTES or offsets[1] - offsets[0] != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise _broken(path, f"the size of its tensor '{name}' disagrees with its shape")
    return offsets[0], offsets[1]


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _broken(path: Path, what: str) -> PreparedSetError:
    return PreparedSetError(f"{show(path)} is not a whole packed file: {what}; {ANEW}")


class PackedWriter(Writer):
    """Writes ``SPLIT.safetensors``."""

    def __init__(
        self, folder: Path, split: str, count: int, image_shape: Sequence[int], options: FormatOptions
    ) -> None:
        super().__init__(folder, split, count, image_shape, options)
        self._name = f"{split}.safetensors"
        self._labels = np.empty(count, dtype=_LABEL)
        self._file = open(folder / self._name, "xb")  # noqa: SIM115  # open until `close` or `abort`
        self._file.seek(DATA_START)

    @staticmethod
    def encoding(options: FormatOptions) -> dict[str, Any]:
        return options.encoding("raw")

    @staticmethod
    def estimate_bytes(count: int, image_shape: Sequence[int], options: FormatOptions) -> int:
        pixels = count * options.stored_bytes("raw", image_shape)
        return DATA_START + pixels + -pixels % 8 + 8 * count

    def _append(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self._file.write(np.ascontiguousarray(images).data)
        self._labels[self._written : self._written + len(labels)] = labels

    def _finish(self) -> tuple[str, ...]:
        pixels = self._written * math.prod(self._shape)
        padding = -pixels % 8
        self._file.write(bytes(padding))
        self._file.write(self._labels[: self._written].data)
        self._file.seek(0)
        self._file.write(self._header(pixels, padding))
        flush(self._file)
        return (self._name,)

    def abort(self) -> None:
        self._file.close()

    def _header(self, pixels: int, padding: int) -> bytes:
        labels_at = pixels + padding
        tensors: dict[str, Any] = {
            "images": {"dtype": "U8", "shape": [self._written, *self._shape], "data_offsets": [0, pixels]},
        }
        if padding:
            tensors["padding"] = {"dtype": "U8", "shape": [padding], "data_offsets": [pixels, labels_at]}
        tensors["labels"] = {
            "dtype": "I64",
            "shape": [self._written],
            "data_offsets": [labels_at, labels_at + 8 * self._written],
        }
        length = DATA_START - 8
        text = json.dumps(tensors, separators=(",", ":")).encode()
        return length.to_bytes(8, "little") + text.ljust(length)
