"""Small image folders, and batches of CIFAR's format whose MD5 sums torchvision is told to expect."""

import hashlib
import pickle
import shutil
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fast_train.data_prep import cli

CLASSES = ("ant", "bee", "cow")


def _write_images(root, counts, size=(8, 6)):
    generator = np.random.default_rng(1)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{i:03}.png")
    return root


@pytest.fixture
def make_folder(tmp_path):
    """Builds an image folder: {"train/ant": 5, ...} gives so many PNGs, of ``size`` (width, height), of noise."""

    def make(counts, *, size=(8, 6), name="images"):
        return _write_images(tmp_path / name, counts, size)

    return make


@pytest.fixture
def prep(capsys):
    """Runs the command; its status, and what it printed."""

    def run(*arguments):
        status = cli.main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return SimpleNamespace(status=status, out=output.out, err=output.err)

    return run


@pytest.fixture(scope="session")
def _prepared_once(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    counts = {f"{split}/{name}": count for split, count in (("train", 4), ("test", 2)) for name in CLASSES}
    images = _write_images(root / "images", counts)
    assert cli.main(["--dataset", f"folder:{images}", "--out", str(root / "set")]) == 0
    return root / "set"


@pytest.fixture
def prepared(_prepared_once, tmp_path):
    """A small prepared set: 12 training and 6 test images of 8x6 in three classes. The test may change it."""
    return shutil.copytree(_prepared_once, tmp_path / "set")


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory):
    """The prepared set of made-up images, not to be changed."""
    out = tmp_path_factory.mktemp("synthetic") / "set"
    assert cli.main(["--dataset", "synthetic", "--out", str(out)]) == 0
    return out


def _md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def fake_cifar(tmp_path, monkeypatch):
    """CIFAR-10 in small: ``batches`` (folder), ``archive``, and what they hold, ``images`` and ``labels`` by split."""
    from torchvision.datasets import CIFAR10

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "source" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    generator = np.random.default_rng(2)
    images, labels = {}, {}
    for split, names in (("train", [f"data_batch_{i}" for i in range(1, 6)]), ("test", ["test_batch"])):
        images[split] = generator.integers(0, 256, (20 * len(names), 32, 32, 3), dtype=np.uint8)
        labels[split] = np.arange(20 * len(names)) * 7 % 10
        for i, name in enumerate(names):
            part = slice(20 * i, 20 * i + 20)
            data = images[split][part].transpose(0, 3, 1, 2).reshape(20, -1)
            (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels[split][part].tolist()}))
        monkeypatch.setattr(CIFAR10, f"{split}_list", [[name, _md5(folder / name)] for name in names])
    names = [f"class-{i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": _md5(folder / "batches.meta")})
    archive = tmp_path / "archives" / CIFAR10.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", _md5(archive))
    return SimpleNamespace(batches=folder, archive=archive, images=images, labels=labels, classes=tuple(names))
