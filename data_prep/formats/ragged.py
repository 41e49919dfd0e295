"""The packed format of images that keep their own shapes: one file per split of JPEG and PNG files, as they are.

Its tensors (`formats.tensors`): ``data`` uint8 [total], the files one after the other; ``padding``, up to 7 zeros;
``offsets`` int64 [N + 1], where each begins and the last ends; ``labels`` int64 [N]; ``heights`` and ``widths`` int32
[N], in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fast_train.data_prep.formats.base import Encoded, RaggedWriter
from fast_train.data_prep.formats.tensors import COLUMNS, DATA_START, TensorFile, broken, load_tensors, read_tensors

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
    """Map a file into memory; PreparedSetError for one that is not whole, or whose numbers disagree. Sides
    are not looked at."""
    tensors = read_tensors(path)
    kinds = {"data": "U8", **COLUMNS}
    if tensors.keys() - {"padding"} != kinds.keys() or any(tensors[name].dtype != kinds[name] for name in kinds):
        raise broken(path, f"its tensors are not {', '.join(kinds)}")
    count = tensors["labels"].shape[0] if tensors["labels"].shape else 0
    shapes = {name: tensors[name].shape for name in kinds if name != "data"}
    if not count or shapes != {"offsets": (count + 1,), **dict.fromkeys(("labels", "heights", "widths"), (count,))}:
        raise broken(path, "its tensors do not have one number for each image")
    if len(tensors["data"].shape) != 1 or not tensors["data"].shape[0]:
        raise broken(path, "its data are not a row of bytes")
    data, offsets, labels, heights, widths = load_tensors(path, (tensors[name] for name in ("data", *shapes)))
    if offsets[0] != 0 or offsets[-1] != len(data) or (offsets[1:] <= offsets[:-1]).any():
        raise broken(path, "its offsets are not those of files one after the other")
    return EncodedSplit(data, offsets, heights, widths, labels, tensors["data"].begin)


class RaggedPackedWriter(RaggedWriter):
    """Writes ``SPLIT.safetensors``."""

    def __init__(self, folder: Path, split: str, count: int, pixels: int) -> None:
        super().__init__(folder, split, count, pixels)
        self._file: TensorFile = TensorFile(folder, split, "data")
        self._end = 0
        self._file.append((), offsets=[0])

    @staticmethod
    def estimate_bytes(count: int, content: int, pixels: int) -> int:
        del pixels
        return DATA_START + content + -content % 8 + 8 + 24 * count

    def _append(self, images: Sequence[Encoded], labels: NDArray[np.int64]) -> None:
        ends = self._end + np.cumsum([len(image.data) for image in images])
        self._end = int(ends[-1])
        self._file.append(
            (image.data for image in images),
            offsets=ends,
            labels=labels,
            heights=[image.height for image in images],
            widths=[image.width for image in images],
        )
