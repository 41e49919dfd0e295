"""Whole runs through the command, on a small set of real files on the CPU."""

import dataclasses
import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

import fast_train
from fast_train.data_prep import cli as prep_cli
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline import cli, commands, device
from fast_train.pipeline.config.recipe import override, resolve
from fast_train.pipeline.engine import runtime
from fast_train.pipeline.engine.checkpoint import load_checkpoint, save_checkpoint
from fast_train.pipeline.engine.step import TrainStep
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.loaders import LOADERS
from fast_train.pipeline.run import session
from fast_train.pipeline.run.record import check_resumable, load, read

# lr 0.1 on a 0.1-million-weight network: enough to learn three shapes in a few epochs.
RECIPE = """
[model]
arch = "resnet8"
[data]
batch_size = 24
[augment]
pad = 2
flip = true
[optimizer]
lr = 0.1
label_smoothing = 0.1
ema_decay = 0.8
[schedule]
name = "triangular"
warmup = 0.2
[run]
epochs = 3
"""


@pytest.fixture
def train(prepared_path, tmp_path, monkeypatch):
    """Call fast-train with a small recipe from an empty folder; returns the exit status. pictures: draw them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(RECIPE)

    def call(*arguments, pictures=False):
        options = ["--data", str(prepared_path), "--recipe", "small.toml", "--device", "cpu"]
        return cli.main([*options, *([] if pictures else ["--brief"]), *arguments])

    call.folder = tmp_path
    return call


@pytest.mark.gpu
def test_a_gpu_trains_evaluates_and_predicts_on_images_that_the_cpu_makes(train, prepared, monkeypatch):
    """As Apple's does."""
    monkeypatch.setattr(device, "_FED_BY_CPU", {"cuda"})
    assert train("--out", "run", "--epochs", "1", "--device", "cuda", "--no-compile", "--no-graph") == 0
    assert cli.main(["--evaluate", "run", "--device", "cuda", "--brief"]) == 0
    (found,) = fast_train.load_model("run", device="cuda").predict(prepared.packed("test").images[:1])
    assert found.label in prepared.manifest.classes
    assert train("--out", "plain", "--epochs", "1") == 0
    first, second = (json.loads((train.folder / run / "metrics.jsonl").read_text()) for run in ("run", "plain"))
    assert first["train_loss"] == pytest.approx(second["train_loss"], rel=0.02)


def test_pictures_that_cannot_be_drawn_cost_nothing_else(train, monkeypatch, capsys):
    def broken(*arguments, **options):
        raise RuntimeError("no\nfonts")

    monkeypatch.setattr(commands, "write_pictures", broken)
    assert train("--out", "run", "--epochs", "1", pictures=True) == 0
    printed = capsys.readouterr()
    assert printed.err == "fast-train: the pictures can't be written: no fonts\n"
    assert "trained for" in printed.out


@pytest.mark.parametrize("asked", [True, False])
def test_a_step_that_cannot_be_compiled(train, monkeypatch, capsys, asked):
    """One line and no folder where that was asked for; where it is only the default, as on a GPU, the step runs as it
    is, and the record says so."""

    def broken(graph, inputs):
        raise OSError("headers.h: error: no such file")

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend=broken))
    if not asked:
        chosen = runtime.resolve_runtime
        monkeypatch.setattr(runtime, "resolve_runtime", lambda run: dataclasses.replace(chosen(run), compile=True))
    assert train("--out", "run", "--epochs", "1", *["--compile"][:asked]) == (2 if asked else 0)
    printed = capsys.readouterr()
    told = printed.err if asked else printed.out
    assert "torch.compile failed: OSError: headers.h: error: no such file; add --no-compile" in told
    assert printed.err.count("\n") == asked
    assert ("as this run does by itself" in printed.out) == (not asked)
    assert (train.folder / "run").exists() == (not asked)
    assert asked or "compiled" not in read(train.folder / "run").environment["device"]


def _flatten(value, place=""):
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _flatten(child, f"{place}.{key}")
    elif isinstance(value, list):
        for number, child in enumerate(value):
            yield from _flatten(child, f"{place}.{number}")
    else:
        yield place, value


def assert_same_run(first, second):
    """Two checkpoints hold the same bits, but for times."""
    pairs = zip(_flatten(load_checkpoint(first)), _flatten(load_checkpoint(second)), strict=True)
    compared = 0
    for (place, a), (other_place, b) in pairs:
        assert place == other_place
        if place.endswith(("seconds", "images_per_second", ".rng.cpu")):
            continue
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, place
        compared += isinstance(a, torch.Tensor)
    assert compared > 50


def test_resuming_equals_a_straight_run_bit_for_bit(train, name):
    options = ["--loader", name, "--workers", "1"]
    assert train("--out", "straight", *options) == 0
    assert train("--out", "parts", "--stop-after", "1", *options) == 0
    assert len(load_checkpoint(train.folder / "parts" / "last.pt")["history"]) == 1
    assert cli.main(["--resume", "parts", "--brief"]) == 0
    assert_same_run(train.folder / "straight" / "last.pt", train.folder / "parts" / "last.pt")
    lines = [json.loads(line) for line in (train.folder / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["step"] for line in lines] == [5, 10, 15]


def test_all_loaders_train_to_the_same_weights(train, name):
    assert train("--out", "a", "--loader", "resident") == 0
    assert train("--out", "b", "--loader", name, "--workers", "2") == 0
    a, b = (load_checkpoint(train.folder / name / "last.pt") for name in "ab")
    for first, second in zip(a["step"]["model"].values(), b["step"]["model"].values(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.skipif(LOADERS["dali"].missing() is not None, reason=str(LOADERS["dali"].missing()))
def test_augmentation_inside_dali_trains_to_nearly_the_same(train):
    """Its float32 differs from the kernel's in the last bit."""
    assert train("--out", "a", "--loader", "dali") == 0
    assert train("--out", "b", "--loader", "dali", "--dali-augment", "native") == 0
    a, b = (load_checkpoint(train.folder / name / "last.pt")["history"] for name in "ab")
    for first, second in zip(a, b, strict=True):
        assert second["train_loss"] == pytest.approx(first["train_loss"], rel=1e-3)


@pytest.fixture
def interrupt_at(monkeypatch):
    """Run something with a signal raised in the middle of a step."""

    def call(at_step, signum, run):
        after = TrainStep.after

        def interrupting(step, done, total):
            after(step, done, total)
            if done == at_step:
                signal.raise_signal(signum)

        with monkeypatch.context() as patch:
            patch.setattr(TrainStep, "after", interrupting)
            return run()

    return call


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("at_step", [1, 7, 10])
def test_a_signal_saves_inside_the_epoch_and_the_run_goes_on(train, interrupt_at, capsys, signum, status, at_step):
    assert train("--out", "straight") == 0
    assert interrupt_at(at_step, signum, lambda: train("--out", "parts")) == status
    assert "go on with: fast-train --resume parts" in capsys.readouterr().err
    assert load_checkpoint(train.folder / "parts" / "last.pt")["done_steps"] == at_step
    assert train("--out", "parts", "--resume", "auto") == 0
    assert_same_run(train.folder / "straight" / "last.pt", train.folder / "parts" / "last.pt")
    # Stopped after an epoch's last step, nothing of it was left to train: no speed is better than none a second.
    speeds = [record["images_per_second"] for record in load_checkpoint(train.folder / "parts" / "last.pt")["history"]]
    assert (None in speeds) == (at_step == 10)
    assert all(speed is None or speed > 0 for speed in speeds)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_checkpoint_from_inside_an_epoch_goes_on_to_the_same_bits(train, capsys, device):
    """What --save-every writes, also between a graph's replays, --keep and --keep-best keep, --save-as names."""
    options = ["--device", device, *(["--deterministic"] if device == "cuda" else [])]
    assert train("--out", "straight", *options) == 0
    saved = ["--save-every", "2", "--keep", "3", "--keep-best", "--save-as", "end"]
    assert train("--out", "run", *options, *saved) == 0
    run = train.folder / "run"
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["end.pt", "step-000012.pt", "step-000014.pt", "step-000015.pt"]
    tested = [record["test_accuracy"] for record in load_checkpoint(run / "last.pt")["history"]]
    assert load_checkpoint(run / "best.pt")["history"][-1]["test_accuracy"] == max(tested)
    assert cli.main(["--resume", "run/checkpoints/step-000012.pt", "--out", "branch", "--brief"]) == 0
    assert "going on after step 12 of 15" in capsys.readouterr().out
    assert_same_run(run / "last.pt", train.folder / "branch" / "last.pt")
    for first, second in zip(*(_weights(train.folder / name) for name in ("run", "straight")), strict=True):
        assert torch.equal(first, second)
    for given in ("run/best.pt", "run/checkpoints/end.pt"):
        assert cli.main(["--evaluate", given, "--device", "cpu", "--brief"]) == 0
    assert f"test accuracy {tested[-1]:.2%}" in capsys.readouterr().out


def _weights(run):
    return load_checkpoint(run / "last.pt")["step"]["model"].values()


def test_stopping_after_an_epoch_that_is_done_trains_no_further(train):
    for resume in ([], ["--resume", "auto"]):
        assert train("--out", "run", "--stop-after", "2", *resume) == 0
        assert len(load_checkpoint(train.folder / "run" / "last.pt")["history"]) == 2


@pytest.mark.slow
def test_a_compiled_run_goes_on_inside_an_epoch(train, interrupt_at):
    """Warming up, which compiles, must move neither the loader nor the weights."""
    assert train("--out", "straight", "--compile") == 0
    assert interrupt_at(7, signal.SIGINT, lambda: train("--out", "parts", "--compile")) == 130
    assert train("--out", "parts", "--compile", "--resume", "auto") == 0
    assert_same_run(train.folder / "straight" / "last.pt", train.folder / "parts" / "last.pt")


def test_a_run_of_so_many_steps_can_be_made_longer(train):
    constant = ["--set", "schedule.name=constant", "--set", "schedule.warmup=0.0"]
    assert train("--out", "run", "--set", "run.steps=7", *constant) == 0
    assert train("--out", "run", "--set", "run.steps=13", "--resume", "auto", *constant) == 0
    assert train("--out", "straight", "--set", "run.steps=13", *constant) == 0
    longer, straight = (load_checkpoint(train.folder / name / "last.pt") for name in ("run", "straight"))
    for a, b in zip(longer["step"]["model"].values(), straight["step"]["model"].values(), strict=True):
        assert torch.equal(a, b)
    assert [record["step"] for record in longer["history"]] == [5, 10, 13]
    # The epoch that the shorter run broke off counts all of its images.
    for name in ("train_loss", "train_accuracy"):
        assert [record[name] for record in longer["history"]] == [record[name] for record in straight["history"]]


def test_a_diverging_run_says_so_and_keeps_the_last_good_checkpoint(train, capsys):
    assert train("--out", "run", "--stop-after", "1") == 0
    good = (train.folder / "run" / "last.pt").read_bytes()
    state = load_checkpoint(train.folder / "run" / "last.pt")
    state["step"]["model"]["conv1.weight"].fill_(float("nan"))
    save_checkpoint(train.folder / "run" / "last.pt", _body(state))
    poisoned = (train.folder / "run" / "last.pt").read_bytes()
    capsys.readouterr()
    assert train("--out", "run", "--resume", "auto") == 1
    message = capsys.readouterr().err
    assert "the loss became nan in epoch 2" in message
    assert message.count("\n") == 1
    assert (train.folder / "run" / "last.pt").read_bytes() == poisoned != good


def test_it_learns(train):
    assert train("--out", "run", "--epochs", "12") == 0
    last = json.loads((train.folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["test_accuracy"] >= 0.8  # chance is 0.33


def test_what_a_run_leaves(train, capsys):
    assert train("--out", "run", pictures=True) == 0
    printed = capsys.readouterr().out
    assert "on 120 images of shapes; " in printed
    names = {path.name for path in (train.folder / "run").iterdir()}
    pictures = {"learning-curves.png", "confusion-matrix.png", "class-accuracy.png", "predictions.png"}
    texts = {"config.json", "metrics.jsonl", "seconds.json", "predictions.csv"}
    assert names == pictures | texts | {"tensorboard", "last.pt"}
    seconds = json.loads((train.folder / "run" / "seconds.json").read_text())
    assert seconds.keys() >= {"device", "reading", "network", "training", "evaluation", "saving", "pictures"}
    told = re.search(r"trained for [\d.]+ s; ([\d.]+) s since the command began, of which (\w+) ", printed)
    assert float(told[1]) == pytest.approx(sum(seconds.values()), abs=0.06)
    assert told[2] == max(seconds, key=seconds.get)
    saved = json.loads((train.folder / "run" / "config.json").read_text())
    assert saved["config"]["optimizer"]["lr"] == 0.1
    assert saved["config"]["model"]["num_classes"] == 3
    assert saved["data"]["source"]["kind"] == "folder"
    keys = load_checkpoint(train.folder / "run" / "last.pt")["step"]["model"].keys()
    assert {"conv1.weight", "layer1.0.bn1.running_mean", "fc.bias"} <= set(keys)
    assert not any(key.startswith("_orig_mod") for key in keys)


def test_target_accuracy_ends_the_run(train, capsys):
    easy = ["--out", "easy", "--lr", "0.0001"]
    assert train(*easy, "--target-accuracy", "0.05") == 0
    assert len(load_checkpoint(train.folder / "easy" / "last.pt")["history"]) == 1
    assert train(*easy, "--target-accuracy", "0.05", "--resume", "auto") == 0
    assert "is complete: 1 epoch; nothing" in capsys.readouterr().out
    # A higher target is not reached yet: the run goes on.
    assert train(*easy, "--target-accuracy", "1.0", "--resume", "auto") == 1
    assert len(load_checkpoint(train.folder / "easy" / "last.pt")["history"]) == 3
    assert train(*easy, "--target-accuracy", "1.0", "--resume", "auto") == 1, "complete, and missed"
    assert train("--out", "hard", "--epochs", "1", "--target-accuracy", "1.0", "--lr", "0.0001") == 1
    assert "100.00% was not reached" in capsys.readouterr().err


def test_a_run_ends_at_its_number_of_steps(train):
    assert train("--out", "run", "--set", "run.steps=7") == 0
    state = load_checkpoint(train.folder / "run" / "last.pt")
    assert state["done_steps"] == 7
    assert [record["step"] for record in state["history"]] == [5, 7]


def test_run_folders_and_resume_auto(train, prepared, capsys):
    assert train("--epochs", "1") == 0
    assert train("--epochs", "1") == 0
    base = train.folder / "runs"
    assert sorted(p.name for p in base.iterdir()) == ["shapes-resnet8-small", "shapes-resnet8-small-2"]
    assert train("--epochs", "2", "--resume", "auto") == 0
    assert len(load_checkpoint(base / "shapes-resnet8-small-2" / "last.pt")["history"]) == 2
    capsys.readouterr()
    assert train("--epochs", "2", "--resume", "auto") == 0
    assert "is complete" in capsys.readouterr().out
    assert train("--out", "runs/shapes-resnet8-small") == 2
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize("remembers", ["checkpoint", "record"])
def test_a_run_does_not_go_on_with_other_images(train, capsys, remembers):
    """A checkpoint of an earlier version leaves it to its run's record."""
    assert train("--out", "run", "--stop-after", "1") == 0
    record, last = train.folder / "run" / "config.json", train.folder / "run" / "last.pt"
    state = load_checkpoint(last)
    data = state.pop("data")
    files, mean = data["files"], data["mean"]
    # Of other formats' files the run reads nothing.
    others = {**files, "train.beton": "0" * 64}
    for changed, status in (
        ({"files": {**files, "train.safetensors": "0" * 64}}, 2),
        ({"files": others}, 0),
        ({"files": {}}, 0),
        ({"files": {}, "mean": [mean[0] / 2, *mean[1:]]}, 2),
    ):
        if remembers == "checkpoint":
            save_checkpoint(last, {**_body(state), "data": {**data, **changed}})
        else:
            torch.save({**state, "format_version": 1}, last)
            record.write_text(json.dumps({**json.loads(record.read_text()), "data": {**data, **changed}}))
        capsys.readouterr()
        assert train("--out", "run", "--resume", "auto", "--stop-after", "1") == status
        printed = capsys.readouterr()
        assert ("trained on other images" in printed.err) == (status == 2)
        assert ("without a checksum" in printed.out) == (status == 0 and remembers == "record")


def _body(state):
    return {name: value for name, value in state.items() if name != "format_version"}


def test_the_same_images_in_another_format_are_the_same(train, image_folder):
    """Also where no record of the run lies beside its checkpoint."""
    images = train.folder / "images"
    shutil.copytree(image_folder, images)
    first, last = sorted((images / "train" / "cross").iterdir())[:2]
    shutil.copy(first, last)
    for source, out in ((image_folder, "same"), (images, "other")):
        assert prep_cli.main(["--dataset", f"folder:{source}", "--formats", "dali", "--out", out]) == 0
    assert train("--out", "run", "--stop-after", "1") == 0
    shutil.copy(train.folder / "run" / "last.pt", train.folder / "a.pt")
    saved = load(Path("a.pt"))
    config = override(saved.config, {"data": {"loader": "dali"}})
    check_resumable(saved, config, PreparedSet.open("same"), {})
    with pytest.raises(
        ConfigError, match=r"a\.pt was trained on other images than other holds: they differ in the mean"
    ):
        check_resumable(saved, config, PreparedSet.open("other"), {})


def test_resume_auto_without_a_run_starts_one(train):
    assert train("--out", "new", "--resume", "auto", "--epochs", "1") == 0
    assert (train.folder / "new" / "last.pt").exists()


def test_resume_auto_begins_anew_where_a_run_was_killed_before_its_first_checkpoint(train):
    for place in (["--out", "run"], []):
        assert train(*place, "--epochs", "1") == 0
    killed = [train.folder / "run", train.folder / "runs" / "shapes-resnet8-small"]
    for folder in killed:
        (folder / "last.pt").unlink()
    for place in (["--out", "run"], []):
        assert train(*place, "--epochs", "1", "--resume", "auto") == 0
    assert all((folder / "last.pt").exists() for folder in killed)


@pytest.mark.parametrize(("before", "then"), [("bf16", "fp16"), ("fp16", "off")])
def test_a_run_goes_on_in_another_type(train, capsys, before, then):
    """Of these float16 alone scales the loss, and has the scale in its checkpoint."""
    assert train("--out", "run", "--amp", before, "--stop-after", "1") == 0
    printed = capsys.readouterr().out
    assert "note: run." not in printed
    assert "in all" not in printed
    assert train("--out", "run", "--resume", "auto", "--amp", then) == 0
    printed = capsys.readouterr().out
    assert f"note: run.amp was {before} so far, is {then} from here on\n" in printed
    assert printed.count("note: run.") == 1
    this_part, in_all = map(float, re.search(r"trained for ([\d.]+) s \(([\d.]+) s in all\);", printed).groups())
    state = load_checkpoint(train.folder / "run" / "last.pt")
    assert in_all >= this_part
    assert in_all == pytest.approx(state["train_seconds"], abs=0.06)
    assert len(state["history"]) == 3


def test_evaluate_gives_the_accuracy_of_the_run(train, capsys):
    assert train("--out", "run") == 0
    last = json.loads((train.folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    capsys.readouterr()
    for given in ("run", "run/last.pt"):
        assert cli.main(["--evaluate", given, "--device", "cpu"]) == 0
        assert f"test accuracy {last['test_accuracy']:.2%}" in capsys.readouterr().out
    assert (train.folder / "run" / "evaluation" / "confusion-matrix.png").exists()
    assert len((train.folder / "run" / "evaluation" / "predictions.csv").read_text().splitlines()) == 34
    assert cli.main(["--evaluate", "run", "--tta", "--device", "cpu", "--out", "[bold]"]) == 0
    assert (train.folder / "[bold]" / "predictions.png").exists()
    assert "[bold]/predictions.png" in capsys.readouterr().out


def test_a_run_that_was_stopped_before_its_pictures_draws_them_when_it_is_called_again(train, capsys):
    assert train("--out", "run", "--epochs", "1") == 0
    for times in (1, 0):
        assert train("--out", "run", "--resume", "auto", pictures=True) == 0
        assert (train.folder / "run" / "predictions.png").exists()
        assert capsys.readouterr().out.count("pictures: ") == times


def test_show_batch_writes_a_picture_and_does_not_train(train):
    assert train("--show-batch", "--out", "look", pictures=True) == 0
    assert [p.name for p in (train.folder / "look").iterdir()] == ["batch.png"]


def test_what_does_not_fit_the_data_is_said(train, capsys):
    assert train("--out", "run", "--batch-size", "4096", "--epochs", "1", "--workers", "2") == 0
    printed = capsys.readouterr().out
    assert "batch size 4096 -> 120" in printed
    assert "--workers does nothing there" in printed


def test_a_step_that_does_not_fit_into_memory_is_refused_before_the_run(train, capsys, monkeypatch):
    monkeypatch.setattr("fast_train.pipeline.engine.memory.free_memory", lambda: 1 << 20)
    assert train("--out", "run", "--device", "cpu") == 2
    error = capsys.readouterr().err
    assert error.startswith("fast-train: error: a step on 24 images takes more than 0.0 GB of memory")
    assert error.count("\n") == 1
    assert not (train.folder / "run").exists()


def _a_second_training_equals_a_first_one(prepared, folder, recipe, **run):
    def config(seed):
        data = {"batch_size": 32, "workers": 1}
        given = {"run": {"epochs": 2, "seed": seed, **run}, "data": data, "model": {"num_classes": 3}}
        return resolve(recipe, given)

    for name in ("other", "again", "new"):
        (folder / name).mkdir(parents=True)
    with session.Session(config(1), prepared) as opened:
        opened.train(folder / "other")
        again = opened.train(folder / "again", seed=7)
    with session.Session(config(7), prepared) as opened:
        new = opened.train(folder / "new")
    assert (again.config.run.seed, again.steps) == (7, new.steps)
    assert_same_run(new.folder / "last.pt", again.folder / "last.pt")


@pytest.mark.parametrize(
    "recipe", ["record-94", "cpu-sgd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("record-96", "notes"))]
)
def test_a_second_training_of_a_session_equals_a_first_one(prepared, tmp_path, recipe):
    """Whitening layer, lookahead, momentum, plateau schedule: nothing of the first training is left."""
    _a_second_training_equals_a_first_one(prepared, tmp_path, recipe, device="cpu")


@pytest.mark.gpu
def test_gpu_a_second_training_of_a_session_equals_a_first_one(prepared, tmp_path):
    """The graph of the first training's seed is not replayed for the second."""
    torch.use_deterministic_algorithms(True)
    try:
        _a_second_training_equals_a_first_one(prepared, tmp_path, "record-94", device="cuda", deterministic=True)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("flags", [["--amp"], ["--amp", "fp16"], ["--no-channels-last"], ["--deterministic"],
                                   ["--grad-clip", "1"], ["--activation", "elu"], ["--shortcut", "C"]])  # fmt: skip
def test_flags_train(train, flags):
    try:
        assert train("--out", "run", "--epochs", "1", *flags) == 0
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
def test_gpu_training_and_resuming(train, name):
    options = ["--device", "cuda", "--amp", "--loader", name, "--out", "run"]
    assert train(*options, "--stop-after", "1") == 0
    assert train(*options, "--resume", "auto") == 0
    history = load_checkpoint(train.folder / "run" / "last.pt")["history"]
    assert len(history) == 3
    assert history[-1]["train_loss"] < history[0]["train_loss"]


@pytest.mark.gpu
def test_gpu_losses_do_not_depend_on_the_loader(train, name):
    options = ["--device", "cuda", "--amp", "--deterministic"]
    try:
        assert train(*options, "--out", "a", "--loader", "resident") == 0
        assert train(*options, "--out", "b", "--loader", name) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    a, b = (load_checkpoint(train.folder / run / "last.pt")["history"] for run in "ab")
    assert [epoch["train_loss"] for epoch in a] == [epoch["train_loss"] for epoch in b]
