"""FFCV: a thread of FFCV's and compiled code on all cores read and decode batches ahead of the step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from data_prep.manifest import PreparedSet
from pipeline.loaders.base import Batch, Loader
from pipeline.loaders.transfer import DeviceRing

if TYPE_CHECKING:
    from pipeline.loaders.ffcv_reader import Reader, Reading


class FfcvLoader(Loader):
    """Reads the ``.beton`` of a split with the FFCV library, in our order; bytes cross to the device asynchronously.

    ``workers``: FFCV's decoding threads, by default one for each core.
    """

    format: ClassVar[str] = "ffcv"
    reuses_buffers: ClassVar[bool] = True

    def __init__(self, prepared: PreparedSet, split: str, **options: Any) -> None:
        super().__init__(prepared, split, **options)
        # Checked before FFCV sees it: FFCV trusts every number in the file.
        path = prepared.beton(split)
        import numba

        from pipeline.loaders.ffcv_reader import Reader

        most = numba.config.NUMBA_NUM_THREADS
        workers = os.cpu_count() or 1 if self.workers is None else self.workers
        self._reader: Reader | None = Reader(
            path,
            batch_size=self.batch_size,
            workers=min(max(workers, 1), most),
            drop_last=self.train,
            count=self.count,
        )
        self._ring: DeviceRing | None = None
        if self.device.type == "cuda":
            self._ring = DeviceRing(self.example(), self.device)
        self._reading: Reading | None = None

    @classmethod
    def missing(cls) -> str | None:
        threads = torch.get_num_threads()
        try:
            import pipeline.loaders.ffcv_reader  # noqa: F401  # whether it can be imported
        except Exception as error:
            reason = " ".join(str(error).split())
            return (
                f"FFCV can't be imported ({reason}); install it: apt-get install g++ pkg-config libopencv-dev "
                "libturbojpeg0-dev, then pip install ffcv"
            )
        finally:
            # Importing FFCV leaves the whole process one thread of torch's.
            torch.set_num_threads(threads)
        return None

    def _batches(self, start: int) -> Iterator[Batch]:
        reading = self._begin(start)
        try:
            for images, labels, indices in reading:
                batch = Batch(images, labels.squeeze(1), indices.squeeze(1))
                if self._ring is None:
                    yield batch
                else:
                    yield self._ring.send(batch)
                    # Past this point FFCV may overwrite its own copy of the batch.
                    self._ring.wait()
        finally:
            reading.stop()

    def _begin(self, start: int) -> Reading:
        if self._reader is None:
            raise ValueError(f"the loader of split '{self.split}' is closed; build a new one")
        self._stop()
        self._reader.order.indices = self.order()[start * self.batch_size :].numpy().astype("uint64")
        # The streams that FFCV makes belong to the device that is current.
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            self._reading = iter(self._reader)
        return self._reading

    def _stop(self) -> None:
        if self._reading is not None:
            self._reading.stop()
        self._reading = None

    def close(self) -> None:
        self._stop()
        self._reader = self._ring = None
