"""The time-to-accuracy recipes through the real command, on the small set of shapes."""

import json
from pathlib import Path

import pytest
import torch

from fast_train.data_prep import cli as prep_cli
from fast_train.pipeline import cli
from fast_train.pipeline.config.recipe import recipe_names
from fast_train.pipeline.config.settings import Config, ModelConfig
from fast_train.pipeline.engine.checkpoint import load_checkpoint
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.loaders import LOADERS
from fast_train.pipeline.models.speednet import SpeedNet
from fast_train.pipeline.run.record import Saved, check_shape

TIMED = [name for name in recipe_names() if name.startswith(("record-", "resnet18-"))]
# Of the recipe's 2,000 images a batch the small set has 120.
SMALL = ["--device", "cpu", "--amp", "off", "--batch-size", "24", "--set", "optimizer.whiten_epochs=1"]


@pytest.fixture
def train(prepared_path, tmp_path, monkeypatch):
    """Call fast-train from an empty folder; returns the exit status."""
    monkeypatch.chdir(tmp_path)

    def call(recipe, *arguments):
        return cli.main(["--data", str(prepared_path), "--recipe", recipe, *SMALL, "--brief", *arguments])

    call.folder = tmp_path
    return call


def _state(train, run):
    return load_checkpoint(train.folder / run / "last.pt")


def _history(train, run):
    return [json.loads(line) for line in (train.folder / run / "metrics.jsonl").read_text().splitlines()]


def test_there_are_five():
    assert TIMED == ["record-94", "record-96", "resnet18-94", "resnet18-95", "resnet18-96"]


@pytest.mark.parametrize("recipe", ["record-94", "record-96"])
def test_a_record_trains_and_evaluates_once_at_the_end(train, recipe):
    assert train(recipe, "--set", "run.steps=12", "--out", "run") == 0
    history = _history(train, "run")
    assert [record["step"] for record in history] == [5, 10, 12]
    assert [record["test_accuracy"] is not None for record in history] == [False, False, True]
    assert history[-1]["train_loss"] < history[0]["train_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [name for name in TIMED if name.startswith("resnet18-")])
def test_a_resnet18_recipe_trains(train, recipe):
    assert train(recipe, "--set", "run.steps=2", "--out", "run") == 0
    assert len(_history(train, "run")) == 1


def _assert_equal(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        for one, other in zip(a, b, strict=True):
            _assert_equal(one, other)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("recipe", ["record-94", pytest.param("record-96", marks=pytest.mark.slow)])
def test_resuming_equals_a_straight_run_bit_for_bit(train, monkeypatch, recipe):
    """Muon's momentum, the whitening bias's schedule, lookahead's slow weights; and nothing is fitted again."""
    fits = []
    fit = SpeedNet.initialise_from_data
    monkeypatch.setattr(
        SpeedNet, "initialise_from_data", lambda self, images: (fits.append(len(images)), fit(self, images))
    )
    length = ["--set", "run.epochs=2"]
    assert train(recipe, *length, "--out", "straight") == 0
    assert train(recipe, *length, "--out", "parts", "--stop-after", "1") == 0
    assert fits == [120, 120]
    assert cli.main(["--resume", "parts", "--brief"]) == 0
    assert cli.main(["--evaluate", "parts", "--device", "cpu", "--brief"]) == 0
    assert fits == [120, 120]
    straight, parts = _state(train, "straight"), _state(train, "parts")
    assert straight["done_steps"] == parts["done_steps"] == 10
    _assert_equal(straight["step"], parts["step"])


def test_a_selection_resumes_bit_for_bit_and_is_not_changed_on_the_way(train, capsys):
    """The proxy with its whitening layer, its momentum and the network that it chooses for."""
    options = ["--set", "selection.share=0.5", "--set", "run.epochs=2"]
    assert train("record-96", *options, "--arch", "speednet8", "--out", "straight") == 0
    assert train("record-96", *options, "--arch", "speednet8", "--out", "parts", "--stop-after", "1") == 0
    assert cli.main(["--resume", "parts", "--set", "selection.share=1", "--brief"]) == 2
    assert "was trained with selection.share = 0.5" in capsys.readouterr().err
    assert cli.main(["--resume", "parts", "--brief"]) == 0
    straight, parts = _state(train, "straight"), _state(train, "parts")
    _assert_equal(straight["step"], parts["step"])
    assert straight["step"]["proxy"]["model"]["fc.weight"].shape[1] == 64
    assert cli.main(["--evaluate", "parts", "--device", "cpu", "--brief"]) == 0


def test_the_whitening_layer_is_fitted_to_the_training_images(train):
    """Its weights are those of the images, whatever the seed; and the frozen part does not move in training."""
    for seed in ("0", "1"):
        assert train("record-94", "--set", "run.steps=3", "--seed", seed, "--out", f"seed-{seed}") == 0
    first, second = (_state(train, f"seed-{seed}")["step"]["model"] for seed in "01")
    assert torch.equal(first["whiten.weight"], second["whiten.weight"])
    assert not torch.equal(first["fc.weight"], second["fc.weight"])
    assert bool((first["layer1.bn1.weight"] == 1).all())


def test_multicrop_can_be_turned_off_and_on(train, capsys):
    assert train("record-94", "--set", "run.steps=2", "--tta", "none", "--out", "run") == 0
    saved = json.loads((train.folder / "run" / "config.json").read_text())
    assert saved["config"]["run"]["tta"] == "none"
    for kind in ("flip", "multicrop"):
        assert cli.main(["--evaluate", "run", "--tta", kind, "--device", "cpu", "--out", kind]) == 0
    share = ["--tta", "multicrop", "--set", "run.tta_share=0.25"]
    assert cli.main(["--evaluate", "run", *share, "--device", "cpu", "--out", "share"]) == 0
    assert cli.main(["--evaluate", "run", "--set", "run.tta=crop", "--device", "cpu"]) == 2
    assert "unknown test-time augmentation 'crop'" in capsys.readouterr().err


def test_a_network_refuses_images_that_it_has_no_room_for(train, image_folder, prepared, capsys):
    assert train("record-94", "--set", "run.steps=2", "--out", "run") == 0
    assert prep_cli.main(["--dataset", f"folder:{image_folder}", "--size", "8", "--out", "small"]) == 0
    capsys.readouterr()
    assert cli.main(["--evaluate", "run", "--data", "small", "--device", "cpu"]) == 2
    assert (error := capsys.readouterr().err).startswith("fast-train: error: speednet8 needs images of")
    assert error.count("\n") == 1
    saved = Saved(Path("run"), {}, Config(model=ModelConfig(arch="resnet8", in_channels=1)))
    with pytest.raises(ConfigError, match="trained on images of 1 channels"):
        check_shape(saved, prepared, prepared.manifest.image_shape)


@pytest.mark.skipif(LOADERS["dali"].missing() is not None, reason=str(LOADERS["dali"].missing()))
def test_native_dali_trains_a_record_as_the_kernel_does(train):
    """Reflected crops and alternating flips included."""
    losses = []
    for kind in ("kernel", "native"):
        options = ["--loader", "dali", "--dali-augment", kind, "--set", "run.steps=2", "--out", kind]
        assert train("record-94", *options) == 0
        losses.append(_history(train, kind)[-1]["train_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
