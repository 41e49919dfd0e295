"""A small prepared set of real files, made by the command that users type."""

import numpy as np
import pytest
from PIL import Image

from fast_train.data_prep import cli as prep_cli
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.loaders import LOADERS

CLASSES = ("circle", "cross", "stripes")
TRAIN_PER_CLASS, TEST_PER_CLASS, SIZE = 40, 11, 16


def _draw(kind: str, generator: np.random.Generator) -> Image.Image:
    """A noisy shape that a small network tells apart."""
    y, x = np.mgrid[:SIZE, :SIZE] - generator.uniform(5, 10, size=(2, 1, 1))
    shape = {
        "circle": np.hypot(x, y) < 4,
        "cross": (abs(x) < 1.5) | (abs(y) < 1.5),
        "stripes": (y // 2) % 2 == 0,
    }[kind]
    pixels = generator.normal(100, 25, size=(SIZE, SIZE, 3)) + 80 * shape[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(params=sorted(LOADERS))
def name(request):
    """Each loader in turn; one whose library is not here skips and says what installs it."""
    missing = LOADERS[request.param].missing()
    if missing:
        pytest.skip(missing)
    return request.param


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", TRAIN_PER_CLASS), ("test", TEST_PER_CLASS)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                _draw(name, generator).save(root / split / name / f"{i:03}.png")
    return root


@pytest.fixture(scope="session")
def prepared_path(image_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("sets") / "shapes"
    arguments = ["--dataset", f"folder:{image_folder}", "--out", str(out), "--formats", "packed,ffcv,dali"]
    assert prep_cli.main(arguments) == 0
    return out


@pytest.fixture(scope="session")
def prepared(prepared_path):
    return PreparedSet.open(prepared_path)
