"""Without a CUDA device, tests marked `gpu` skip visibly and Triton kernels run in Triton's interpreter."""

import gc
import os
import signal
import sys
from collections import Counter

import hypothesis
import pytest

# What is imported lives as long as the process. Python's collector would look through it again and again: it begins
# after the imports, and leaves them out.
gc.disable()

import torch  # noqa: E402

# Tensors here are tiny: more threads would only wait for each other, long where the machine is busy. Trainings, and the
# commands that tests start, follow the variable.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# A shell's background jobs are started deaf to Ctrl-C and hand that on; the tests send it to what they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# cuBLAS reads it once, at its first product; the deterministic trainings among the tests need it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Of one slow test; the others' limit is in pyproject.toml.
_SLOW_SECONDS = 1800

# Files of few tests that take long: they come first, so that neither worker waits for the other's last file.
_LONG = (
    "test_kills.py",
    "test_ranks.py",
    "test_mutants.py",
    "test_faults.py",
    "test_photographs.py",
    "test_commands.py",
    "test_records.py",
)

HAS_CUDA = torch.cuda.is_available()
if not HAS_CUDA:
    # Triton reads this when a kernel is defined, so it must be set before any kernel is imported.
    os.environ["TRITON_INTERPRET"] = "1"


# How many inputs a test of drawn ones takes: make test-long takes more.
for _profile, _inputs in (("quick", 50), ("thorough", 300)):
    hypothesis.settings.register_profile(_profile, max_examples=_inputs, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.name not in _LONG, -tests[item.path]))
    absent, reason = ("interpreter", "Triton interprets its kernels only where no GPU is: CUDA_VISIBLE_DEVICES= pytest")
    if not HAS_CUDA:
        absent, reason = "gpu", "needs a CUDA device; none is visible here"
    for item in items:
        if item.get_closest_marker(absent):
            item.add_marker(pytest.mark.skip(reason=reason))
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("fuzz")
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_SLOW_SECONDS))


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """The user's cache folder stays as it is."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _compiled_anew():
    """torch.compile keeps what it made of a function, and runs a ninth variant of it eagerly: no test is a ninth."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
