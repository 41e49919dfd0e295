"""The whole split as bytes in memory that the device reads: a batch is a row of indices, gathered in the step's
kernel."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from fast_train.common.cores import usable_cores
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.loaders.base import Loader, LoaderOptions
from fast_train.pipeline.loaders.batch import OwnBatch, RaggedView, SplitView, begins
from fast_train.pipeline.loaders.image_files import ImageFiles
from fast_train.pipeline.loaders.room import Room

# Of pixels that a thread decodes at a time: many images, and little memory for each thread.
_PIECE_BYTES = 8 << 20


class ResidentLoader(Loader):
    """CIFAR-10's training split takes 154 MB; 3,000 photographs of 256 pixels a side take 0.8 GB. Images that are
    stored as files are decoded once, by ``workers`` threads, by default one for each usable core.

    ``resident_memory``: where the pixels lie for a CUDA device: ``device`` in its memory; ``host`` in the computer's,
    page-locked, where its kernels read them over the bus; ``auto`` for what has room, see `pipeline.loaders.room`.
    """

    holds_all: ClassVar[bool] = True

    def __init__(self, prepared: PreparedSet, split: str, options: LoaderOptions) -> None:
        super().__init__(prepared, split, options)
        self._options = options
        self._whole: SplitView | RaggedView | None = self._decoded() if self.largest else self._copied()

    def _copied(self) -> SplitView:
        packed = self.prepared.packed(self.split)
        pixels = packed.images.reshape(-1)
        room = self._room(len(pixels))
        # A copy: a mapped file must not back a tensor that outlives it or that someone writes to.
        room.write(torch.tensor(pixels))
        labels = torch.tensor(packed.labels, device=self.device)
        return SplitView(room.data.view(packed.images.shape), labels, labels[:0])

    def _decoded(self) -> RaggedView:
        files = ImageFiles(self.prepared, self.split)
        shapes = files.shapes
        offsets = begins(shapes.sizes)
        room = self._room(int(shapes.sizes.sum()))
        show = self._options.progress
        shown = show(f"decoding {self.split}", self.count) if show is not None else nullcontext(lambda done: None)
        pool = ThreadPoolExecutor(self.workers or usable_cores(), thread_name_prefix="decode")
        with shown as advance:
            try:
                pieces = [(room, files, *piece) for piece in _pieces(offsets.numpy())]
                for done in pool.map(_decode_piece, pieces):
                    advance(done)
            finally:
                pool.shutdown(cancel_futures=True)
        if self.device.type == "cuda":
            # The threads' copies were queued on a stream of their own.
            torch.cuda.synchronize(self.device)
        columns = (offsets, shapes.heights, shapes.widths, shapes.labels, offsets[:0])
        return RaggedView(room.data, *(column.to(self.device) for column in columns))

    def _room(self, size: int) -> Room:
        what = f"split '{self.split}' of {self.prepared.root}"
        return Room(size, what, self.device, self._options.resident_memory)

    def _split(self) -> SplitView | RaggedView:
        if self._whole is None:
            raise self._closed()
        return self._whole

    def _batches(self, start: int) -> Generator[OwnBatch]:
        for view in self._views(start):
            yield view.gather(self.data_length) if isinstance(view, RaggedView) else view.gather()

    def _views(self, start: int) -> Generator[SplitView | RaggedView]:
        whole = self._split()
        for indices in self.index_batches(start, self.device):
            yield whole._replace(indices=indices)

    def feed(self) -> Iterator[SplitView | RaggedView]:
        return self._begin_pass(self._views)

    def example(self) -> SplitView | RaggedView:
        """The whole split, as `feed` gives it, with the first indices of the file."""
        return self._split()._replace(indices=torch.arange(self.batch_size, device=self.device))

    def close(self) -> None:
        super().close()
        self._whole = None


def _pieces(offsets: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """(first image, the one after the last, where their pixels begin) of parts of about `_PIECE_BYTES`."""
    first = 0
    while first < len(offsets):
        end = int(np.searchsorted(offsets, offsets[first] + _PIECE_BYTES))
        yield first, end, int(offsets[first])
        first = end


def _decode_piece(piece: tuple[Room, ImageFiles, int, int, int]) -> int:
    """How many images they were."""
    room, files, first, end, at = piece
    size = int(files.shapes.sizes[first:end].sum())
    if room.host is not None:
        files.decode(first, end, room.host[at : at + size].numpy())
    else:
        pixels = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        files.decode(first, end, pixels.numpy())
        room.write(pixels, at)
    return end - first
