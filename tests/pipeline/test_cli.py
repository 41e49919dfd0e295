"""What the command says to a newcomer and to bad input."""

import json
import subprocess
import sys

import pytest
import torch

from fast_train.data_prep import cli as prep_cli
from fast_train.pipeline import cli, commands
from fast_train.pipeline.engine.memory import memory_error
from fast_train.pipeline.flags import parse_flags
from fast_train.pipeline.run import plan


def test_help_needs_no_torch():
    """Importing torch takes seconds; --help must not."""
    code = (
        "import sys\nfrom fast_train.pipeline import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--arch" in done.stdout
    assert "exit status" in done.stdout


def test_a_path_or_a_setting_that_can_not_be_used_is_refused_before_torch_is_imported(prepared_path, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").touch()
    calls = {
        "no checkpoint at nope": ["--resume", "nope"],
        "no checkpoint at nowhere": ["--evaluate", "nowhere"],
        "run holds no checkpoint": ["--evaluate", "run"],
        "file is a file": ["--out", "file"],
        "the folder file/below can't be made (Not a directory)": ["--out", "file/below"],
        "the folder /proc/x can't be made": ["--out", "/proc/x"],
        "run holds a run already": ["--out", "run"],
        "unknown device 'gpu'": ["--evaluate", "file", "--device", "gpu"],
        "0 epochs": ["--resume", "file", "--epochs", "0"],
        "file says how the network is built and was trained; leave out --image-size": [
            "--evaluate", "file", "--image-size", "8"
        ],
    }  # fmt: skip
    (tmp_path / "file").touch()
    code = f"""
import sys
from fast_train.pipeline import cli
for arguments in {[*calls.values()]!r}:
    assert cli.main(arguments + ["--data", {str(prepared_path)!r}]) == 2, arguments
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for words, line in zip(calls, done.stderr.splitlines(), strict=True):
        assert line.startswith(f"fast-train: error: {words}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run"]


def test_no_training_waits_for_pictures():
    """matplotlib is imported when the first picture is drawn."""
    code = "import sys\nfrom fast_train.pipeline import commands\nassert 'matplotlib' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("arguments", "message"), [
    (["--data", "nowhere"], "nowhere"),
    (["--arch", "resnet17"], "did you mean 'resnet1"),
    (["--loader", "residnet"], "did you mean 'resident'"),
    (["--recipe", "nots"], "did you mean 'notes'"),
    (["--batch-size", "0"], "batch size 0 is too small"),
    (["--lr", "-1"], "learning rate -1.0 must be above 0"),
    (["--lr", "1e39"], "must be above 0 and below 1e+30"),
    (["--workers", "100000"], "100000 workers are out of range; give 0 to 1024"),
    (["--epochs", "0"], "0 epochs; give 1 or more"),
    (["--stop-after", "0"], "--stop-after 0 is no epoch"),
    (["--seed", "-4"], "seed -4 is out of range"),
    (["--target-accuracy", "94"], "target accuracy 94.0 must be a fraction"),
    (["--device", "tpu"], "device"),
    (["--device", "cuda:99"], "cuda:99"),
    (["--graph", "--device", "cpu"], "--graph needs a CUDA device"),
    (["--set", "optimizer.momentumm=0.5"], "did you mean 'momentum'"),
    (["--set", "momentum"], "write it as SECTION.NAME=VALUE"),
    (["--set", "recipe.name=fast"], "choose one by --recipe"),
    (["--set", "model.num_classes=7"], "model.num_classes is what the data say; leave it out"),
    (["--epochs", "3", "--set", "run.steps=1"], "--epochs and run.steps both say how long to train"),
    (["--set", "optimizer.momentum=high"], "must be a number"),
    (["--set", "schedule.milestones=['a']"], "schedule.milestones is 'a'; it must be a number"),
    (["--set", "schedule.milestones=0.5"], "must be a list, such as [0.5, 0.75]"),
    (["--set", "run.device=[1]"], "run.device is [1]; it must be a text"),
    (["--set", "run.deterministic=yes"], "must be true or false"),
    (["--arch", "resnet18", "--set", "model.stem=imagenet", "--batch-size", "1"], "a batch of one image of 16x16"),
    (["--arch", "resnet18", "--set", "model.stem=imagenet", "--batch-size", "2", "--set", "selection.share=0.5"],
     "a batch of one image of 16x16"),
    (["--set", "selection.share=0.5", "--progressive", "8,16"], "needs images of 9 pixels or more a side, not 8; take "
     "another selection.proxy"),
    (["--set", "selection.proxy=resnet8"], "selection.proxy means nothing where selection.share is 1; give a share"),
    (["--set", "run.tta_share=0.5"], "run.tta_share means nothing without --tta; add it, or leave that setting out"),
    (["--resume", "nowhere.pt"], "--resume nowhere.pt does not go with --recipe"),
    (["--evaluate", "nowhere"], "--evaluate does not go with --recipe"),
    (["--show-batch", "--stop-after", "1"], "--show-batch does not go with --stop-after"),
    (["--set", "augment.pad=9"], "pad 9 is out of range"),
    (["--set", "augment.brightness=1.5"], "augment.brightness 1.5 is out of range; give a number from 0 to 1"),
    (["--set", "run.tta_share=1.5"], "run.tta_share 1.5 must be a fraction in [0, 1]"),
    (["--set", "augment.pad_mode=reflect", "--set", "augment.pad=8", "--set", "augment.cutout=-1"], "cutout -1"),
])  # fmt: skip
def test_bad_input_is_one_line_and_exit_2(prepared_path, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--data", str(prepared_path), "--recipe", "paper", "--device", "cpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("fast-train: error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--resume", "nowhere.pt"], "no checkpoint at nowhere.pt"),
    (["--resume", "."], ". holds no checkpoint"),
    (["--save-every", "often"], "save every 'often' is no number of steps or time"),
    (["--save-every", "0"], "save every '0' is no"),
    (["--keep", "-1"], "keep -1 checkpoints"),
    (["--save-as", "a/b"], "'a/b' can't be a checkpoint's name"),
    (["--save-as", "step-7"], "'step-7' can't be"),
    (["--evaluate", "nowhere", "--save-as", "a"], "--evaluate does not go with --save-as"),
    (["--out", ""], "--out is empty"),
    (["--evaluate", "nowhere", "--brief", "--out", "there"], "--evaluate --brief does not go with --out"),
    (["--show-batch", "--resume", "auto"], "--show-batch does not go with --resume"),
    (["--evaluate", "nowhere"], "no checkpoint at nowhere"),
    (["--evaluate", "nowhere", "--resume", "auto"], "--evaluate does not go with --resume"),
    (["--evaluate", "nowhere", "--show-batch"], "--evaluate does not go with --show-batch"),
])  # fmt: skip
def test_no_flag_is_ignored(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_small_set_is_told_how_to_train_longer(prepared_path, tmp_path, monkeypatch, capsys):
    """120 images are a batch each epoch; whoever chooses the length, or goes on with a run, is told nothing."""
    monkeypatch.chdir(tmp_path)
    options = ["--data", str(prepared_path), "--recipe", "cpu-quick", "--device", "cpu", "--brief"]
    begin_or_go_on = [*options, "--out", "run", "--resume", "auto"]
    assert cli.main([*begin_or_go_on, "--stop-after", "1"]) == 0
    assert "8 steps are few" in (printed := capsys.readouterr().out)
    assert "--batch-size 120 --epochs 400 " in printed
    assert cli.main(begin_or_go_on) == 0
    assert "are few" not in (printed := capsys.readouterr().out)
    assert "going on after step 1 of 8" in printed
    for chosen in (["--epochs", "1"], ["--batch-size", "60", "--stop-after", "1"], ["--set", "run.steps=2"]):
        assert cli.main([*options, *chosen]) == 0
        assert "are few" not in capsys.readouterr().out


@pytest.mark.parametrize(("flags", "slow", "recipe"), [
    ([], False, "cpu-quick"), (["--arch", "quick-resnet8"], False, "cpu-quick"), ([], True, "cpu-short"),
    (["--arch", "resnet20"], False, "fast"), (["--arch", "resnet20"], True, "fast"),
])  # fmt: skip
def test_the_default_recipe_fits_the_network(prepared_path, tmp_path, monkeypatch, flags, slow, recipe):
    """cpu-quick's rates are those of its own network; ResNet-18 diverges with them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "is_slow_cpu", lambda: slow)
    brief = ["--data", str(prepared_path), "--device", "cpu", "--set", "run.steps=1", "--brief", "--out", "run"]
    assert cli.main([*brief, *flags]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["recipe"] == recipe
    assert config["model"]["arch"] == (flags or ["", "quick-resnet8"])[1]


def test_none_and_a_home_are_understood_by_every_flag(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = ["--grad-clip", "none", "--workers", "None", "--data", "~/set", "--out", "~/run", "--resume", "auto"]
    settings, actions = parse_flags(flags)
    assert settings["optimizer"] == {"grad_clip": None}
    assert settings["data"] == {"workers": None, "path": f"{tmp_path}/set"}
    assert (actions.out, actions.resume) == (f"{tmp_path}/run", "auto")


def test_what_needs_no_torch_is_refused_without_it(image_folder, tmp_path):
    """Importing it takes seconds."""
    assert prep_cli.main(["--dataset", f"folder:{image_folder}", "--out", str(tmp_path / "set")]) == 0
    code = (
        "import sys\nfrom fast_train.pipeline import cli\n"
        "assert cli.main(['--data', 'set', *sys.argv[1:]]) == 2\nassert 'torch' not in sys.modules"
    )
    for flags, said in (
        (["--graph", "--device", "cpu"], "--graph needs a CUDA device"),
        (["--loader", "ffcv"], "prepare it with --formats packed,ffcv"),
    ):
        line = [sys.executable, "-c", code, *flags]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
        assert said in done.stderr


def test_amp_without_a_type_takes_what_the_processor_computes_in():
    """bf16 would be refused by GPUs before Ampere, and is slower than float32 on many CPUs."""
    settings, _ = parse_flags(["--arch", "resnet18", "--amp"])
    assert settings["run"]["amp"] == "auto"


def test_debug_shows_the_trace(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--data", "nowhere", "--debug", "--device", "cpu"]) == 2
    assert "Traceback" in capsys.readouterr().err


_NO_HOST_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "1605632000 bytes. Error code 12 (Cannot allocate memory)"
)


def test_out_of_memory_and_ctrl_c_are_one_line(prepared_path, monkeypatch, capsys):
    def fail(error):
        def run(settings, others):
            raise error

        return run

    for error, status, message in (
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), 2, "the GPU is out of memory; give a"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), 2, "the GPU is out of memory; give a"),
        (RuntimeError(_NO_HOST_MEMORY), 2, "the computer is out of memory; give a smaller --batch-size"),
        (MemoryError(), 2, "the computer is out of memory; give a smaller --batch-size"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ):
        monkeypatch.setattr(commands, "run", fail(error))
        assert cli.main(["--data", str(prepared_path)]) == status
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("\n") == 1


def test_a_batch_that_no_memory_holds_is_what_torch_says_so_of():
    """The words are torch's own."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    told = memory_error(raised.value)
    assert "the computer is out of memory" in str(told)
    assert told.__cause__ is raised.value


def test_an_error_of_another_cause_keeps_its_trace(prepared_path, monkeypatch):
    def run(settings, others):
        raise RuntimeError("shapes")

    monkeypatch.setattr(commands, "run", run)
    with pytest.raises(RuntimeError, match="shapes"):
        cli.main(["--data", str(prepared_path)])


def test_another_architecture_cannot_resume(prepared_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--data", str(prepared_path), "--device", "cpu", "--batch-size", "40", "--out", "run"]
    assert cli.main([*options, "--recipe", "paper", "--arch", "resnet8", "--epochs", "1"]) == 0
    assert cli.main([*options, "--recipe", "paper", "--arch", "resnet14", "--epochs", "2", "--resume", "auto"]) == 2
    assert "model.arch = resnet8" in capsys.readouterr().err
    assert cli.main(["--resume", "run", "--lr", "0.7"]) == 2
    assert "optimizer.lr = 0.1" in capsys.readouterr().err
    assert cli.main(["--evaluate", "run", "--arch", "resnet14"]) == 2
    assert "leave out --arch" in capsys.readouterr().err
    assert cli.main(["--evaluate", "run", "--lr", "0.7"]) == 2
    assert "leave out --lr" in capsys.readouterr().err
    assert cli.main(["--evaluate", "run", "--set", "optimizer.lr=0.7"]) == 2
    assert "leave out optimizer.lr" in capsys.readouterr().err
