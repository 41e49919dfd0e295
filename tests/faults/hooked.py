"""Run a command as ``python -m MODULE ...`` does, with a fault at one of its calls:
``python hooked.py PLACE NUMBER ACTION MODULE [FLAG ...]``.

PLACE: ``module:function`` or ``module:Class.method``. At its NUMBER-th call (from 1) ACTION happens first.
"""

import errno
import importlib
import multiprocessing
import os
import runpy
import shutil
import signal
import sys
from functools import wraps
from pathlib import Path

from fast_train.common.startup import quick_imports


def fill(_, folder):
    """The disk on which a folder lies is full."""
    with open(Path(folder) / "filler", "ab", buffering=0) as file:
        for size in (1 << 16, 1 << 9, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


def send(_, name):
    """A signal to the whole process group, as a terminal and a batch system send it."""
    os.killpg(os.getpgrp(), getattr(signal, name))


def to_workers(_, name):
    for child in multiprocessing.active_children():
        os.kill(child.pid, getattr(signal, name))


def poison(arguments, _):
    """The first weights of the step that the call is of are no numbers any more."""
    import torch

    with torch.no_grad():
        next(arguments[0].model.parameters()).fill_(torch.nan)


def fail(_, kind):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise {"MemoryError": MemoryError, "RuntimeError": RuntimeError, "full": full}[kind]


def delete(_, path):
    shutil.rmtree(path)


def replace(_, paths):
    """A folder takes another's place."""
    old, new = paths.split(":")
    os.rename(old, f"{old}-before")
    os.rename(new, old)


def overwrite(_, path):
    """Every byte of a file is another one, in place."""
    with open(path, "r+b") as file:
        content = file.read()
        file.seek(0)
        file.write(bytes(255 - byte for byte in content))


def hook(place, number, action):
    """action: the name of a function above, and after a ``=`` what it is given."""
    module_name, _, path = place.partition(":")
    *holders, name = path.split(".")
    # As the command would, which finds torch imported.
    with quick_imports():
        holder = importlib.import_module(module_name)
    for part in holders:
        holder = getattr(holder, part)
    real, calls = getattr(holder, name), 0
    act, _, given = action.partition("=")

    @wraps(real)
    def called(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == number:
            Path(os.environ["FAULT_MADE"]).touch()
            globals()[act](arguments, given)
        return real(*arguments, **options)

    setattr(holder, name, called)


if __name__ == "__main__":
    _, place, number, action, module, *flags = sys.argv
    hook(place, int(number), action)
    sys.argv[1:] = flags
    runpy.run_module(module, run_name="__main__", alter_sys=True)
