"""A command's first seconds, and its last: importing torch without Python's collector."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """For the imports of torch and of what needs it, in a command's process.

    They make some 500,000 objects that live as long as the process. The collector would look through them again and
    again while they are made, at each full collection later, and twice when the process ends: a third of a short run.
    Where torch is imported already, the process is someone else's, and nothing changes.
    """
    if "torch" in sys.modules:
        yield
        return
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.freeze)
        if enabled:
            gc.enable()
