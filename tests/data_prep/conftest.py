"""Small image folders, and batches of CIFAR's format whose sums are taken for the real ones."""

import shutil
import tarfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from inputs import known_file, python2_pickle
from PIL import Image

from fast_train.data_prep import cli
from fast_train.data_prep.sources.cifar import Cifar10

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


@pytest.fixture
def fake_cifar(tmp_path, monkeypatch):
    """CIFAR-10 in small: ``batches`` (folder), ``archive``, and what they hold, ``images`` and ``labels`` by split.
    `seal` takes the files as they are now for the real ones."""
    for name in ("HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FAST_TRAIN_DATA", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    real = Cifar10.files
    folder = tmp_path / "source" / real.folder
    folder.mkdir(parents=True)
    archive = tmp_path / "archives" / real.archive.name
    archive.parent.mkdir()
    generator = np.random.default_rng(2)
    images, labels = {}, {}
    for split, batches in real.batches.items():
        images[split] = generator.integers(0, 256, (20 * len(batches), 32, 32, 3), dtype=np.uint8)
        labels[split] = np.arange(20 * len(batches)) * 7 % 10
        for i, batch in enumerate(batches):
            part = slice(20 * i, 20 * i + 20)
            data = images[split][part].transpose(0, 3, 1, 2).reshape(20, -1)
            content = {b"batch_label": b"some", b"labels": labels[split][part].tolist(), b"data": data}
            (folder / batch.name).write_bytes(python2_pickle(content))
    (folder / "readme.html").write_bytes(b"<html>")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, real.folder)

    def seal():
        batches = {split: tuple(known_file(folder / k.name) for k in known) for split, known in real.batches.items()}
        # Of what comes from a network, nothing but what a test serves.
        files = replace(real, archive=known_file(archive), batches=batches, addresses=("http://127.0.0.1:9/none",))
        monkeypatch.setattr(Cifar10, "files", files)

    seal()
    return SimpleNamespace(
        batches=folder, archive=archive, images=images, labels=labels, classes=real.classes, seal=seal
    )
