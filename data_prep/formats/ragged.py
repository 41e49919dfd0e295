"""The packed format of images that keep their own shapes: one file per split of JPEG and PNG files, as they are.

Its tensors (`formats.tensors`): ``data`` uint8 [total], the files one after the other; ``padding``, up to 7 zeros;
``offsets`` int64 [N + 1], where each begins and the last ends; ``labels`` int64 [N]; ``heights`` and ``widths`` int32
[N], in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fast_train.common.text import one_line, show
from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.formats.base import flush
from fast_train.data_prep.formats.tensors import DATA_START, DTYPES, Stored, broken, read_tensors, write_header

#: Of an image, in pixels: what is longer is scaled down to it, however short its other side.
LONGEST_SIDE = 4096


class Encoded(NamedTuple):
    """An image as it is stored: a JPEG or PNG file of three channels, upright, and its shape in pixels."""

    data: bytes
    height: int
    width: int


@dataclass(frozen=True)
class EncodedSplit:
    """A split's image files. data: read-only memory map, uint8 [total]. offsets: int64 [N + 1], where each file begins
    and the last one ends. heights, widths: int32 [N], in pixels. labels: int64 [N]."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    labels: NDArray[np.int64]

    def file(self, index: int) -> NDArray[np.uint8]:
        """The bytes of one image's file: uint8 [size], a view."""
        return self.data[self.offsets[index] : self.offsets[index + 1]]


def open_ragged(path: Path) -> EncodedSplit:
    """Map a file into memory; PreparedSetError for one that is not whole, or whose numbers disagree."""
    tensors = read_tensors(path)
    kinds = {"data": "U8", "offsets": "I64", "labels": "I64", "heights": "I32", "widths": "I32"}
    if tensors.keys() - {"padding"} != kinds.keys() or any(tensors[name].dtype != kinds[name] for name in kinds):
        raise broken(path, f"its tensors are not {', '.join(kinds)}")
    count = tensors["labels"].shape[0] if tensors["labels"].shape else 0
    shapes = {name: tensors[name].shape for name in kinds if name != "data"}
    if not count or shapes != {"offsets": (count + 1,), **dict.fromkeys(("labels", "heights", "widths"), (count,))}:
        raise broken(path, "its tensors do not have one number for each image")
    if len(tensors["data"].shape) != 1 or not tensors["data"].shape[0]:
        raise broken(path, "its data are not a row of bytes")
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r", offset=tensors["data"].begin, shape=tensors["data"].shape)
        offsets, labels, heights, widths = (_read(path, tensors[name]) for name in shapes)
    except (OSError, ValueError) as error:
        raise PreparedSetError(f"{show(path)} can't be mapped into memory: {one_line(error)}") from error
    if offsets[0] != 0 or offsets[-1] != len(data) or (offsets[1:] <= offsets[:-1]).any():
        raise broken(path, "its offsets are not those of files one after the other")
    if min(heights.min(), widths.min()) < 1 or max(heights.max(), widths.max()) > LONGEST_SIDE:
        raise broken(path, f"its images are not of 1 to {LONGEST_SIDE} pixels a side")
    return EncodedSplit(data, offsets, heights, widths, labels)


def _read(path: Path, tensor: Stored) -> NDArray[Any]:
    values = np.fromfile(path, dtype=DTYPES[tensor.dtype], count=tensor.shape[0], offset=tensor.begin)
    # Big-endian machines read it too.
    return values.astype(values.dtype.newbyteorder("="), copy=False)


class RaggedPackedWriter:
    """Writes ``SPLIT.safetensors`` in ``folder``, as the images come. Every method is `formats.base.Writer`'s."""

    def __init__(self, folder: Path, split: str) -> None:
        self._name = f"{split}.safetensors"
        self._offsets, self._heights, self._widths, self._labels = [0], list[int](), list[int](), list[int]()
        self._file = open(folder / self._name, "xb")  # noqa: SIM115  # open until `close` or `abort`
        self._file.seek(DATA_START)

    def write(self, files: Iterable[Encoded], labels: Iterable[int]) -> None:
        """Append images with their labels."""
        for image, label in zip(files, labels, strict=True):
            self._file.write(image.data)
            self._offsets.append(self._offsets[-1] + len(image.data))
            self._heights.append(image.height)
            self._widths.append(image.width)
            self._labels.append(int(label))

    def close(self) -> tuple[str, ...]:
        """Finish, with everything flushed to the disk; the name of the file."""
        count, size = len(self._labels), self._offsets[-1]
        if not count:
            raise ValueError(f"{self._name} would hold no image")
        padding = -size % 8
        self._file.write(bytes(padding))
        columns: dict[str, tuple[str, list[int]]] = {
            "offsets": ("I64", self._offsets),
            "labels": ("I64", self._labels),
            "heights": ("I32", self._heights),
            "widths": ("I32", self._widths),
        }
        for dtype, values in columns.values():
            self._file.write(np.array(values, dtype=DTYPES[dtype]).data)
        self._file.seek(0)
        filler = {"padding": ("U8", (padding,))} if padding else {}
        described = {name: (dtype, (len(values),)) for name, (dtype, values) in columns.items()}
        self._file.write(write_header({"data": ("U8", (size,)), **filler, **described}))
        flush(self._file)
        self.abort()
        return (self._name,)

    def abort(self) -> None:
        """Release the file without finishing."""
        self._file.close()
