"""What can go wrong where torch.compile compiles: its errors, and the code that a killed run leaves half written."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TypeVar

from fast_train.pipeline.engine.memory import memory_error
from fast_train.pipeline.errors import CompileError

# Of a compiler's complaint, in letters.
_LONGEST_REASON = 300
T = TypeVar("T")


def compiled(call: Callable[[], T], *, what: str) -> T:
    """What ``call`` returns, which has torch.compile compile. CompileError, in one line, for what goes wrong there; out
    of memory it is no such error. what: all that the code depends on.

    For a GPU torch.compile starts processes to compile in, even where it then finds all code in its cache, and the end
    of a run waits until these have imported torch. So there are none for what was compiled before.

    torch.compile trusts each library in its cache, even one whose compiler was killed while it wrote it. Loading that
    one fails, or ends the process. So such libraries are removed first. Another process may remove one that is only
    being written: a library that can't be loaded is made once more.
    """
    # Here and not above: no other run needs them.
    from torch._inductor import config
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folder = cache_dir()
    _remove_torn(folder)
    done = Path(folder, "fast-train", hashlib.sha256(what.encode()).hexdigest())
    with config.patch(compile_threads=1) if done.exists() else nullcontext():
        result = _mended(call, folder)
    # Without this mark the next run starts these processes once more.
    with suppress(OSError):
        done.parent.mkdir(exist_ok=True)
        done.touch()
    return result


def _mended(call: Callable[[], T], folder: str) -> T:
    """What ``call`` returns; a library in the cache that can't be loaded is removed, once."""
    again = set()
    while True:
        try:
            with _compile_errors():
                return call()
        except CompileError as error:
            library = re.search(rf"({re.escape(folder)}/\S+\.so): ", str(error.__cause__))
            if library is None or library[1] in again:
                raise
            with suppress(OSError):
                os.unlink(library[1])
            again.add(library[1])


def _remove_torn(folder: str) -> None:
    """Remove libraries that end before their table of sections, which is their end, or have none."""
    for path in Path(folder).glob("*/*.so"):
        # Others may remove it at the same time; a cache of someone else is theirs to mend.
        with suppress(OSError):
            with path.open("rb") as file:
                header, size = file.read(64), os.fstat(file.fileno()).st_size
            # The table's offset, size and number of its entries (ELF specification, its form of 64 bits: e_shoff ...).
            offset, each, count = struct.unpack_from("<40xQ10xHH", header.ljust(64, b"\0"))
            if header[:4] in (b"", b"\0\0\0\0", b"\x7fELF") and not 64 < offset + each * count <= size:
                path.unlink()


@contextmanager
def _compile_errors() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # Of what a signal cuts short, the compiler prints where it was.
            warnings.filterwarnings("ignore", message="Error detected in", category=UserWarning)
            yield
    except Exception as error:
        # Where the backward pass is compiled, torch wraps no error in one of its own.
        modules = {frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)}
        compiling = any(name.startswith(("torch._dynamo.", "torch._inductor.")) for name in modules)
        if not compiling or memory_error(error) is not None:
            raise
        lines = str(error).splitlines() or [type(error).__name__]
        reason = next((line for line in lines if "error: " in line), lines[0])
        raise CompileError(f"torch.compile failed: {reason.strip()[:_LONGEST_REASON]}; add --no-compile") from error
