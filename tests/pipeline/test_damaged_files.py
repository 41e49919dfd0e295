"""Files that are not what was prepared: every loader refuses them in one line, before its library reads them."""

import os
import shutil

import numpy as np
import pytest
import torch

from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.loaders import LOADERS, build_loader

ROUNDS = 10


def _damage(kind, raw, generator):
    """The bytes of a broken file; ``raw`` are those of the whole one."""
    if kind == "truncated":
        return raw[: generator.integers(1, len(raw))]
    if kind == "empty":
        return b""
    if kind == "foreign":
        # Half of them as long as the file was, so that the size does not give them away.
        size = len(raw) if generator.random() < 0.5 else int(generator.integers(1, 2 * len(raw)))
        return generator.bytes(size)
    broken = bytearray(raw)
    for place in generator.integers(0, len(raw), generator.integers(1, 20)):
        broken[place] ^= int(generator.integers(1, 256))
    return bytes(broken)


@pytest.mark.parametrize("kind", ["corrupt", "truncated", "empty", "foreign"])
def test_a_damaged_file_is_named(name, prepared_path, tmp_path, kind):
    root = tmp_path / "set"
    shutil.copytree(prepared_path, root)
    entries = [
        entry
        for entry in PreparedSet.open(root).manifest.files
        if (entry.split, entry.format) == ("train", LOADERS[name].format)
    ]
    generator = np.random.default_rng(7)
    for _ in range(ROUNDS):
        path = root / entries[generator.integers(len(entries))].path
        raw = path.read_bytes()
        path.write_bytes(_damage(kind, raw, generator))
        if path.read_bytes() != raw:
            with pytest.raises(PreparedSetError) as caught, _open(name, root) as loader:
                list(loader)
            assert str(path) in str(caught.value)
            assert len(str(caught.value).splitlines()) == 1
        path.write_bytes(raw)
    with _open(name, root) as loader:
        assert len(list(loader)) == 12


def test_a_file_changed_behind_the_open_set_is_named(name, prepared_path, tmp_path):
    """The hash is compared when a loader is built, not only when the set is opened."""
    root = tmp_path / "set"
    shutil.copytree(prepared_path, root)
    prepared = PreparedSet.open(root)
    path = prepared.files("train", LOADERS[name].format)[0]
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(PreparedSetError, match="its SHA-256 is wrong"):
        build_loader(name, prepared, "train", batch_size=10, workers=0)


@pytest.mark.parametrize("how", ["overwritten", "touched", "replaced", "deleted"])
def test_what_is_written_into_the_files_of_an_open_loader_is_told(name, prepared_path, tmp_path, how):
    root = tmp_path / "set"
    shutil.copytree(prepared_path, root)
    path = PreparedSet.open(root).files("train", LOADERS[name].format)[0]
    # Beyond the tick of the clock.
    os.utime(path, (1, 1))
    with _open(name, root) as loader:
        loader.check_unchanged()
        raw = path.read_bytes()
        if how == "overwritten":
            with open(path, "r+b") as file:
                file.seek(len(raw) // 2)
                file.write(b"other")
        elif how == "touched":
            path.touch()
        elif how == "replaced":
            other = path.with_name("other")
            other.write_bytes(raw[:-1])
            os.replace(other, path)
        else:
            path.unlink()
        if how != "overwritten" or loader.holds_all:
            loader.check_unchanged()
            return
        with pytest.raises(PreparedSetError, match=f"{path.name} was written to while it was trained on"):
            loader.check_unchanged()


def test_a_set_without_the_loaders_files_says_how_to_make_them(name, image_folder, tmp_path, capsys):
    from fast_train.data_prep import cli

    other = next(form for form in ("packed", "ffcv") if form != LOADERS[name].format)
    assert cli.main(["--dataset", f"folder:{image_folder}", "--out", str(tmp_path / "set"), "--formats", other]) == 0
    capsys.readouterr()
    prepared = PreparedSet.open(tmp_path / "set")
    with pytest.raises(PreparedSetError, match=f"--formats {other},{LOADERS[name].format} --overwrite"):
        build_loader(name, prepared, "train", batch_size=10)


def test_a_set_of_the_loaders_files_alone_is_enough(name, image_folder, prepared, tmp_path):
    from fast_train.data_prep import cli

    form = LOADERS[name].format
    assert cli.main(["--dataset", f"folder:{image_folder}", "--out", str(tmp_path / "set"), "--formats", form]) == 0
    with (
        _open(name, tmp_path / "set") as alone,
        build_loader(name, prepared, "train", batch_size=10, workers=0) as among,
    ):
        for ours, theirs in zip(alone, among, strict=True):
            assert torch.equal(ours.images, theirs.images)


def _open(name, root):
    return build_loader(name, PreparedSet.open(root), "train", batch_size=10, workers=0)
