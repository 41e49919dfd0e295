"""The packed format: one safetensors file per split, whose pixels can be mapped into memory as they are.

Its tensors (`formats.tensors`) are ``images`` uint8 [N, H, W, C] and ``labels`` int64 [N], little-endian. Where the
images do not end on a multiple of 8 bytes, a tensor ``padding`` of up to 7 zeros puts the labels there: the format
knows no holes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fast_train.data_prep.formats.base import FormatOptions, Writer
from fast_train.data_prep.formats.tensors import DATA_START, Stored, TensorFile, broken, load_tensors, read_tensors


@dataclass
class PackedSplit:
    """One split: images, a read-only memory map uint8 [N, H, W, C]; labels int64 [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def open_packed(path: Path) -> PackedSplit:
    """Map a packed file into memory. Raises PreparedSetError for a file that is not a whole one."""
    return PackedSplit(*load_tensors(path, read_header(path)))


def read_header(path: Path) -> tuple[Stored, Stored]:
    """Images and labels, checked against the file's size; PreparedSetError for anything that is not as the format
    says."""
    tensors = read_tensors(path)
    if not {"images", "labels"} <= tensors.keys() <= {"images", "labels", "padding"}:
        raise broken(path, "its tensors are not images and labels")
    images, labels = tensors["images"], tensors["labels"]
    if images.dtype != "U8" or len(images.shape) != 4 or not all(images.shape):
        raise broken(path, "its images are not uint8 [N, H, W, C]")
    if labels.dtype != "I64" or labels.shape != images.shape[:1]:
        raise broken(path, "its labels are not int64 [N], one for each image")
    return images, labels


class PackedWriter(Writer):
    """Writes ``SPLIT.safetensors``."""

    def __init__(
        self, folder: Path, split: str, count: int, image_shape: Sequence[int], options: FormatOptions
    ) -> None:
        super().__init__(folder, split, count, image_shape, options)
        self._file: TensorFile = TensorFile(folder, split, "images", self._shape)

    @staticmethod
    def encoding(options: FormatOptions) -> dict[str, Any]:
        return options.encoding("raw")

    @staticmethod
    def estimate_bytes(count: int, image_shape: Sequence[int], options: FormatOptions) -> int:
        pixels = count * options.stored_bytes("raw", image_shape)
        return DATA_START + pixels + -pixels % 8 + 8 * count

    def _append(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self._file.append([np.ascontiguousarray(images).data], labels=labels)
