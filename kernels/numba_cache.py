"""Functions compiled by Numba and kept on the disk for the next process, whatever the disk does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache


def compiled(function: Callable[..., Any]) -> Any:
    """``function``, compiled when it is first called, free of Python's lock.

    Code is kept where Numba keeps it: in ``NUMBA_CACHE_DIR``, beside the function's file or in the user's home; nowhere
    if none of these takes it.
    """
    dispatcher = numba.njit(nogil=True)(function)
    # Numba refuses where there is no folder.
    with suppress(RuntimeError):
        # What its `enable_caching` does, with its own class.
        dispatcher._cache = _Cache(function)
    return dispatcher


class _Cache(FunctionCache):
    """Numba's cache, which itself raises what it meets: files that a power failure cut off, or a full disk."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        # Of a torn file, pickle raises nearly anything.
        except Exception:
            # Without its index, the code is compiled and written anew.
            with suppress(OSError):
                for index in Path(self.cache_path).glob("*.nbi"):
                    index.unlink()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            warnings.warn(
                f"{self.cache_path}: {error.strerror}; code is compiled anew in each process; make room, or set "
                "NUMBA_CACHE_DIR to another folder",
                stacklevel=2,
            )
