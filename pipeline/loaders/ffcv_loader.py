"""FFCV: a thread of FFCV's and compiled code on all cores read and decode batches ahead of the step."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import nullcontext
from typing import TYPE_CHECKING, ClassVar

import torch

from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.loaders.base import Loader, LoaderOptions
from fast_train.pipeline.loaders.batch import Batch
from fast_train.pipeline.loaders.transfer import DeviceRing

if TYPE_CHECKING:
    from fast_train.pipeline.loaders.ffcv_reader import Reader


class FfcvLoader(Loader):
    """Reads the ``.beton`` of a split with the FFCV library, in our order; bytes cross to the device asynchronously.

    ``workers``: FFCV's decoding threads, by default one for each core.
    """

    format: ClassVar[str] = "ffcv"
    lends_buffers: ClassVar[bool] = True

    def __init__(self, prepared: PreparedSet, split: str, options: LoaderOptions) -> None:
        super().__init__(prepared, split, options)
        # Checked before FFCV sees it: FFCV trusts every number in the file.
        path = prepared.beton(split)
        # Here and not above: FFCV is optional.
        from fast_train.pipeline.loaders.ffcv_reader import Reader

        workers = os.cpu_count() or 1 if self.workers is None else self.workers
        self._reader: Reader | None = Reader(
            path, batch_size=self.batch_size, workers=workers, drop_last=self.train, count=self.count
        )
        self._ring: DeviceRing | None = None
        if self.device.type == "cuda":
            self._ring = DeviceRing(self._zeros(), self.device)

    @classmethod
    def missing(cls) -> str | None:
        try:
            import fast_train.pipeline.loaders.ffcv_reader  # noqa: F401  # whether it can be imported
        except Exception as error:
            reason = " ".join(str(error).split())
            return (
                f"FFCV can't be imported ({reason}); install it: apt-get install g++ pkg-config libopencv-dev "
                "libturbojpeg0-dev, then pip install ffcv"
            )
        return None

    def _batches(self, start: int) -> Generator[Batch]:
        if self._reader is None:
            raise self._closed()
        ring = self._ring
        self._reader.order.indices = self.order()[start * self.batch_size :].numpy().astype("uint64")
        # The streams that FFCV makes belong to the device that is current.
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            reading = iter(self._reader)
        try:
            for images, labels, indices in reading:
                batch = Batch(images, labels.squeeze(1), indices.squeeze(1))
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

    def close(self) -> None:
        super().close()
        self._reader = self._ring = None
