"""libjpeg-turbo by its own interface: the same pixels as from Pillow, which uses it too, in half of the time:
here they go straight to where they are wanted."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Of `Functions.decompress`: the order of the colours, and no shortcuts.
RGB, FLAGS = 0, 0
#: What `Functions.error_code` says of a file that can't be decoded; what is merely odd in one is a warning.
FATAL = 1
# By version 2.0 on Linux and macOS.
_NAMES = ("libturbojpeg.so.0", "libturbojpeg.0.dylib")


class Functions(NamedTuple):
    """Of the TurboJPEG API of version 2.0 (https://libjpeg-turbo.org/Documentation). Handles and addresses are whole
    numbers, as Numba wants them."""

    begin: Any
    """() -> handle."""
    decompress: Any
    """(handle, file, its size, pixels, width, bytes of a line or 0, height, format, flags) -> 0 or an error."""
    error_code: Any
    """(handle) -> code."""
    end: Any
    """(handle)."""


def functions(library: ctypes.CDLL) -> Functions:
    """AttributeError where the library is an older one."""
    address, number = ctypes.c_size_t, ctypes.c_int
    signatures = {
        "tjInitDecompress": (address, ()),
        "tjDecompress2": (number, (*[address] * 4, *[number] * 5)),
        "tjGetErrorCode": (number, (address,)),
        "tjDestroy": (number, (address,)),
    }
    found = []
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
        found.append(function)
    return Functions(*found)


@cache
def installed() -> Functions | None:
    """Of the system's library; None where there is none."""
    for name in _NAMES:
        try:
            return functions(ctypes.CDLL(name))
        except (OSError, AttributeError):
            continue
    return None


def decode(library: Functions, file: NDArray[np.uint8], pixels: NDArray[np.uint8], height: int, width: int) -> bool:
    """Write the pixels of a JPEG file of this shape, uint8 [H * W * 3]; False where it can't be decoded. Threads run it
    side by side."""
    handle = library.begin()
    failed = library.decompress(
        handle, file.ctypes.data, file.size, pixels.ctypes.data, width, 0, height, RGB, FLAGS
    )  # fmt: skip
    fatal = failed != 0 and library.error_code(handle) == FATAL
    library.end(handle)
    return not fatal
