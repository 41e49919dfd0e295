"""A command's first seconds, and its last: what it can print, importing torch without Python's collector, where it
keeps code, and Ctrl-C when all is done."""

from __future__ import annotations

import atexit
import gc
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def print_anything() -> None:
    """Have standard output show a question mark for a letter that its encoding lacks, where Python would raise an
    error: names of classes may be in any script, and come when the training is over. Standard error never raises
    one."""
    # Whoever embeds a command may have put any object there.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def end_at_once_by_ctrl_c() -> None:
    """From here on Ctrl-C ends the process without a word: for one that has nothing left to do but to end."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


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
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.freeze)
        if enabled:
            gc.enable()


def _keep_compiled_code() -> None:
    """Have torch.compile and Triton keep their code in the user's cache folder: the next run compiles nothing.

    torch's own place is the folder for temporary files, which a restart of the machine empties; it is settled once
    torch.compile's modules are imported, as torchvision does. A place that the user has chosen stays; where the cache
    folder can't be written, torch's own serves.
    """
    # Here, not above: a command imports this before it can tell anyone of Ctrl-C.
    from fast_train.common.files import cache_folder

    try:
        folder = cache_folder() / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return
    if os.access(folder, os.W_OK):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
        os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
