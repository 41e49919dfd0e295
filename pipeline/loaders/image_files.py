"""The image files of a set whose images keep their own shapes: read from the disk and decoded."""

from __future__ import annotations

import os
from functools import cached_property
from io import FileIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fast_train.common.text import show
from fast_train.data_prep.errors import ANEW, PreparedSetError
from fast_train.data_prep.formats.decode import decode_rgb, is_jpeg
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.loaders import turbojpeg
from fast_train.pipeline.loaders.batch import CHANNELS, RaggedBatch, begins


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

    def close(self) -> None:
        """Whoever reads next opens it again."""
        if "_file" in vars(self):
            self._file.close()
            del self._file

    def decode(self, indices: NDArray[np.int64], into: NDArray[np.uint8]) -> None:
        """Write the pixels of images, one after the other, into uint8 [total]. indices: [n].

        Raises PreparedSetError where one can't be decoded.
        """
        self._expect(indices)
        at = 0
        for index in indices.tolist():
            size = int(self.shapes.sizes[index])
            self._decode(self._read(index), into[at : at + size], index)
            at += size

    def _expect(self, indices: NDArray[np.int64]) -> None:
        """Have the system read files while those before them are decoded: of a cold disk four times as many."""
        if hasattr(os, "posix_fadvise"):
            for begin, end in zip(self._offsets[indices].tolist(), self._offsets[indices + 1].tolist(), strict=True):
                os.posix_fadvise(self._file.fileno(), self._at + begin, end - begin, os.POSIX_FADV_WILLNEED)

    def _read(self, index: int) -> NDArray[np.uint8]:
        """The bytes of a file."""
        begin, end = self._offsets[index : index + 2].tolist()
        file = np.empty(end - begin, dtype=np.uint8)
        done = 0
        while done < len(file):
            count = os.preadv(self._file.fileno(), [file[done:].data], self._at + begin + done)
            if not count:
                raise PreparedSetError(f"{show(self.path)} ends within its images; {ANEW}")
            done += count
        return file

    def _decode(self, file: NDArray[np.uint8], into: NDArray[np.uint8], index: int) -> None:
        """Write the pixels of one file into uint8 [H * W * 3]."""
        height, width = int(self.shapes.heights[index]), int(self.shapes.widths[index])
        library = turbojpeg.installed()
        if library is not None and is_jpeg(file) and turbojpeg.decode(library, file, into, height, width):
            return
        try:
            # What the library could not decode, too: it does not say why.
            into[:] = decode_rgb(file, height, width).reshape(-1)
        except PreparedSetError as error:
            raise PreparedSetError(f"{show(self.path)} {error}") from error
