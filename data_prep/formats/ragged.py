"""The packed format of images that keep their own shapes: one file per split of JPEG and PNG files, as they are.

Its tensors (`formats.tensors`): ``data`` uint8 [total], the files one after the other; ``padding``, up to 7 zeros;
``offsets`` int64 [N + 1], where each begins and the last ends; ``labels`` int64 [N]; ``heights`` and ``widths`` int32
[N], in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fast_train.common.text import one_line, show
from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.formats.base import Encoded, RaggedWriter, flush
from fast_train.data_prep.formats.tensors import DATA_START, DTYPES, Stored, broken, read_tensors, write_header

#: Of an image, in pixels: what is longer is scaled down to it, however short its other side.
LONGEST_SIDE = 4096


@dataclass(frozen=True)
class EncodedSplit:
    """A split's image files. data: read-only memory map, uint8 [total]. offsets: int64 [N + 1], where each file begins
    and the last one ends. heights, widths: int32 [N], in pixels. labels: int64 [N]. begin: where in the packed file the
    data begin, in bytes."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    labels: NDArray[np.int64]
    begin: int = 0

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
    return EncodedSplit(data, offsets, heights, widths, labels, tensors["data"].begin)


def _read(path: Path, tensor: Stored) -> NDArray[Any]:
    values = np.fromfile(path, dtype=DTYPES[tensor.dtype], count=tensor.shape[0], offset=tensor.begin)
    # Big-endian machines read it too.
    return values.astype(values.dtype.newbyteorder("="), copy=False)


class RaggedPackedWriter(RaggedWriter):
    """Writes ``SPLIT.safetensors``."""

    def __init__(self, folder: Path, split: str, count: int, pixels: int) -> None:
        super().__init__(folder, split, count, pixels)
        self._name = f"{split}.safetensors"
        self._offsets = np.zeros(count + 1, dtype=DTYPES["I64"])
        self._labels = np.empty(count, dtype=DTYPES["I64"])
        self._heights, self._widths = (np.empty(count, dtype=DTYPES["I32"]) for _ in range(2))
        self._file = open(folder / self._name, "xb")  # noqa: SIM115  # open until `close` or `abort`
        self._file.seek(DATA_START)

    @staticmethod
    def estimate_bytes(count: int, content: int, pixels: int) -> int:
        del pixels
        return DATA_START + content + -content % 8 + 8 + 24 * count

    def _append(self, images: Sequence[Encoded], labels: NDArray[np.int64]) -> None:
        self._file.writelines(image.data for image in images)
        first, end = self._written, self._written + len(labels)
        self._offsets[first + 1 : end + 1] = self._offsets[first] + np.cumsum([len(image.data) for image in images])
        self._labels[first:end] = labels
        self._heights[first:end] = [image.height for image in images]
        self._widths[first:end] = [image.width for image in images]

    def _finish(self) -> tuple[str, ...]:
        count, size = self._written, int(self._offsets[self._written])
        padding = -size % 8
        self._file.write(bytes(padding))
        columns = {
            "offsets": ("I64", self._offsets[: count + 1]),
            "labels": ("I64", self._labels[:count]),
            "heights": ("I32", self._heights[:count]),
            "widths": ("I32", self._widths[:count]),
        }
        for _, values in columns.values():
            self._file.write(values.data)
        self._file.seek(0)
        filler = {"padding": ("U8", (padding,))} if padding else {}
        described = {name: (dtype, values.shape) for name, (dtype, values) in columns.items()}
        self._file.write(write_header({"data": ("U8", (size,)), **filler, **described}))
        flush(self._file)
        return (self._name,)

    def abort(self) -> None:
        self._file.close()
