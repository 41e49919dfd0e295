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
from torch import Tensor

from fast_train.common.cores import usable_cores
from fast_train.data_prep.manifest import PreparedSet
from fast_train.kernels.order import epoch_order
from fast_train.pipeline.loaders.base import Loader, LoaderOptions
from fast_train.pipeline.loaders.batch import AnyBatch, OwnBatch, RaggedView, SplitView, begins
from fast_train.pipeline.loaders.image_files import ImageFiles
from fast_train.pipeline.loaders.room import Room

# Of pixels that a thread decodes at a time: many images, and little memory for each thread.
_PIECE_BYTES = 8 << 20
# An epoch that no training comes to: its order decides which part of the split is whose.
_OF_THE_PARTS = 2**31 - 1


class ResidentLoader(Loader):
    """CIFAR-10's training split takes 154 MB; 3,000 photographs of 256 pixels a side take 0.8 GB. Images that are
    stored as files are decoded once, by ``workers`` threads, by default one for each usable core.

    ``resident_memory``: where the pixels lie for a CUDA device: ``device`` in its memory; ``host`` in the computer's,
    page-locked, where its kernels read them over the bus; ``auto`` for what has room, see `pipeline.loaders.room`.

    With ``shard`` each rank holds its part of the training split, the same in every epoch, and draws its part of a
    batch from that: another order than on one rank, and as random within each part.
    """

    holds_all: ClassVar[bool] = True

    def __init__(self, prepared: PreparedSet, split: str, options: LoaderOptions) -> None:
        super().__init__(prepared, split, options)
        self._options = options
        #: Of the images that are here, their numbers in the split, rising; None for all of it.
        self._numbers: Tensor | None = None
        if self.shards > 1:
            mine = epoch_order(self.count, seed=self.seed, epoch=_OF_THE_PARTS)[self.rank :: self.shards]
            self._numbers = mine[: self.count // self.shards].sort().values
        self._whole: SplitView | RaggedView | None = self._decoded() if self.largest else self._copied()
        if self._numbers is not None:
            self._numbers = self._numbers.to(self.device)

    def _copied(self) -> SplitView:
        """Of the images that are here."""
        packed = self.prepared.packed(self.split)
        images, labels = packed.images, packed.labels
        if self._numbers is not None:
            images, labels = images[self._numbers.numpy()], labels[self._numbers.numpy()]
        room = self._room(images.size)
        # Copies: a mapped file must not back a tensor that outlives it or that someone writes to.
        room.write(torch.tensor(images.reshape(-1)))
        there = torch.tensor(labels, device=self.device)
        return SplitView(room.data.view(images.shape), there, there[:0])

    def _decoded(self) -> RaggedView:
        """Of all images of the split; the pixels are those of the images that are here."""
        files = ImageFiles(self.prepared, self.split)
        shapes = files.shapes
        numbers = torch.arange(self.count) if self._numbers is None else self._numbers
        sizes = shapes.sizes[numbers]
        offsets = torch.zeros_like(shapes.sizes)
        offsets[numbers] = begins(sizes)
        room = self._room(int(sizes.sum()))
        show = self._options.progress
        shown = show(f"decoding {self.split}", len(numbers)) if show is not None else nullcontext(lambda done: None)
        pool = ThreadPoolExecutor(self.workers or usable_cores(), thread_name_prefix="decode")
        with shown as advance:
            try:
                pieces = [(room, files, *piece) for piece in _pieces(numbers.numpy(), begins(sizes).numpy())]
                for done in pool.map(_decode_piece, pieces):
                    advance(done)
            finally:
                pool.shutdown(cancel_futures=True)
                files.close()
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
        whole = self._split()
        for places, numbers in self._indices(start):
            if isinstance(whole, RaggedView):
                yield whole._replace(indices=numbers).gather(self.data_length)
            else:
                yield whole._replace(indices=places).gather()._replace(indices=numbers)

    def _indices(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each batch where among the images that are here its own lie, and their numbers: int64 [N] each."""
        if self._numbers is None:
            yield from ((indices, indices) for indices in self.index_batches(start, self.device))
            return
        order = epoch_order(len(self._numbers), seed=self.seed, epoch=self.epoch, device=self.device)
        for places in order[: len(self) * self.batch_size].split(self.batch_size)[start:]:
            yield places, self._numbers[places]

    def _views(self, start: int) -> Generator[SplitView | RaggedView]:
        whole = self._split()
        for _, numbers in self._indices(start):
            yield whole._replace(indices=numbers)

    @property
    def _has_views(self) -> bool:
        """Whether `feed` gives views: the draws of augmentation go by the numbers in the split, which of images of one
        shape say where they lie only if all are here."""
        return self._numbers is None or bool(self.largest)

    def feed(self) -> Iterator[AnyBatch]:
        return self._begin_pass(self._views) if self._has_views else super().feed()

    def example(self) -> AnyBatch:
        """As `feed` gives it: the whole split with the first indices of those that are here, or a batch."""
        if not self._has_views:
            return super().example()
        numbers = torch.arange(self.count, device=self.device) if self._numbers is None else self._numbers
        return self._split()._replace(indices=numbers[: self.batch_size].clone())

    def close(self) -> None:
        super().close()
        self._whole = None


def _pieces(numbers: NDArray[np.int64], offsets: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Images, and where their pixels begin, in parts of about `_PIECE_BYTES`."""
    first = 0
    while first < len(offsets):
        end = int(np.searchsorted(offsets, offsets[first] + _PIECE_BYTES))
        yield numbers[first:end], int(offsets[first])
        first = end


def _decode_piece(piece: tuple[Room, ImageFiles, NDArray[np.int64], int]) -> int:
    """How many images they were."""
    room, files, numbers, at = piece
    size = int(files.shapes.sizes[numbers].sum())
    if room.host is not None:
        files.decode(numbers, room.host[at : at + size].numpy())
    else:
        pixels = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        files.decode(numbers, pixels.numpy())
        room.write(pixels, at)
    return len(numbers)
