"""The image files of a set whose images keep their own shapes: read from the disk and decoded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from io import FileIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from fast_train.common.text import one_line, show
from fast_train.data_prep.errors import ANEW, PreparedSetError
from fast_train.data_prep.formats.decode import decode_rgb
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.loaders.batch import CHANNELS, RaggedBatch, begins

_JPEG = b"\xff\xd8"


class Shapes:
    """Of the images of a split: heights and widths int32 [M], in pixels, and labels int64 [M], on the CPU."""

    def __init__(self, heights: NDArray[np.int32], widths: NDArray[np.int32], labels: NDArray[np.int64]) -> None:
        self.heights, self.widths, self.labels = (torch.tensor(column) for column in (heights, widths, labels))
        self.sizes = CHANNELS * self.heights.long() * self.widths

    def batch(self, data: Tensor, indices: Tensor) -> RaggedBatch:
        """The images ``indices``, int64 [N], whose pixels lie in ``data`` one after the other; on the CPU."""
        heights, widths, labels = (column[indices] for column in (self.heights, self.widths, self.labels))
        return RaggedBatch(data, begins(self.sizes[indices]), heights, widths, labels, indices)


class ImageFiles:
    """Reads a split's packed file by position: pages of a mapped file would count as this process's memory, and a
    failing disk would end it. Threads and forked processes may share it."""

    def __init__(self, prepared: PreparedSet, split: str) -> None:
        encoded = prepared.encoded(split)
        self.path, self._at = prepared.files(split, "packed")[0], encoded.begin
        self._offsets = encoded.offsets
        self.shapes = Shapes(encoded.heights, encoded.widths, encoded.labels)

    @cached_property
    def _file(self) -> FileIO:
        """Opened by whoever reads first: a worker process may have its own."""
        return FileIO(self.path)

    def expect(self, indices: Sequence[int]) -> None:
        """Have the system read the files of images that are wanted soon, while others are decoded."""
        if hasattr(os, "posix_fadvise"):
            for index in indices:
                begin, end = self._offsets[index : index + 2].tolist()
                os.posix_fadvise(self._file.fileno(), self._at + begin, end - begin, os.POSIX_FADV_WILLNEED)

    def decode(self, first: int, end: int, into: NDArray[np.uint8]) -> None:
        """Write the pixels of the images from ``first`` to ``end`` - 1, one after the other, into uint8 [total].

        Raises PreparedSetError where one can't be decoded.
        """
        start, stop = self._offsets[[first, end]].tolist()
        files = np.empty(stop - start, dtype=np.uint8)
        at, room = 0, files.data
        while at < len(files):
            count = os.preadv(self._file.fileno(), [room[at:]], self._at + start + at)
            if not count:
                raise PreparedSetError(f"{show(self.path)} ends within its images; {ANEW}")
            at += count
        at = 0
        for index in range(first, end):
            file = files[self._offsets[index] - start : self._offsets[index + 1] - start]
            size = int(self.shapes.sizes[index])
            into[at : at + size] = self._pixels(file, index).reshape(-1)
            at += size

    def _pixels(self, file: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        """uint8 [H, W, 3] of the bytes of a file."""
        height, width = int(self.shapes.heights[index]), int(self.shapes.widths[index])
        try:
            if file[:2].tobytes() != _JPEG:
                return decode_rgb(file, height, width)
            # By the same library as Pillow's, to the same pixels, in two thirds of the time.
            planes = decode_jpeg(torch.from_numpy(file), mode=ImageReadMode.RGB)
            pixels: NDArray[np.uint8] = planes.permute(1, 2, 0).numpy()
            if pixels.shape != (height, width, CHANNELS):
                raise PreparedSetError(f"holds an image that is not {width}x{height}; {ANEW}")
        except PreparedSetError as error:
            raise PreparedSetError(f"{show(self.path)} {error}") from error
        except RuntimeError as error:
            reason = one_line(error).rpartition(", ")[2]
            raise PreparedSetError(
                f"{show(self.path)} holds an image that can't be decoded: {reason[:100]}; {ANEW}"
            ) from error
        return pixels
