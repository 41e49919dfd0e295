"""A command's first seconds: importing torch without Python's collector, and where compiled code is kept."""

from __future__ import annotations

import atexit
import gc
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fast_train.common.files import cache_folder
from fast_train.common.phases import phase


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
    _keep_compiled_code()
    # A notebook hands the name of its own down to the processes that it starts; matplotlib refuses one that it can't
    # import, and the commands, which draw into files, need none.
    os.environ.pop("MPLBACKEND", None)
    enabled = gc.isenabled()
    gc.disable()
    try:
        with phase("imports"):
            yield
    finally:
        gc.freeze()
        atexit.register(gc.freeze)
        if enabled:
            gc.enable()


def _keep_compiled_code() -> None:
    """Have torch.compile and Triton keep their code in the user's cache folder: the next run compiles nothing.

    torch's own place is the folder for temporary files, which a restart of the machine empties; it is settled once
    torch.compile's modules are imported, as torchvision does. A place that the user has chosen stays; where there is no
    cache folder that is the user's alone, or that serves, torch's own does.
    """
    try:
        folder = cache_folder() / "compiled"
        folder.mkdir(exist_ok=True)
    except OSError:
        return
    if _serves(folder):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
        os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))


def _serves(folder: Path) -> bool:
    """Whether a file can be written there, named in a compiler's command line as torch writes it, and run."""
    try:
        one_word = shlex.split(str(folder)) == [str(folder)]
    except ValueError:
        return False
    # macOS has no word for it.
    no_programs = getattr(os, "ST_NOEXEC", 0)
    return one_word and os.access(folder, os.W_OK) and not os.statvfs(folder).f_flag & no_programs
