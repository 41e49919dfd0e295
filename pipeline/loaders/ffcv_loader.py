"""FFCV: a thread of FFCV's and compiled code on all cores read and decode batches ahead of the step."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import nullcontext
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fast_train.common.text import show
from fast_train.data_prep.errors import ANEW, PreparedSetError
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.loaders.base import Loader, LoaderOptions
from fast_train.pipeline.loaders.batch import Batch, OwnBatch
from fast_train.pipeline.loaders.image_files import Shapes

if TYPE_CHECKING:
    from fast_train.pipeline.loaders.ffcv_reader import Reader

# Batches that the device holds at a time.
_DEPTH = 4


class FfcvLoader(Loader):
    """Reads the ``.beton`` of a split with the FFCV library, in our order; bytes cross to the device asynchronously.

    ``workers``: FFCV's decoding threads, by default `spare_cores`.
    """

    format: ClassVar[str] = "ffcv"
    optional: ClassVar[tuple[str, str]] = (
        "ffcv_reader",
        "FFCV can't be imported ({}); install it: apt-get install g++ pkg-config libopencv-dev libturbojpeg0-dev, then "
        "pip install ffcv",
    )
    lends_buffers: ClassVar[bool] = True

    def __init__(self, prepared: PreparedSet, split: str, options: LoaderOptions) -> None:
        super().__init__(prepared, split, options)
        # Checked before FFCV sees it: FFCV trusts every number in the file.
        beton = prepared.beton(split)
        self._path = beton.path
        self._shapes = Shapes(beton.heights, beton.widths, beton.labels) if self.largest else None
        # Here and not above: FFCV is optional.
        from fast_train.pipeline.loaders.ffcv_reader import Reader

        workers = self.spare_cores() if self.workers is None else self.workers
        self._reader: Reader | None = Reader(
            self._path,
            batch_size=self.batch_size,
            workers=workers,
            drop_last=self.train,
            count=self.count,
            ragged=self._shapes is not None,
        )
        self._ring: _DeviceRing | None = None
        if self.device.type == "cuda":
            self._ring = _DeviceRing(self.blank(), self.device)

    def _batches(self, start: int) -> Generator[OwnBatch]:
        if self._reader is None:
            raise self._closed()
        ring = self._ring
        self._reader.order.indices = self.order()[start * self.batch_size :].numpy().astype("uint64")
        # The streams that FFCV makes belong to the device that is current.
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            reading = iter(self._reader)
        try:
            for images, labels, indices in reading:
                batch = self._checked(images, labels.squeeze(1), indices.squeeze(1))
                if ring is None:
                    yield batch
                else:
                    yield ring.send(batch)
                    # Past this point FFCV may overwrite its own copy of the batch.
                    ring.wait()
        finally:
            if ring is not None:
                ring.wait()
            reading.stop()

    def _checked(self, images: Tensor, labels: Tensor, indices: Tensor) -> OwnBatch:
        """A batch of what the reader gave; PreparedSetError where FFCV could not decode an image."""
        if self._shapes is None:
            return Batch(images, labels, indices)
        room = images.view(-1)
        failed = room[len(room) - len(indices) :].nonzero()
        if len(failed):
            raise PreparedSetError(f"{show(self._path)} holds an image that can't be decoded; {ANEW}")
        batch = self._shapes.batch(room, indices)
        return batch._replace(data=room[: int(self._shapes.sizes[indices].sum())])

    def close(self) -> None:
        super().close()
        self._reader = self._ring = None


class _DeviceRing:
    """A ring of device buffers, filled on a stream of its own while the step works on the batches before.

    largest: a batch on the device, of the largest shape that will be sent.
    """

    def __init__(self, largest: OwnBatch, device: torch.device) -> None:
        self._device = device
        self._slots = [largest.clone() for _ in range(_DEPTH)]
        self._stream = torch.cuda.Stream(device)
        # The slots may lie in memory that work queued before still uses.
        self._stream.wait_stream(torch.cuda.current_stream(device))
        # _read[i] is recorded when all work that reads slot i is queued, _copied when the last copy is queued.
        self._read = [torch.cuda.Event() for _ in range(_DEPTH)]
        self._copied = torch.cuda.Event()
        self._sent = 0

    def send(self, batch: OwnBatch) -> OwnBatch:
        """Copy a batch in page-locked host memory; the device's copy is valid until the next one is sent.

        Neither the host nor the step waits, unless the batch that was in this slot is still in use.
        """
        current = torch.cuda.current_stream(self._device)
        # The caller has queued all its work on the batch before.
        self._read[(self._sent - 1) % _DEPTH].record(current)
        number = self._sent % _DEPTH
        filled = self._slots[number]
        slot = type(filled)(
            *(tensor if name == "data" else tensor[: len(batch.indices)] for name, tensor in filled._asdict().items())
        )
        self._stream.wait_event(self._read[number])
        with torch.cuda.stream(self._stream):
            for target, source in zip(slot, batch, strict=True):
                # Data may be longer here than the pixels that fill it.
                target[: len(source)].copy_(source, non_blocking=True)
            self._copied.record(self._stream)
        current.wait_event(self._copied)
        self._sent += 1
        return slot

    def wait(self) -> None:
        """Return when the batch that was sent last has left host memory."""
        self._copied.synchronize()
