"""Files of named tensors: safetensors (https://github.com/huggingface/safetensors#format).

8 bytes little-endian length of the header; the header in JSON, which we pad with spaces to byte 4096; the tensors, one
after the other without holes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fast_train.common.text import show
from fast_train.data_prep.errors import ANEW, PreparedSetError

#: Where the tensors begin: a whole page, so that a mapping of the first one is aligned.
DATA_START = 4096
DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype("u1"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8")}
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


def write_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
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
