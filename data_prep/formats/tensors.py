"""Files of named tensors: safetensors (https://github.com/huggingface/safetensors#format).

8 bytes little-endian length of the header; the header in JSON, which we pad with spaces to byte 4096; the tensors, one
after the other without holes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fast_train.common.text import one_line, show
from fast_train.data_prep.errors import ANEW, PreparedSetError
from fast_train.data_prep.formats.base import SplitFile, flush

#: Where the tensors begin: a whole page, so that a mapping of the first one is aligned.
DATA_START = 4096
DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype("u1"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8")}
#: Columns of a number for each image, and the type of each, one of `DTYPES`.
COLUMNS = {"offsets": "I64", "labels": "I64", "heights": "I32", "widths": "I32"}
_MAX_HEADER = 1 << 20


class Stored(NamedTuple):
    """A tensor in a file: its type, one of `DTYPES`, its shape, and the byte of the file at which it begins."""

    dtype: str
    shape: tuple[int, ...]
    begin: int


def read_tensors(path: Path) -> dict[str, Stored]:
    """The tensors of a file, checked against its size; PreparedSetError for anything that is not as the format says."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_MAX_HEADER, size - 8):
                raise broken(path, f"its {size} bytes can't hold the header it announces")
            text = file.read(length)
    except OSError as error:
        raise PreparedSetError(f"{show(path)} can't be read: {error.strerror}") from error
    try:
        tensors = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise broken(path, "its header is not JSON") from error
    if not isinstance(tensors, dict):
        raise broken(path, "its header is not a JSON object")
    tensors.pop("__metadata__", None)
    places = {name: _check_tensor(path, name, tensor) for name, tensor in tensors.items()}
    end = 0
    for begin, stop in sorted(places.values()):
        if begin != end:
            raise broken(path, "its tensors overlap or leave holes")
        end = stop
    if 8 + length + end != size:
        raise broken(path, f"it has {size} bytes, its header describes {8 + length + end}")
    return {
        name: Stored(tensor["dtype"], tuple(tensor["shape"]), 8 + length + places[name][0])
        for name, tensor in tensors.items()
    }


def load_tensors(path: Path, tensors: Iterable[Stored]) -> list[NDArray[Any]]:
    """Bytes as a read-only memory map, columns of numbers in memory; PreparedSetError where the system fails."""
    try:
        return [_load(path, tensor) for tensor in tensors]
    except (OSError, ValueError) as error:
        raise PreparedSetError(f"{show(path)} can't be mapped into memory: {one_line(error)}") from error


def _load(path: Path, tensor: Stored) -> NDArray[Any]:
    if tensor.dtype == "U8":
        return np.memmap(path, dtype=np.uint8, mode="r", offset=tensor.begin, shape=tensor.shape)
    values = np.fromfile(path, dtype=DTYPES[tensor.dtype], count=tensor.shape[0], offset=tensor.begin)
    # Big-endian machines read it too.
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _check_tensor(path: Path, name: str, tensor: Any) -> tuple[int, int]:
    """The tensor's first byte and the one after its last, counted from the end of the header."""
    fields: dict[str, Any] = tensor if isinstance(tensor, dict) else {}
    shape: Any
    offsets: Any
    shape, offsets, dtype = fields.get("shape"), fields.get("data_offsets"), fields.get("dtype")
    if not (_are_counts(shape) and _are_counts(offsets) and len(offsets) == 2 and isinstance(dtype, str)):
        raise broken(path, f"its header does not describe the tensor '{show(name)}'")
    if dtype not in DTYPES or offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        raise broken(path, f"the size of its tensor '{show(name)}' disagrees with its shape")
    return offsets[0], offsets[1]


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


class TensorFile(SplitFile):
    """``SPLIT.safetensors`` in a folder: a tensor of bytes, [n, *item], to which is appended, and behind it columns of
    numbers, at a multiple of 8 bytes: up to 7 zeros, ``padding``, come before them."""

    def __init__(self, folder: Path, split: str, name: str, item: tuple[int, ...] = ()) -> None:
        self._name, self._item, self._size = name, item, 0
        self._columns: dict[str, list[NDArray[Any]]] = {}
        self._file = open(folder / f"{split}.safetensors", "xb")  # noqa: SIM115  # open until `close`
        self._file.seek(DATA_START)

    def append(self, content: Iterable[bytes | memoryview], **columns: ArrayLike) -> None:
        """columns: further numbers of each column of `COLUMNS`."""
        for part in content:
            self._size += self._file.write(part)
        for name, values in columns.items():
            self._columns.setdefault(name, []).append(np.asarray(values, dtype=DTYPES[COLUMNS[name]]))

    def finish(self) -> tuple[str, ...]:
        columns = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        tensors = {self._name: ("U8", (self._size // math.prod(self._item), *self._item))}
        if padding := -self._size % 8:
            tensors["padding"] = ("U8", (padding,))
        self._file.write(bytes(padding))
        for values in columns.values():
            self._file.write(values.data)
        self._file.seek(0)
        self._file.write(_header({**tensors, **{name: (COLUMNS[name], v.shape) for name, v in columns.items()}}))
        flush(self._file)
        return (Path(self._file.name).name,)

    def close(self) -> None:
        self._file.close()


def _header(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The first `DATA_START` bytes of a file that holds tensors, (type, shape) by name, in this order."""
    described, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = at + math.prod(shape) * DTYPES[dtype].itemsize
        described[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    length = DATA_START - 8
    return length.to_bytes(8, "little") + json.dumps(described, separators=(",", ":")).encode().ljust(length)


def broken(path: Path, what: str) -> PreparedSetError:
    """What to tell of a file that is not whole."""
    return PreparedSetError(f"{show(path)} is not a whole packed file: {what}; {ANEW}")
