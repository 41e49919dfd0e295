"""Which run goes on, with which settings, and what is never lost by it."""

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

import fast_train
from fast_train.data_prep import cli as prep_cli
from fast_train.pipeline import cli
from fast_train.pipeline.config.settings import Config
from fast_train.pipeline.engine.checkpoint import load_checkpoint, save_checkpoint
from fast_train.pipeline.engine.listener import Ready, Start
from fast_train.pipeline.engine.runtime import resolve_runtime
from fast_train.pipeline.engine.saving import Checkpoints
from fast_train.pipeline.engine.step import TrainStep
from fast_train.pipeline.engine.trainer import Trainer
from fast_train.pipeline.loaders.base import _Pass
from fast_train.pipeline.loaders.resident import ResidentLoader
from fast_train.pipeline.run import session
from fast_train.pipeline.run.folder import FolderInUse, claimed
from fast_train.pipeline.run.log import RunLog, read_history

RECIPE = """
[model]
arch = "resnet8"
[data]
batch_size = 24
[optimizer]
lr = 0.05
[schedule]
name = "constant"
[run]
epochs = 3
"""
CPU = ["--device", "cpu", "--brief"]


@pytest.fixture
def train(prepared_path, tmp_path, monkeypatch):
    """Call fast-train with a small recipe from an empty folder; returns the exit status."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(RECIPE)
    return lambda *given: cli.main(["--data", str(prepared_path), "--recipe", "small.toml", *CPU, *given])


# Clears a terminal.
ESCAPE = "\x1b[2J"


@pytest.fixture(scope="module")
def once(prepared_path, tmp_path_factory):
    """The folder of a run after its first epoch."""
    folder = tmp_path_factory.mktemp("once")
    (folder / "small.toml").write_text(RECIPE)
    recipe = ["--recipe", str(folder / "small.toml"), "--stop-after", "1"]
    assert cli.main(["--data", str(prepared_path), "--out", str(folder / "run"), *recipe, *CPU]) == 0
    return folder / "run"


def _steps(path):
    return load_checkpoint(path)["done_steps"]


def test_a_named_checkpoint_goes_on_where_nothing_later_is_lost(train, tmp_path, capsys):
    run, kept = tmp_path / "run", tmp_path / "run" / "kept.pt"
    assert train("--out", "run", "--stop-after", "1") == 0
    shutil.copy(run / "last.pt", kept)
    assert train("--out", "run", "--resume", "auto") == 0
    assert cli.main(["--resume", "run/kept.pt", *CPU]) == 2
    assert "run/last.pt is at step 15, run/kept.pt at 5; give a new folder as --out" in capsys.readouterr().err
    assert cli.main(["--resume", "run/kept.pt", "--out", "branch", *CPU]) == 0
    assert "going on after step 5 of 15" in capsys.readouterr().out
    assert _steps(run / "last.pt") == _steps(tmp_path / "branch" / "last.pt") == 15
    for first, second in zip(
        load_checkpoint(run / "last.pt")["step"]["model"].values(),
        load_checkpoint(tmp_path / "branch" / "last.pt")["step"]["model"].values(),
        strict=True,
    ):
        assert torch.equal(first, second)
    lines = (tmp_path / "branch" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_a_checkpoint_beside_no_run_needs_a_folder(train, tmp_path, capsys):
    assert train("--out", "run", "--stop-after", "1") == 0
    (tmp_path / "backup").mkdir()
    shutil.copy(tmp_path / "run" / "last.pt", tmp_path / "backup" / "a.pt")
    assert cli.main(["--resume", "backup/a.pt", *CPU]) == 2
    assert "backup holds a.pt but no run; give the folder of a new one as --out" in capsys.readouterr().err
    assert os.listdir("backup") == ["a.pt"]
    assert cli.main(["--resume", "backup/a.pt", "--out", "new", *CPU]) == 0
    assert _steps(tmp_path / "new" / "last.pt") == 15


def test_auto_keeps_the_length_that_the_run_began_with(train, tmp_path, capsys):
    assert train("--out", "run", "--epochs", "5", "--stop-after", "4") == 0
    assert train("--out", "run", "--resume", "auto") == 0
    assert "note: run.epochs stays 5, as the run began, not 3" in capsys.readouterr().out
    assert len(load_checkpoint(tmp_path / "run" / "last.pt")["history"]) == 5
    assert train("--out", "run", "--resume", "auto", "--epochs", "6") == 0
    assert "note: run.epochs was 5 so far, is 6 from here on" in capsys.readouterr().out


def test_a_run_is_not_made_shorter_than_it_is(once, capsys):
    assert cli.main(["--resume", str(once), *CPU, "--set", "run.steps=4"]) == 2
    printed = capsys.readouterr()
    assert "is at step 5, and run.steps 4 ends at 4; leave that setting out, or give more" in printed.err
    assert "note" not in printed.out


def test_a_refusal_names_what_was_given_and_not_what_follows_from_it(once, capsys):
    assert cli.main(["--resume", str(once), *CPU, "--image-size", "8"]) == 2
    assert "was trained with crop.size = None, this command says 8" in capsys.readouterr().err


def test_nothing_is_loaded_for_a_run_that_is_over(train, capsys, monkeypatch):
    assert train("--out", "run", "--epochs", "1") == 0
    monkeypatch.setattr(session, "Trainer", None)
    for target, status in ((), 0), (("--target-accuracy", "1"), 1):
        assert train("--out", "run", "--epochs", "1", "--resume", "auto", *target) == status
        assert "run is complete: 1 epoch; nothing to do" in capsys.readouterr().out
    assert cli.main(["--resume", "run/last.pt", "--out", "new"]) == 0
    assert "run is complete" in capsys.readouterr().out
    assert not os.path.exists("new")


def test_auto_goes_on_with_the_last_of_numbered_runs(train, tmp_path):
    for _ in range(2):
        assert train("--epochs", "1") == 0
    first, second = (tmp_path / "runs" / f"shapes-resnet8-small{end}" for end in ("", "-2"))
    shutil.rmtree(first)
    assert train("--resume", "auto", "--epochs", "2") == 0
    assert _steps(second / "last.pt") == 10
    assert not first.exists()
    assert train("--epochs", "1") == 0
    assert (tmp_path / "runs" / "shapes-resnet8-small-3").exists()


@pytest.mark.parametrize("change", [
    ["--set", "data.normalise=half"], ["--seed", "5"], ["--batch-size", "12"], ["--loader", "residnet"],
])  # fmt: skip
def test_what_a_run_can_not_change_on_the_way(train, capsys, change):
    assert train("--out", "run", "--stop-after", "1") == 0
    capsys.readouterr()
    assert cli.main(["--resume", "run", *CPU, *change]) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1
    assert "note" not in printed.out


def test_a_run_goes_on_from_another_working_directory(prepared_path, tmp_path, monkeypatch, capsys):
    shutil.copytree(prepared_path, tmp_path / "here" / "set")
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "small.toml").write_text(RECIPE)
    options = ["--data", "set", "--recipe", "small.toml", "--out", "run", "--stop-after", "1", *CPU]
    assert cli.main(options) == 0
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--resume", "here/run", *CPU]) == 0
    shutil.move(tmp_path / "here" / "set", tmp_path / "moved")
    assert cli.main(["--evaluate", "here/run", *CPU]) == 2
    assert "the run's data, " in (said := capsys.readouterr().err)
    assert "are not there any more; give --data" in said
    assert cli.main(["--evaluate", "here/run", "--data", "moved", *CPU]) == 0


def test_a_checkpoint_of_a_gpu_is_evaluated_without_one(train, tmp_path):
    assert train("--out", "run", "--epochs", "1") == 0
    state = load_checkpoint(tmp_path / "run" / "last.pt")
    state["config"]["run"] |= {"device": "cuda", "graph": True, "compile": True, "fuse": "norm"}
    save_checkpoint(tmp_path / "gpu.pt", {name: value for name, value in state.items() if name != "format_version"})
    assert cli.main(["--evaluate", "gpu.pt", *CPU]) == 0


@pytest.mark.parametrize("change", [["--epochs", "7"], ["--seed", "3"], ["--batch-size", "3"], ["--compile"]])
def test_an_evaluation_ignores_no_flag(train, capsys, change):
    assert train("--out", "run", "--epochs", "1") == 0
    assert cli.main(["--evaluate", "run", *CPU, *change]) == 2
    assert "leave out " in capsys.readouterr().err


def test_an_evaluation_on_other_images_normalises_as_the_training_did(image_folder, train, tmp_path, capsys):
    """The same test images beside other training images have another mean; the network's input must not change."""
    folder = tmp_path / "images"
    shutil.copytree(image_folder / "test", folder / "test")
    # Other training images: fewer of each class, so of another mean.
    for kind in (image_folder / "train").iterdir():
        (folder / "train" / kind.name).mkdir(parents=True)
        for path in sorted(kind.iterdir())[:2]:
            shutil.copy(path, folder / "train" / kind.name)
    assert prep_cli.main(["--dataset", f"folder:{folder}", "--out", "other"]) == 0
    assert train("--out", "run") == 0
    capsys.readouterr()
    results = []
    for more in ([], ["--data", "other"]):
        assert cli.main(["--evaluate", "run", *CPU, *more]) == 0
        results.append(capsys.readouterr().out.splitlines()[-1])
    assert "test accuracy" in results[0]
    assert results[0] == results[1]


@pytest.mark.parametrize(("damage", "words"), [
    (lambda state: state.pop("config"), "lacks config"),
    (lambda state: state.update(config=[]), "no usable config"),
    (lambda state: state["config"].pop("run"), "no usable settings"),
    (lambda state: state["config"]["run"].update({ESCAPE: 1}), "unknown setting"),
    (lambda state: state["config"]["model"].update(arch=ESCAPE), "unknown architecture"),
    (lambda state: state.update(classes=["a", "b", ESCAPE]), "no usable classes"),
    (lambda state: state.update(classes=["a"]), "no usable classes"),
    (lambda state: state.update(keeping={"shorter_side": -1}), "no usable keeping"),
    (lambda state: state.update(keeping=[1]), "no usable keeping"),
    (lambda state: state.update(history=[1]), "no usable history"),
    (lambda state: state["history"].append(state["history"][-1]), "no usable history"),
    (lambda state: state["history"][-1].update(epoch=-1), "no usable history"),
    (lambda state: state["history"][-1].update(step=10**9), "no usable history"),
    (lambda state: state["history"][-1].update(test_accuracy=17.0), "no usable history"),
    (lambda state: state["history"][-1].update(train_loss=float("nan")), "no usable history"),
    (lambda state: state.update(done_steps=-5), "no usable done_steps"),
    (lambda state: state.update(done_steps=10**12), "no usable done_steps"),
    (lambda state: state.update(train_seconds=float("nan")), "no usable train_seconds"),
    (lambda state: state["loader"].update(epoch=-1), "no usable loader"),
    (lambda state: state["loader"].update(step="0"), "no usable loader"),
    (lambda state: state["loader"].pop("epoch"), "no usable loader"),
    (lambda state: state.update(schedule={"factor": -1.0}), "no usable schedule"),
    (lambda state: state["step"].update(scaler={"scale": float("inf")}), "no usable scaler"),
    (lambda state: state.update(reading={"bits": -1}), "no usable reading"),
    (lambda state: state.update(reading=[]), "no usable reading"),
    (lambda state: state.update(mean=[0.5, float("nan"), 0.5]), "no usable mean"),
    (lambda state: state.update(mean=[0.5, 1e30, 0.5]), "no usable mean"),
    (lambda state: state.update(std=[0.5]), "no usable std"),
    (lambda state: state["step"]["model"].pop("fc.bias"), "does not fit this network"),
    (lambda state: state["step"]["model"].update({ESCAPE: torch.zeros(1)}), "does not fit this network"),
    (lambda state: state["step"].update(model={}), "does not fit this network"),
])  # fmt: skip
def test_a_checkpoint_that_is_not_as_it_should_be_is_named(once, capsys, damage, words):
    state = load_checkpoint(once / "last.pt")
    damage(state)
    save_checkpoint(once / "odd.pt", {name: value for name, value in state.items() if name != "format_version"})
    for action in ("--evaluate", "--resume"):
        capsys.readouterr()
        assert cli.main([action, str(once / "odd.pt"), *CPU]) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1
        assert words in said
        assert "\x1b" not in said
    with pytest.raises(ValueError, match=words):
        fast_train.load_model(once / "odd.pt", device="cpu")


def test_the_newest_whole_checkpoint_takes_the_place_of_a_damaged_one(train, tmp_path, capsys):
    run = tmp_path / "run"
    assert train("--out", "run", "--stop-after", "2", "--save-every", "4", "--keep", "3") == 0
    kept = sorted((run / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["step-000004.pt", "step-000008.pt", "step-000010.pt"]
    _flip_a_bit(run / "last.pt")
    _flip_a_bit(kept[2])
    said = (
        "note: run/last.pt is damaged, or no checkpoint of fast-train; run/checkpoints/step-000008.pt, the newest whole"
    )
    capsys.readouterr()
    assert cli.main(["--evaluate", "run", *CPU]) == 0
    assert said in capsys.readouterr().out
    for more in (["--resume", "run/last.pt"], ["--evaluate", "run/last.pt"]):
        assert cli.main([*more, *CPU]) == 2
        assert capsys.readouterr().err.startswith("fast-train: error: run/last.pt is damaged")
    shutil.copytree(run, tmp_path / "copy")
    assert train("--out", "run", "--resume", "auto") == 0
    assert said in (printed := capsys.readouterr().out)
    assert "going on after step 8 of 15" in printed
    # The folder that the run is in may be named again.
    assert cli.main(["--resume", "copy", "--out", "copy", *CPU]) == 0
    for first, second in zip(*(load_checkpoint(tmp_path / name / "last.pt")["step"]["model"].values()
                               for name in ("run", "copy")), strict=True):  # fmt: skip
        assert torch.equal(first, second)
    for path in [run / "last.pt", *(run / "checkpoints").iterdir()]:
        path.write_bytes(b"no checkpoint")
    assert train("--out", "run", "--resume", "auto") == 2
    assert (
        "run/last.pt is damaged, or no checkpoint of fast-train, and run holds no whole one" in capsys.readouterr().err
    )


def _flip_a_bit(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def test_no_two_processes_write_one_run(train, tmp_path, capsys):
    assert train("--out", "run", "--stop-after", "1") == 0
    other = os.open(tmp_path / "run", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert train("--out", "run", "--resume", "auto") == 2
    assert "another fast-train is writing into run; wait for it, or give another --out" in capsys.readouterr().err
    os.close(other)
    assert train("--out", "run", "--resume", "auto") == 0


def _hold(folder, ready, over):
    folder.mkdir(parents=True)
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    ready.set()
    over.wait(60)


def test_a_second_run_of_the_same_kind_takes_the_next_folder(train, tmp_path):
    """The first has not written anything yet."""
    context = multiprocessing.get_context("spawn")
    ready, over = context.Event(), context.Event()
    base = tmp_path / "runs" / "shapes-resnet8-small"
    other = context.Process(target=_hold, args=(base, ready, over))
    other.start()
    assert ready.wait(60)
    try:
        assert train("--epochs", "1") == 0
    finally:
        over.set()
        other.join()
    assert os.listdir(base) == []
    assert (base.with_name(f"{base.name}-2") / "last.pt").exists()


def test_what_a_killed_run_left_is_cleared_away(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".last.pt.123.part").write_text("half")
    assert train("--out", "run", "--epochs", "1") == 0
    assert not [name for name in os.listdir("run") if name.endswith(".part")]


def test_a_refused_run_leaves_no_folder(train, tmp_path):
    assert train("--out", "run", "--batch-size", "20", "--set", "augment.pad=9") == 2
    assert train("--out", "run", "--graph") == 2
    assert not (tmp_path / "run").exists()


def test_weights_that_are_no_numbers_are_not_saved(train, tmp_path, monkeypatch, capsys):
    """The loss of a step is that of the weights before it: the last step of an epoch may break them unseen."""
    assert train("--out", "run", "--stop-after", "1") == 0
    evaluate = Trainer.evaluate

    def broken(trainer, *arguments):
        result = evaluate(trainer, *arguments)
        with torch.no_grad():
            trainer.step.model.fc.bias.fill_(float("nan"))
        return result

    monkeypatch.setattr(Trainer, "evaluate", broken)
    assert train("--out", "run", "--resume", "auto", "--stop-after", "2") == 1
    assert "a weight became infinite or no number by step 10; begin anew with a lower --lr" in capsys.readouterr().err
    assert _steps(tmp_path / "run" / "last.pt") == 5


def test_a_test_loss_that_is_no_number_ends_the_run(train, tmp_path, capsys):
    assert train("--out", "run", "--lr", "1e29", "--set", "run.steps=1") == 1
    assert "begin anew with a lower --lr" in capsys.readouterr().err
    assert not (tmp_path / "run" / "last.pt").exists()
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_end_is_saved_costs_nothing(train, tmp_path, monkeypatch, signum):
    save = Checkpoints.save

    def interrupted(checkpoints, state, **more):
        os.kill(os.getpid(), signum)
        save(checkpoints, state, **more)

    monkeypatch.setattr(Checkpoints, "save", interrupted)
    assert train("--out", "run", "--epochs", "1") == 0
    assert _steps(tmp_path / "run" / "last.pt") == 5


def _views(monkeypatch, then):
    """Have the loader call ``then`` in place of its third batch."""
    views = ResidentLoader._views

    def stopping(loader, start):
        for number, view in enumerate(views(loader, start)):
            if loader.train and number + start == 2:
                then()
            yield view

    monkeypatch.setattr(ResidentLoader, "_views", stopping)


def _wait_for_a_signal():
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
    time.sleep(60)


def _fail():
    raise OSError(errno.EIO, "Input/output error", "train.safetensors")


@pytest.mark.parametrize(("then", "status", "said"), [
    (_wait_for_a_signal, 143, "stopped by a signal, saved; go on with: fast-train --resume run"),
    (_fail, 2, "loading failed (train.safetensors: Input/output error); give another --loader"),
])  # fmt: skip
def test_a_loader_that_waits_or_fails_costs_no_trained_step(train, tmp_path, monkeypatch, capsys, then, status, said):
    assert train("--out", "straight") == 0
    with monkeypatch.context() as broken:
        _views(broken, then)
        assert train("--out", "run") == status
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1
    assert _steps(tmp_path / "run" / "last.pt") == 2
    assert train("--out", "run", "--resume", "auto") == 0
    saved, straight = (load_checkpoint(tmp_path / name / "last.pt")["step"]["model"] for name in ("run", "straight"))
    assert all(torch.equal(saved[key], straight[key]) for key in straight)


def test_what_is_trained_on_files_that_are_written_to_is_not_saved(train, prepared_path, tmp_path, monkeypatch, capsys):
    data = shutil.copytree(prepared_path, tmp_path / "set")
    path, after = data / "train.safetensors", TrainStep.after
    # Beyond the tick of the clock.
    os.utime(path, (1, 1))

    def overwrite(step, done, total):
        after(step, done, total)
        if done == 8:
            with open(path, "r+b") as file:
                file.seek(path.stat().st_size // 2)
                file.write(b"other")

    monkeypatch.setattr(TrainStep, "after", overwrite)
    flags = ["--data", str(data), "--loader", "torch", "--workers", "0", "--save-every", "5", "--out", "run"]
    assert train(*flags) == 2
    said = capsys.readouterr().err
    assert "set/train.safetensors was written to while it was trained on; steps since the last checkpoint are" in said
    assert said.count("\n") == 1
    assert _steps(tmp_path / "run" / "last.pt") == 5


def test_a_batch_that_comes_with_the_signal_is_not_left_out(train, tmp_path, monkeypatch):
    """The loader has given it out, and nobody trains on it."""
    give = _Pass.__next__

    def stopped(self):
        batch = give(self)
        if self._loader.train and self._loader._position == 3:
            signal.raise_signal(signal.SIGTERM)
        return batch

    monkeypatch.setattr(_Pass, "__next__", stopped)
    assert train("--out", "run") == 143
    state = load_checkpoint(tmp_path / "run" / "last.pt")
    assert state["loader"]["step"] == state["done_steps"] == 2


def test_a_signal_ends_an_evaluation_and_the_run_evaluates_when_it_goes_on(train, tmp_path, monkeypatch):
    with monkeypatch.context() as slow:
        slow.setattr(Trainer, "evaluate", lambda *_: _wait_for_a_signal())
        assert train("--out", "run", "--epochs", "1") == 143
    assert train("--out", "run", "--epochs", "1", "--resume", "auto") == 0
    (record,) = load_checkpoint(tmp_path / "run" / "last.pt")["history"]
    assert record["test_accuracy"] is not None


class _Full:
    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self):
        pass


@pytest.mark.parametrize("fails", [range(2), range(9)])
def test_a_full_disk_costs_no_training(train, tmp_path, monkeypatch, capsys, fails):
    """It is told once, and tried again at the next save; where the last one can't be written either, weights are lost.
    torch makes a RuntimeError of it."""
    whole, saves = torch.save, iter(range(99))
    monkeypatch.setattr(torch, "save", lambda state, file: whole(state, _Full() if next(saves) in fails else file))
    lost = len(fails) > 2
    assert train("--out", "run", "--epochs", "1", "--save-every", "1") == (2 if lost else 0)
    out, err = capsys.readouterr()
    assert out.count("run/last.pt can't be written (No space left on device); the training goes on") == 1
    assert [path.name for path in (tmp_path / "run").glob("*.pt")] == ([] if lost else ["last.pt"])
    assert (err.count("\n"), "run/last.pt: No space left on device" in err) == ((1, True) if lost else (0, False))


def test_logs_that_can_not_be_written_cost_no_training(train, tmp_path, capsys):
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    (tmp_path / "run" / "tensorboard").write_text("in the way")
    assert train("--out", "run") == 0
    out, err = capsys.readouterr()
    for name, said in (("metrics.jsonl", "Is a directory"), ("tensorboard", "File exists")):
        assert out.count(f"warning: run/{name} can't be written ({said}); the training goes on") == 1
    assert (err, _steps(tmp_path / "run" / "last.pt")) == ("", 15)


def test_a_log_is_whole_again_when_the_disk_takes_it(tmp_path, prepared):
    said = []
    log = tmp_path / "metrics.jsonl"
    config = Config()
    start = Start(config=config, prepared=prepared, runtime=resolve_runtime(config.run), folder=tmp_path)
    with RunLog(said.append) as run:
        run.on_start(start)
        run.on_ready(Ready(epochs=3, total_steps=3, done_steps=0, history=[], seconds=0.0))
        run.on_epoch_end({"epoch": 1, "step": 1})
        log.unlink()
        log.symlink_to("/dev/full")
        run.on_epoch_end({"epoch": 2, "step": 2})
        assert said == [f"{log} can't be written (No space left on device); the training goes on"]
        run.on_epoch_end({"epoch": 3, "step": 3})
    assert [record["epoch"] for record in read_history(tmp_path)] == [1, 2, 3]


def test_a_reader_that_goes_away_does_not_end_the_training(prepared_path, tmp_path):
    """As ``fast-train ... | head -1``."""
    (tmp_path / "small.toml").write_text(RECIPE)
    command = [
        sys.executable,
        "-m",
        "fast_train.pipeline.cli",
        "--data",
        str(prepared_path),
        "--recipe",
        "small.toml",
        *CPU,
    ]
    process = subprocess.Popen(
        [*command, "--out", "run"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 0
    assert process.stderr.read() == ""
    assert _steps(tmp_path / "run" / "last.pt") == 15


def test_the_same_command_goes_on_where_the_batch_was_larger_than_the_split(train, tmp_path, capsys):
    command = ["--out", "run", "--batch-size", "1024", "--stop-after", "1"]
    assert train(*command) == 0
    assert train(*command[:-2], "--resume", "auto") == 0
    assert "stays" not in capsys.readouterr().out
    assert len(load_checkpoint(tmp_path / "run" / "last.pt")["history"]) == 3


def test_a_good_copy_goes_on_beside_a_damaged_checkpoint(train, tmp_path):
    assert train("--out", "run", "--stop-after", "1") == 0
    shutil.copy(tmp_path / "run" / "last.pt", tmp_path / "run" / "copy.pt")
    (tmp_path / "run" / "last.pt").write_bytes(b"damaged")
    assert cli.main(["--resume", "run/copy.pt", *CPU]) == 0
    assert _steps(tmp_path / "run" / "last.pt") == 15


def test_a_child_that_outlives_the_training_does_not_keep_its_folder(tmp_path):
    """As a loader's worker does for some seconds after its parent was killed."""
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        with claimed(tmp_path / "run"):
            os.write(write, b"1" if os.fork() else b"2")
            # The handler may be another one's, such as that of a test's time-out.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)
            signal.pause()
    said = b""
    while len(said) < 2:
        said += os.read(read, 2)
    with pytest.raises(FolderInUse), claimed(tmp_path / "run"):
        pass
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    with claimed(tmp_path / "run"):
        assert os.path.isdir(tmp_path / "run")


def test_a_terminal_that_hangs_up_leaves_a_saved_run(prepared_path, tmp_path):
    """The kernel and the shell each send a hang-up, and what is printed from then on would be an error."""
    (tmp_path / "small.toml").write_text(RECIPE)
    command = [
        sys.executable,
        "-m",
        "fast_train.pipeline.cli",
        "--data",
        str(prepared_path),
        "--recipe",
        "small.toml",
        *CPU,
    ]
    terminal, inside = os.openpty()
    process = subprocess.Popen(
        [*command, "--out", "run", "--epochs", "100000"],
        cwd=tmp_path, stdin=inside, stdout=inside, stderr=inside, preexec_fn=_hears_hang_ups,
    )  # fmt: skip
    os.close(inside)
    shown = b""
    while b"epoch   2" not in shown:
        shown += os.read(terminal, 4096)
    os.close(terminal)
    for _ in range(2):
        process.send_signal(signal.SIGHUP)
    assert process.wait(120) == 129
    assert _steps(tmp_path / "run" / "last.pt") > 5


def _hears_hang_ups():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
