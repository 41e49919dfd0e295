"""Importing without the collector, in a process of the command's own and in one of somebody else's; where compiled code
is kept; FFCV's import."""

import gc
import json
import os
import subprocess
import sys
from functools import partial

import pytest
from torch._inductor import config as inductor

from fast_train.common.startup import quick_imports
from fast_train.pipeline.engine.compiling import compiled
from fast_train.pipeline.loaders import LOADERS

_FRESH = """
import gc, os
# macOS has none.
vars(os).pop("ST_NOEXEC", None)
os.environ["MPLBACKEND"] = "module://that_only_a_notebook_has"
from fast_train.common.startup import quick_imports
with quick_imports():
    assert not gc.isenabled()
    import torch
kept = gc.get_freeze_count()
assert gc.isenabled() and kept > 50_000, kept
import matplotlib
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


_WHERE = """
import json
from fast_train.pipeline import cli
assert cli.main(["--list-loaders"]) == 0
import torch._inductor.runtime.cache_dir_utils as inductor
import triton
print(json.dumps([inductor.cache_dir(), triton.knobs.cache.dir]))
"""


@pytest.mark.parametrize("chosen", [False, True])
def test_compiled_code_is_kept_in_the_users_cache_folder_or_where_the_user_says(tmp_path, chosen):
    names = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    folder = tmp_path / "cache" / "fast-train" / "compiled"
    if chosen:
        folder = tmp_path / "chosen"
        environment |= {variable: str(folder / name) for variable, name in names.items()}
    done = subprocess.run(
        [sys.executable, "-c", _WHERE], capture_output=True, text=True, timeout=120, env=environment, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [str(folder / name) for name in names.values()]


_CHOSEN = """
import os, sys
from fast_train.common.startup import quick_imports
if "noexec" in sys.argv:
    state = os.statvfs("/")
    os.statvfs = lambda path: os.statvfs_result((*state[:8], state.f_flag | os.ST_NOEXEC, state.f_namemax))
with quick_imports():
    print(os.environ.get("TORCHINDUCTOR_CACHE_DIR", "torch's own"))
"""


@pytest.mark.parametrize(("cache", "serves"), [
    ("cache", True), ("file", False), ("two words", False), ("it's", False), ("noexec", False)
])  # fmt: skip
def test_where_the_cache_can_hold_no_code_torchs_own_place_serves(tmp_path, cache, serves):
    """A compiler's command line names the folder, and what is compiled is run from there."""
    (tmp_path / "file").touch()
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / cache)}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", _CHOSEN, cache], capture_output=True, text=True, env=environment, check=True
    )
    assert (done.stdout != "torch's own\n") == serves


_COMPILED = """
import torch
from fast_train.pipeline.engine.compiling import compiled
print(compiled(lambda: torch.compile(lambda x: x.sin().add(1).sum(1))(torch.ones(8, 8)), what="f").tolist()[:2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 3000])
def test_code_that_was_half_compiled_when_a_run_was_killed_is_made_anew(tmp_path, left):
    """Loaded, an empty library is an error and a cut one ends the process by a bus error."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    run = partial(subprocess.run, [sys.executable, "-c", _COMPILED], capture_output=True, env=environment, check=True)
    whole = run().stdout
    libraries = list(tmp_path.glob("*/*.so"))
    assert libraries
    for library in libraries:
        library.write_bytes(library.read_bytes()[:left])
    assert run().stdout == whole


def test_what_was_compiled_before_starts_no_processes_to_compile_in(tmp_path, monkeypatch):
    """torch.compile starts as many as this setting says, if above 1, and a run waits for them at its end."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def processes(what):
        return compiled(lambda: inductor.compile_threads, what=what)

    def fail():
        raise ValueError("no room")

    with inductor.patch(compile_threads=3):
        with pytest.raises(ValueError, match="no room"):
            compiled(fail, what="other code")
        assert [processes(what) for what in ("code", "code", "other code", "other code")] == [3, 1, 3, 1]
        assert inductor.compile_threads == 3


_HELPERS = """
import sys
from pathlib import Path
from fast_train.pipeline import cli
assert cli.main(sys.argv[1:]) == 0
children = " ".join(task.read_text() for task in Path("/proc/self/task").glob("*/children")).split()
print(sum(b"compile_worker" in Path("/proc", child, "cmdline").read_bytes() for child in children))
"""


@pytest.mark.gpu
def test_gpu_a_second_run_starts_no_processes_to_compile_in(prepared_path, tmp_path):
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    flags = ["--data", str(prepared_path), "--arch", "resnet8", "--batch-size", "8", "--compile", "--brief"]
    flags += ["--set", "run.steps=2", "--out"]
    found = [
        subprocess.run(
            [sys.executable, "-c", _HELPERS, *flags, str(tmp_path / name)],
            capture_output=True, text=True, env=environment, check=True,
        ).stdout.splitlines()[-1]
        for name in ("first", "second")
    ]  # fmt: skip
    assert found == ["1", "0"]


_FFCV = """
import numba.typed
theirs = numba.typed.Dict
import fast_train.pipeline.loaders.ffcv_reader
from ffcv.fields.rgb_image import IMAGE_MODES
assert numba.typed.Dict is theirs
assert type(IMAGE_MODES) is dict and IMAGE_MODES == {"jpg": 0, "raw": 1}
"""


@pytest.mark.skipif(LOADERS["ffcv"].missing() is not None, reason=str(LOADERS["ffcv"].missing()))
def test_importing_ffcv_has_numba_compile_nothing_and_leaves_it_as_it_was():
    done = subprocess.run([sys.executable, "-c", _FFCV], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
