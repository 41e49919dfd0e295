"""Importing without the collector, in a process of the command's own and in one of somebody else's; FFCV's import."""

import gc
import subprocess
import sys

import pytest

from pipeline.loaders import LOADERS
from pipeline.startup import quick_imports

_FRESH = """
import gc
from pipeline.startup import quick_imports
with quick_imports():
    assert not gc.isenabled()
    import torch
kept = gc.get_freeze_count()
assert gc.isenabled() and kept > 50_000, kept
"""


def test_a_commands_process_keeps_imported_objects_from_the_collector():
    done = subprocess.run([sys.executable, "-c", _FRESH], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_that_has_imported_torch_keeps_its_collector():
    assert "torch" in sys.modules
    before = gc.get_freeze_count()
    with quick_imports():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before


_FFCV = """
import numba.typed
theirs = numba.typed.Dict
import pipeline.loaders.ffcv_reader
from ffcv.fields.rgb_image import IMAGE_MODES
assert numba.typed.Dict is theirs
assert type(IMAGE_MODES) is dict and IMAGE_MODES == {"jpg": 0, "raw": 1}
"""


@pytest.mark.skipif(LOADERS["ffcv"].missing() is not None, reason=str(LOADERS["ffcv"].missing()))
def test_importing_ffcv_has_numba_compile_nothing_and_leaves_it_as_it_was():
    done = subprocess.run([sys.executable, "-c", _FFCV], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
