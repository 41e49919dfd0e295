import errno
import os
import pickle
import random
import time
import zipfile

import pytest
import torch

from fast_train.pipeline.config.settings import RunConfig
from fast_train.pipeline.engine.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from fast_train.pipeline.engine.saving import Checkpoints


def test_what_is_saved_is_what_is_read(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"weights": {"w": torch.arange(5.0)}, "epoch": 3, "history": [{"loss": 0.5, "x": None}]})
    state = load_checkpoint(path)
    assert torch.equal(state["weights"]["w"], torch.arange(5.0))
    assert (state["epoch"], state["history"]) == (3, [{"loss": 0.5, "x": None}])
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"epoch": 1})

    def break_off(state, file):
        file.write(b"half a checkpoint")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", break_off)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, {"epoch": 2})
    assert load_checkpoint(path)["epoch"] == 1
    assert os.listdir(tmp_path) == ["a.pt"]


class _Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("content", ["cut", "empty", "text", "foreign", "newer", "harmful"])
def test_a_bad_file_is_one_line_that_names_it(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"w": torch.zeros(1000)})
    whole = path.read_bytes()
    if content == "foreign":
        torch.save({"w": torch.zeros(3)}, path)
    elif content == "newer":
        torch.save({"format_version": 99}, path)
    elif content == "harmful":
        torch.save({"format_version": 1, "x": _Harmful()}, path, pickle_module=pickle)
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}[content])
    with pytest.raises(CheckpointError, match=r"a\.pt") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "harm").exists()


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "none.pt")


def test_one_bit_anywhere_is_noticed(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"w": torch.randn(50), "epoch": 3})
    whole = path.read_bytes()
    places = {0, *range(len(whole) - 100, len(whole)), *random.Random(0).sample(range(len(whole)), 200)}
    for place in places:
        broken = bytearray(whole)
        broken[place] ^= 1 << place % 8
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"a\.pt is damaged"):
            load_checkpoint(path)


def test_other_programs_read_it(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"w": torch.arange(5.0)})
    for mmap in (False, True):
        assert torch.equal(torch.load(path, weights_only=True, mmap=mmap)["w"], torch.arange(5.0))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize(("every", "keep", "saved", "kept"), [
    (None, 0, [], []),
    ("4", 0, [4, 8, 12], []),
    ("4", 2, [4, 8, 12], [8, 12]),
    ("3s", 1, [3, 6, 9, 12], [12]),
    ("0.05m", 9, [3, 6, 9, 12], [3, 6, 9, 12]),
])  # fmt: skip
def test_when_it_is_saved_inside_an_epoch_and_what_is_kept(tmp_path, monkeypatch, every, keep, saved, kept):
    """A step takes a second here."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    checkpoints = Checkpoints(tmp_path, RunConfig(save_every=every, keep=keep), 0, pytest.fail)
    done = []
    for step in range(1, 13):
        now += 1
        if checkpoints.due(step):
            checkpoints.save({"done_steps": step})
            done.append(step)
    assert done == saved
    assert sorted(path.name for path in tmp_path.glob("checkpoints/*")) == [f"step-{step:06}.pt" for step in kept]
    assert (every is None) == checkpoints.due(13, epoch_end=True)


def test_the_last_checkpoint_comes_before_those_that_are_kept(tmp_path, monkeypatch):
    """On a disk that takes one more file."""
    whole, free = torch.save, iter([True, False])

    def save(state, file):
        if not next(free):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(state, file)

    monkeypatch.setattr(torch, "save", save)
    said = []
    checkpoints = Checkpoints(tmp_path, RunConfig(keep=2), 0, said.append)
    checkpoints.save({"done_steps": 3}, final=True)
    assert load_checkpoint(tmp_path / "last.pt")["done_steps"] == 3
    assert list(tmp_path.glob("checkpoints/*")) == []
    assert [line.partition(" can't be written")[0] for line in said] == [str(tmp_path / "checkpoints/step-000003.pt")]
