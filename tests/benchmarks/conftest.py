"""A small prepared set, and one quick report of it that many tests look at."""

import fcntl
import os
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from fast_train.benchmarks.instrument import roofline
from fast_train.benchmarks.instrument.records import CopyDetails, ProductDetails
from fast_train.benchmarks.instrument.result import Row
from fast_train.benchmarks.peers.notes_dataloader import NotesDataLoader
from fast_train.benchmarks.throughput import cli, commands, suites
from fast_train.benchmarks.throughput.compare import read_result
from fast_train.common.console import Display
from fast_train.data_prep import cli as prep_cli


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder of this session, the same in all of its processes (pytest-xdist)."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "benchmarks"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def _alone(folder):
    """One process at a time is in the block."""
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def prepared_path(shared):
    with _alone(shared):
        if not (shared / "set").exists():
            _prepare(shared)
    return shared / "set"


def _prepare(root):
    generator = np.random.default_rng(0)
    for split, count in (("train", 32), ("test", 8)):
        for name in ("bright", "dark"):
            (root / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 128, (16, 16, 3)) + (127 if name == "bright" else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / split / name / f"{i}.png")
    # Without FFCV's and DALI's files: a report lists what it can't measure.
    arguments = ["--dataset", f"folder:{root / 'images'}", "--out", str(root / "set"), "--formats", "packed"]
    assert prep_cli.main(arguments) == 0


@pytest.fixture(scope="session")
def quick_report(prepared_path, shared):
    """The folder of a report of the suites that take no training."""
    with _alone(shared):
        if not (shared / "report").exists():
            _measure(prepared_path, shared).rename(shared / "report")
    return shared / "report"


def _measure(prepared_path, root):
    arguments = ["--data", str(prepared_path), "--device", "cpu", "--quick", "--arch", "resnet8", "--workers", "1"]
    with pytest.MonkeyPatch.context() as patched:
        # The baseline starts its workers anew in each epoch, which here is one batch.
        patched.setattr(NotesDataLoader, "fixed_workers", 1)
        # No figure is looked at, only how they are presented.
        patched.setattr(suites, "repeat_seconds", lambda **_: 0.02)
        # Repeats this short can be impossible beside other processes, more than the measured peak: then once more.
        folders = (root / str(number) for number in range(5))
        folder = next((folder for folder in folders if cli.main([*arguments, "--out", str(folder)]) == 0), None)
    assert folder is not None, "five reports in a row have figures that can't be true"
    return folder


@pytest.fixture
def instant(monkeypatch):
    """The suite `roofline` has its figures at once: 1 GB/s copied, and 1 GFLOP/s."""

    def run(bench):
        copy, product = CopyDetails(bytes=1), ProductDetails(side=1, kind=bench.runtime.dtype_name)
        bench.add(Row(suite=roofline.SUITE, name=roofline.COPY, unit="bytes/s", repeats=(1e9, 1e9), details=copy))
        name = roofline.matmul(product.kind)
        bench.add(Row(suite=roofline.SUITE, name=name, unit="FLOP/s", repeats=(1e9, 1e9), details=product))

    monkeypatch.setattr(roofline, "run", run)


@pytest.fixture
def open_bench(prepared_path, tmp_path):
    """Opens what suites are given, by flags of bench-throughput."""

    def build(scratch=tmp_path, **flags):
        flags = cli.Flags(data=str(prepared_path), device="cpu", **flags)
        return commands.open_bench(flags, ["bench-throughput"], Display(), scratch)

    return build


@pytest.fixture
def result(quick_report):
    return read_result(quick_report)
