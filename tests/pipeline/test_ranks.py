"""One training by several processes: the trajectory of one, one folder, one end. torchrun starts them, on the CPU."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ranks_work
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import fast_train
from fast_train.common.cores import usable_cores
from fast_train.common.processes import World, world
from fast_train.data_prep import cli as prep_cli
from fast_train.pipeline import cli, commands
from fast_train.pipeline.loaders import build_loader

TESTS = Path(__file__).parents[1]
SOURCE, WORK = TESTS.parent / "src", TESTS / "ranks_work.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
# Sums of float32 in another order: some units in the last place a step, which the steps after it let grow.
TOLERANCE = 2e-4


def torchrun(count, *arguments, check=True, **options):
    line = [*TORCHRUN, "--nproc-per-node", str(count), *map(str, arguments)]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


def environment():
    """That of a user who has said nothing of threads."""
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return {**kept, "PYTHONPATH": str(SOURCE)}


def state(folder, name):
    return torch.load(folder / name / "last.pt", weights_only=True)


def largest_difference(first, second):
    """Between the weights and statistics of two checkpoints."""
    models = first["step"]["model"], second["step"]["model"]
    return max(float((models[0][name] - models[1][name]).abs().max()) for name in models[0])


def differing(first, second):
    """The names of what is not equal, bit for bit, in two checkpoints' states."""
    if isinstance(first, dict):
        return [f"{name}.{inner}" for name in first for inner in differing(first[name], second[name])]
    if isinstance(first, (list, tuple)):
        return [inner for pair in zip(first, second, strict=True) for inner in differing(*pair)]
    equal = torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
    return [] if equal else [""]


@pytest.fixture(scope="module")
def folder(prepared_path, tmp_path_factory):
    """Runs of two ranks: each case of `ranks_work` that is quick, and one that goes on in the middle of an epoch."""
    root = tmp_path_factory.mktemp("ranks")
    work = [WORK, prepared_path, root]
    torchrun(2, *work, "sgd", "muon", "local", "first", "first+resumed", "shards")
    return root


@pytest.fixture(scope="module")
def alone(prepared_path, tmp_path_factory):
    """Trains a case in this process, once, and returns the folder and the evaluation."""
    root, done = tmp_path_factory.mktemp("alone"), {}

    def train(name):
        if name not in done:
            done[name] = ranks_work.train(prepared_path, root, name)
        return root, done[name]

    return train


# -- the same trajectory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["sgd", "muon"])
def test_two_ranks_train_as_one(folder, alone, case):
    """With clipping and averaged weights, and with Muon's shared filters and Lookahead."""
    root, _ = alone(case)
    together, single = state(folder, case), state(root, case)
    assert together["done_steps"] == single["done_steps"] == 8
    assert largest_difference(together, single) < TOLERANCE
    for mine, one in zip(together["history"], single["history"], strict=True):
        assert mine["train_loss"] == pytest.approx(one["train_loss"], abs=TOLERANCE)
        assert mine["step"] == one["step"]


def test_an_evaluation_is_shared_out_and_whole(folder, prepared):
    """Each rank has the whole of it, and one process finds the same."""
    first, second = (np.load(folder / f"sgd-{rank}.npz") for rank in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first.files)
    found = fast_train.evaluate(folder / "sgd", data=prepared.root, device="cpu")
    assert np.array_equal(found.labels, first["labels"])
    assert np.array_equal(found.confusion, first["confusion"])
    assert first["confusion"].sum() == prepared.size("test")
    assert np.allclose(found.confidences, first["confidences"], atol=1e-6)
    assert found.loss == pytest.approx(float(first["loss"]), abs=1e-6)


def test_two_ranks_go_on_to_the_same_bits(folder):
    """From the middle of an epoch, BatchNorm by each rank's part."""
    straight, resumed = state(folder, "local"), state(folder, "first")
    for kept in ("step", "loader", "schedule"):
        assert not differing(straight[kept], resumed[kept])
    figures = ("train_loss", "test_loss", "test_accuracy")
    assert [straight["history"][-1][name] for name in figures] == [resumed["history"][-1][name] for name in figures]


def test_one_process_goes_on_with_what_two_began(folder, prepared_path, tmp_path, capsys):
    fast_train.train(resume=folder / "sgd", out=tmp_path / "run", progress=True, steps=12)
    said = " ".join(capsys.readouterr().out.split())
    assert "note: the run had 2 ranks so far, has 1 from here on" in said
    straight = {**ranks_work.COMMON, **ranks_work.CASES["sgd"], "steps": 12}
    fast_train.train(prepared_path, recipe="fast", out=tmp_path / "straight", **straight)
    assert largest_difference(state(tmp_path, "run"), state(tmp_path, "straight")) < TOLERANCE


@pytest.mark.slow
def test_three_ranks_go_on_with_what_one_began(alone, prepared_path, tmp_path):
    ranks_work.train(prepared_path, tmp_path, "sgd", steps=3)
    torchrun(3, WORK, prepared_path, tmp_path, "sgd+resumed")
    root, _ = alone("sgd")
    assert largest_difference(state(tmp_path, "sgd"), state(root, "sgd")) < TOLERANCE


@pytest.mark.slow
def test_ranks_begin_with_weights_and_keep_what_is_frozen(alone, prepared_path, tmp_path):
    """Of three: the mean of three equal numbers may be another one."""
    root, _ = alone("sgd")
    command = ["-m", "fast_train.pipeline.cli", "--data", prepared_path, "--device", "cpu", "--batch-size", "24"]
    command += ["--weights", root / "sgd", "--set", "model.freeze=layer3", "--epochs", "2", "--amp", "off", "--brief"]
    torchrun(3, *command, "--out", tmp_path / "together")
    known, tuned = state(root, "sgd")["step"]["average"], state(tmp_path, "together")["step"]["model"]
    assert [name for name in known if not torch.equal(known[name], tuned[name])] == ["fc.weight", "fc.bias"]


@pytest.mark.slow
def test_a_compiled_step_is_reduced_too(alone, prepared_path, tmp_path):
    torchrun(2, WORK, prepared_path, tmp_path, "compiled")
    root, _ = alone("compiled")
    assert largest_difference(state(tmp_path, "compiled"), state(root, "compiled")) < TOLERANCE


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_one_rank_trains_as_a_process_without_torchrun(prepared_path, tmp_path, device):
    """By the process group and the messages of many; on a GPU the captured graph has them."""
    command = ["-m", "fast_train.pipeline.cli", "--data", prepared_path, "--device", device, "--recipe", "fast"]
    command += ["--arch", "resnet8", "--batch-size", "24", "--set", "run.steps=8", "--deterministic", "--no-compile"]
    command += ["--brief", "--out"]
    torchrun(1, *command, tmp_path / "rank")
    subprocess.run([sys.executable, *command, tmp_path / "alone"], env=environment(), capture_output=True, check=True)
    rank, alone = state(tmp_path, "rank"), state(tmp_path, "alone")
    assert not differing(rank["step"], alone["step"])
    assert [epoch["train_loss"] for epoch in rank["history"]] == [epoch["train_loss"] for epoch in alone["history"]]


@pytest.mark.gpu
def test_gpu_one_rank_shares_statistics_in_a_compiled_and_captured_step(prepared_path, tmp_path):
    """Compiled in parts, with a message for each norm; of one rank the shared statistics are its own."""
    command = ["-m", "fast_train.pipeline.cli", "--data", prepared_path, "--device", "cuda", "--recipe", "fast-sgd"]
    command += ["--arch", "resnet8", "--batch-size", "24", "--set", "run.steps=8", "--amp", "off", "--brief", "--out"]
    torchrun(1, *command, tmp_path / "rank", "--sync-batchnorm")
    subprocess.run([sys.executable, *command, tmp_path / "alone"], env=environment(), capture_output=True, check=True)
    rank, alone = ([epoch["train_loss"] for epoch in state(tmp_path, run)["history"]] for run in ("rank", "alone"))
    assert rank == pytest.approx(alone, rel=2e-2)


# -- the data of each rank -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_parts_of_a_batch_are_the_batch(prepared, name, ranks):
    """Each loader, in the middle of an epoch too, wherever one rank stopped."""
    with build_loader(name, prepared, "train", batch_size=24, seed=3) as whole:
        whole.set_epoch(2)
        batches = [batch.clone() for batch in whole]
        stopped = {**whole.state_dict(), "step": 3}
    for rank in range(ranks):
        with build_loader(name, prepared, "train", batch_size=24, seed=3, rank=rank, ranks=ranks) as part:
            part.load_state_dict(stopped)
            own = slice(rank * 24 // ranks, (rank + 1) * 24 // ranks)
            pairs = list(zip(part, batches[3:], strict=True))
            assert all(torch.equal(mine, all_[own]) for pair in pairs for mine, all_ in zip(*pair, strict=True))


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_each_image_is_evaluated_by_one_rank(prepared, name, ranks):
    seen = []
    for rank in range(ranks):
        options = {"batch_size": 4, "train": False, "rank": rank, "ranks": ranks}
        with build_loader(name, prepared, "test", **options) as loader:
            seen += [index for batch in loader for index in batch.indices.tolist()]
    assert seen == list(range(prepared.size("test")))


def test_shards_are_parts_for_good(prepared):
    """The batches of two epochs come from one part, each of its images once an epoch; parts have nothing in common."""
    parts = []
    for rank in range(2):
        options = {"batch_size": 24, "seed": 1, "rank": rank, "ranks": 2, "shard": True}
        with build_loader("resident", prepared, "train", **options) as loader:
            epochs = []
            for epoch in range(2):
                loader.set_epoch(epoch)
                batches = list(loader.feed())
                pixels = prepared.packed("train").images
                assert all((b.images.numpy() == pixels[b.indices.numpy()]).all() for b in batches)
                epochs.append(torch.cat([batch.indices for batch in batches]).tolist())
            assert sorted(epochs[0]) == sorted(epochs[1])
            assert epochs[0] != epochs[1]
            parts.append(set(epochs[0]))
    assert len(parts[0]) == len(parts[1]) == 60
    assert not parts[0] & parts[1]


def test_a_run_on_shards_ends(folder):
    assert state(folder, "shards")["done_steps"] == 8


# -- the environment -------------------------------------------------------------------------------------------------

_WHOLE = {
    "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost", "MASTER_PORT": "1",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"RANK": ""}, "has WORLD_SIZE, as for one of several processes, and lacks RANK"),
        ({"MASTER_PORT": ""}, "has RANK and WORLD_SIZE, as for one of several processes, and lacks MASTER_PORT"),
        ({"RANK": "2"}, "RANK=2, WORLD_SIZE=2"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two, which names no process"),
        ({"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE=3, which names no process"),
    ],
)
def test_a_wrong_environment_is_one_line(prepared_path, monkeypatch, capsys, tmp_path, changed, said):
    monkeypatch.chdir(tmp_path)
    for name, value in {**_WHOLE, **changed}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["--data", str(prepared_path)]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert len(printed.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("flags", [["--evaluate", "runs/a"], ["--show-batch"], ["--list-loaders"], None])
def test_what_is_the_work_of_one_is_refused_by_the_first(monkeypatch, capsys, tmp_path, rank, flags):
    monkeypatch.chdir(tmp_path)
    for name, value in {**_WHOLE, "RANK": str(rank), "LOCAL_RANK": str(rank)}.items():
        monkeypatch.setenv(name, value)
    status = prep_cli.main(["--dataset", "synthetic"]) if flags is None else cli.main(flags)
    assert status == 2
    printed = capsys.readouterr().err
    assert ("is the work of one; start it without torchrun" in printed) == (rank == 0)
    assert len(printed.splitlines()) == (rank == 0)


def test_torchrun_shows_the_line_of_an_error_at_its_end(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert cli.main(["--data", str(tmp_path / "nowhere")]) == 2
    line = capsys.readouterr().err.strip()
    shown = ChildFailedError("fast-train", {0: ProcessFailure(0, 7, 2, str(tmp_path / "error.json"))})
    assert line in str(shown).splitlines()[-2]


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_that_a_signal_ends_the_first_says_so(prepared_path, monkeypatch, capsys, rank):
    def run(given, actions):
        raise KeyboardInterrupt(signal.SIGTERM)

    monkeypatch.setattr(commands, "run", run)
    for name, value in {**_WHOLE, "RANK": str(rank), "LOCAL_RANK": str(rank)}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["--data", str(prepared_path)]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == ("" if rank else "fast-train: terminated\n")


def test_a_platform_that_counts_one_process_is_no_group(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert world() is None


def test_ranks_share_the_cores_of_a_machine(monkeypatch):
    """torchrun's own OMP_NUM_THREADS=1 is nobody's wish; another number is."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.delenv("OMP_NUM_THREADS")
    alone = usable_cores()
    for name, value in {**_WHOLE, "TORCHELASTIC_RUN_ID": "x", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    assert world() == World(rank=0, size=2, local_rank=0, local_size=2)
    assert usable_cores() == max(alone // 2, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert usable_cores() == 1


# -- together or not at all ------------------------------------------------------------------------------------------


class Command:
    """fast-train on two ranks that trains until it is stopped."""

    def __init__(self, prepared_path, root, *, flags=(), torchrun=(), hooks=()):
        self.out, self.root = root / "out", root
        start = [str(TESTS / "faults" / "hooked.py"), *hooks] if hooks else ["-m"]
        line = [*TORCHRUN, "--nproc-per-node", "2", *torchrun, *start, "fast_train.pipeline.cli", "--device", "cpu"]
        line += ["--data", str(prepared_path), "--out", str(self.out), "--arch", "resnet8", "--batch-size", "24"]
        line += ["--epochs", "5000", "--brief", "--amp", "off", *flags]
        with open(root / "output", "w") as output, open(root / "errors", "w") as errors:
            given = {**environment(), "FAULT_MADE": str(root / "made")}
            self.process = subprocess.Popen(line, stdout=output, stderr=errors, env=given, cwd=root)

    def wait_for(self, text, name="output"):
        until = time.monotonic() + 200
        while text not in (self.root / name).read_text():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < until, f"'{text}' was never printed"
            time.sleep(0.05)

    def rank(self, number):
        """The process of a rank, by its number."""
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid and f"\0RANK={number}\0" in (place / "environ").read_text():
                    return int(place.name)
        raise AssertionError(f"rank {number} is not there: {self.said}")

    @property
    def said(self):
        """What the ranks said on standard error, without torchrun's words."""
        return [line for line in (self.root / "errors").read_text().splitlines() if line.startswith("fast-train")]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(60)


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_signal_to_one_rank_stops_all_after_one_step(prepared_path, tmp_path, rank):
    """Saved once, and SIGUSR1 before it saves without an end."""
    with Command(prepared_path, tmp_path, flags=["--save-every", "100000"]) as command:
        command.wait_for("epoch   2")
        os.kill(command.rank(1), signal.SIGUSR1)
        while not (command.out / "last.pt").exists():
            assert command.process.poll() is None, command.said
            time.sleep(0.05)
        saved = state(tmp_path, "out")["done_steps"]
        os.kill(command.rank(rank), signal.SIGTERM)
        command.process.wait(60)
        assert len(command.said) == 1
        assert "stopped by a signal, saved; go on with: fast-train --resume" in command.said[0]
        assert state(tmp_path, "out")["done_steps"] >= saved


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_rank_ends_all_and_torchrun_starts_them_again(prepared_path, tmp_path, rank):
    flags, again = ["--save-every", "3", "--resume", "auto"], ["--max-restarts", "1"]
    with Command(prepared_path, tmp_path, flags=flags, torchrun=again) as command:
        command.wait_for("epoch   2")
        os.kill(command.rank(rank), signal.SIGKILL)
        command.wait_for("going on after step")
        assert len(command.said) == 1
        assert f"rank {rank} ended without a word: killed" in command.said[0]
        # Its standard output goes on in the same file.
        steps = int(re.search(r"going on after step (\d+)", (tmp_path / "output").read_text())[1])
        assert steps >= 6
        command.process.send_signal(signal.SIGINT)
        command.process.wait(60)
        assert state(tmp_path, "out")["done_steps"] >= steps


@pytest.mark.slow
def test_a_loader_that_fails_in_one_rank_ends_all(prepared_path, tmp_path):
    with Command(prepared_path, tmp_path, flags=["--loader", "torch", "--workers", "1"]) as command:
        command.wait_for("epoch   2")
        children = Path(f"/proc/{command.rank(1)}/task").glob("*/children")
        for worker in (int(number) for path in children for number in path.read_text().split()):
            os.kill(worker, signal.SIGKILL)
        command.process.wait(60)
        assert len(command.said) == 1
        assert command.said[0].startswith("fast-train (rank 1): error: a loading process was killed")


@pytest.mark.slow
def test_a_full_disk_of_the_first_rank_ends_all(prepared_path, tmp_path):
    full = ["fast_train.pipeline.engine.saving:save_checkpoint", "1", "fail=full"]
    with Command(prepared_path, tmp_path, flags=["--stop-after", "1"], hooks=full) as command:
        command.process.wait(200)
        assert len(command.said) == 1
        assert "No space left on device" in command.said[0]
        assert not list(command.out.glob("*.pt*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--batch-size", "25"], "a batch of 25 images can't be shared out among 2 ranks; give a --batch"),
        (
            ["--batch-size", "24", "--set", "selection.share=0.5"],
            "selection.share below 1 is for a training in one pro",
        ),
    ],
)
def test_what_ranks_can_t_share_is_one_line(prepared_path, tmp_path, flags, error):
    flags = ["--data", prepared_path, *flags]
    done = torchrun(2, "-m", "fast_train.pipeline.cli", *flags, check=False, cwd=tmp_path)
    said = [line for line in done.stderr.splitlines() if line.startswith("fast-train")]
    assert len(said) == 1
    assert said[0].startswith(f"fast-train: error: {error}")
    assert not list(tmp_path.glob("runs/*/*"))


def test_the_log_is_the_first_ranks(folder):
    lines = (folder / "local" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
