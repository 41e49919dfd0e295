"""FFCV's reader, held to an order from outside and to an end that releases its thread. Imports FFCV."""

from __future__ import annotations

import threading
from pathlib import Path
from queue import Empty
from typing import Any

import numba
import numba.typed
import numpy as np
import torch
from numpy.typing import NDArray

# Importing FFCV leaves the whole process one thread of torch's.
_threads = torch.get_num_threads()
# FFCV keeps the names of two image modes in a dictionary of Numba's, for which Numba compiles code for seconds at each
# import. Only plain Python reads it, so a plain dictionary does.
_typed_dict = numba.typed.Dict
numba.typed.Dict = dict
try:
    from ffcv.loader import Loader as FfcvLoader
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.pipeline.compiler import Compiler
    from ffcv.traversal_order.base import TraversalOrder
finally:
    numba.typed.Dict = _typed_dict
    torch.set_num_threads(_threads)

# One of Numba's threading layers stops the process when two threads enter it at once. A batch keeps all threads busy
# anyway, so readers take turns.
_DECODING = threading.Lock()


def _set_decoding_threads(compiler: type[Compiler], count: int) -> None:
    """In place of FFCV's own, which sets torch's threads too, for the whole process: those belong to the training."""
    compiler.num_threads = count
    numba.set_num_threads(count)


Compiler.set_num_threads = classmethod(_set_decoding_threads)


class Order(TraversalOrder):
    """The order that the next epoch follows: ``indices``, uint64 [n], set from outside."""

    def __init__(self, count: int) -> None:
        self.indices = np.arange(count, dtype=np.uint64)

    def __call__(self, loader: FfcvLoader) -> Order:
        """FFCV calls an order with its loader, expecting a class."""
        del loader
        return self

    def sample_order(self, epoch: int) -> NDArray[np.uint64]:
        """The order; FFCV's own count of epochs does not matter."""
        del epoch
        return self.indices


class Reader(FfcvLoader):
    """Batches [images, labels, indices] of a checked ``.beton`` in host memory, in the order that ``order`` says.

    A batch lies in FFCV's buffers and is overwritten soon after the next one is asked for. workers: decoding threads,
    from 1 to what Numba has.
    """

    def __init__(self, path: Path, *, batch_size: int, workers: int, drop_last: bool, count: int) -> None:
        self.order = Order(count)
        super().__init__(
            str(path),
            batch_size=batch_size,
            num_workers=min(max(workers, 1), numba.config.NUMBA_NUM_THREADS),
            order=self.order,
            drop_last=drop_last,
            os_cache=True,
        )

    def __iter__(self) -> Reading:
        Compiler.set_num_threads(self.num_workers)
        return Reading(self, self.next_traversal_order())


class Reading(EpochIterator):
    """A pass over the order, by a thread that works a few batches ahead; `stop` ends it at any point."""

    error: Exception | None = None

    def run(self) -> None:
        """The thread: an error ends the pass, where FFCV's own would leave the consumer waiting."""
        try:
            super().run()
        except Exception as error:
            self.error = error
            self.output_queue.put(None)

    def run_pipeline(self, *arguments: Any) -> tuple[Any, ...]:
        with _DECODING:
            return super().run_pipeline(*arguments)

    def __next__(self) -> tuple[Any, ...]:
        try:
            return super().__next__()
        except StopIteration:
            if self.error is not None:
                raise self.error from None
            raise

    def stop(self) -> None:
        """End the thread; stopping twice is fine."""
        self.terminate_event.set()
        self.iter_ixes = iter(())
        # The thread may wait for room to put a batch, or the end, into.
        while self.is_alive():
            try:
                self.output_queue.get(timeout=0.01)
            except Empty:
                continue
        self.close()
