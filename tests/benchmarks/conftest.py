"""A small prepared set, and one quick report of it that many tests look at."""

import numpy as np
import pytest
from PIL import Image

from fast_train.benchmarks.throughput import cli
from fast_train.benchmarks.throughput.json_file import read_result
from fast_train.data_prep import cli as prep_cli


@pytest.fixture(scope="session")
def prepared_path(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
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
    return root / "set"


@pytest.fixture(scope="session")
def quick_report(prepared_path, tmp_path_factory):
    """The folder of a report of the suites that take no training."""
    folder = tmp_path_factory.mktemp("reports") / "quick"
    arguments = ["--data", str(prepared_path), "--device", "cpu", "--quick", "--arch", "resnet8", "--workers", "1"]
    assert cli.main([*arguments, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def result(quick_report):
    return read_result(quick_report)
