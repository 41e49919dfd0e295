"""FFCV's reader, held to an order from outside and to an end that releases its thread. Imports FFCV."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from queue import Empty
from types import FunctionType
from typing import Any

import numba
import numba.typed
import numpy as np
import torch
from numpy.typing import NDArray

from fast_train.pipeline.loaders.turbojpeg import FATAL, FLAGS, RGB, functions

# Importing FFCV leaves the whole process one thread of torch's.
_threads = torch.get_num_threads()
# FFCV keeps the names of two image modes in a dictionary of Numba's, for which Numba compiles code for seconds at each
# import. Only plain Python reads it, so a plain dictionary does.
_typed_dict = numba.typed.Dict
numba.typed.Dict = dict
try:
    from ffcv import libffcv
    from ffcv.fields.rgb_image import IMAGE_MODES, SimpleRGBImageDecoder
    from ffcv.loader import Loader as FfcvLoader
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.memory_managers import OSCacheManager
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.compiler import Compiler
    from ffcv.pipeline.state import State
    from ffcv.transforms import ToTensor
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

_compile = Compiler.compile
_compiled: dict[tuple[Any, ...], Any] = {}


def _compile_once(compiler: type[Compiler], code: FunctionType, signature: Any = None) -> Any:
    """In place of FFCV's own, which compiles the functions of each loader anew, for a second.

    Two are the same where their code is and what they hold from around it, such as other compiled functions.
    """
    held = tuple((type(cell.cell_contents), cell.cell_contents) for cell in code.__closure__ or ())
    key = (code.__code__, held, signature, compiler.num_threads > 1)
    try:
        if key not in _compiled:
            _compiled[key] = _compile(code, signature)
        return _compiled[key]
    except TypeError:
        # It holds an array.
        return _compile(code, signature)


Compiler.compile = classmethod(_compile_once)


def _compile_read(manager: OSCacheManager) -> Any:
    """What gives compiled code the bytes that begin at an address: a function of it and of (file, addresses, sizes).

    FFCV's own, to say that a file is only read, changes Numba's type of all arrays of bytes, for the whole process.
    """
    del manager
    file_bytes, numbers = numba.types.Array(numba.uint8, 1, "C", readonly=True), numba.uint64[::1]
    held = numba.types.Tuple([file_bytes, numbers, numbers])

    def read(address: Any, state: Any) -> Any:
        file, addresses, sizes = state
        return file[address : address + sizes[np.searchsorted(addresses, address)]]

    return Compiler.compile(read, file_bytes(numba.uint64, held))


OSCacheManager.compile_reader = _compile_read


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


# Of the library that FFCV is linked with. By names of their own: compiled code knows no tuple of functions.
_begin, _decompress, _error_code, _end = functions(ctypes.CDLL(libffcv.lib._name))


def _decode_jpeg(file: int, size: int, pixels: int, height: int, width: int) -> bool:
    """Whether all pixels of a file of so many bytes were written, uint8 [H, W, 3]. Compiled.

    file, pixels: addresses, as FFCV changes a type of Numba's that arrays would be known by.

    FFCV's own way takes a coarser transform, for up to 21 levels of difference and no gain in time, and no notice of
    errors, which leave the pixels of another image.
    """
    handle = _begin()
    failed = _decompress(handle, file, size, pixels, width, 0, height, RGB, FLAGS)
    fatal = failed != 0 and _error_code(handle) == FATAL
    _end(handle)
    return not fatal


class FilesDecoder(SimpleRGBImageDecoder):
    """Images of their own shapes, one after the other in a batch's buffer, uint8 [N, largest + 1]: its first bytes are
    their pixels, its last N say 1 for each that could not be decoded."""

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        sizes = 3 * self.metadata["height"].astype(np.int64) * self.metadata["width"]
        shape, dtype = (int(sizes.max()) + 1,), np.dtype("u1")
        return replace(previous_state, jit_mode=True, shape=shape, dtype=dtype), AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable[..., Any]:
        read, images, decode_jpeg = self.memory_read, Compiler.get_iterator(), Compiler.compile(_decode_jpeg)
        jpeg = IMAGE_MODES["jpg"]

        def decode(batch_indices: Any, destination: Any, metadata: Any, storage_state: Any) -> Any:
            count = len(batch_indices)
            room = destination.reshape(-1)
            begins = np.zeros(count + 1, dtype=np.int64)
            for i in range(count):
                image = metadata[batch_indices[i]]
                begins[i + 1] = begins[i] + 3 * np.int64(image["height"]) * np.int64(image["width"])
            for i in images(count):
                image = metadata[batch_indices[i]]
                file = read(image["data_ptr"], storage_state)
                pixels = room[begins[i] : begins[i + 1]]
                whole = True
                if image["mode"] == jpeg:
                    height, width = np.int64(image["height"]), np.int64(image["width"])
                    whole = decode_jpeg(file.ctypes.data, file.size, pixels.ctypes.data, height, width)
                else:
                    pixels[:] = file
                room[len(room) - count + i] = 0 if whole else 1
            return destination

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


class Reader(FfcvLoader):
    """Batches [images, labels, indices] of a checked ``.beton`` in host memory, in the order that ``order`` says.

    A batch lies in FFCV's buffers and is overwritten soon after the next one is asked for. workers: decoding threads,
    from 1 to what Numba has. ragged: the images have their own shapes, see `FilesDecoder`.
    """

    def __init__(self, path: Path, *, batch_size: int, workers: int, drop_last: bool, count: int, ragged: bool) -> None:
        self.order = Order(count)
        super().__init__(
            str(path),
            batch_size=batch_size,
            num_workers=min(max(workers, 1), numba.config.NUMBA_NUM_THREADS),
            order=self.order,
            drop_last=drop_last,
            os_cache=True,
            pipelines={"image": [FilesDecoder(), ToTensor()]} if ragged else {},
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
