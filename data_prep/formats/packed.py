"""The packed format: one safetensors file per split, whose pixels can be mapped into memory as they are.

Its tensors (`formats.tensors`) are ``images`` uint8 [N, H, W, C] and ``labels`` int64 [N], little-endian. Where the
images do not end on a multiple of 8 bytes, a tensor ``padding`` of up to 7 zeros puts the labels there: the format
knows no holes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fast_train.common.text import one_line, show
from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.formats.base import FormatOptions, Writer, flush
from fast_train.data_prep.formats.tensors import DATA_START, broken, read_tensors, write_header

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
    tensors = read_tensors(path)
    if not {"images", "labels"} <= tensors.keys() <= {"images", "labels", "padding"}:
        raise broken(path, "its tensors are not images and labels")
    images, labels = tensors["images"], tensors["labels"]
    if images.dtype != "U8" or len(images.shape) != 4 or not all(images.shape):
        raise broken(path, "its images are not uint8 [N, H, W, C]")
    if labels.dtype != "I64" or labels.shape != images.shape[:1]:
        raise broken(path, "its labels are not int64 [N], one for each image")
    count, height, width, channels = images.shape
    return PackedHeader(shape=(count, height, width, channels), images_at=images.begin, labels_at=labels.begin)


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
        images = {"images": ("U8", (self._written, *self._shape))}
        filler: dict[str, tuple[str, tuple[int, ...]]] = {"padding": ("U8", (padding,))} if padding else {}
        self._file.write(write_header({**images, **filler, "labels": ("I64", (self._written,))}))
        flush(self._file)
        return (self._name,)

    def abort(self) -> None:
        self._file.close()
