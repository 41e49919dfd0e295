import os
import pickle

import pytest
import torch

from fast_train.pipeline.engine.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


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
