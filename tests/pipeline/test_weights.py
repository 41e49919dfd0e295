"""Fine-tuning: what a training takes of weights, what it refuses, what stays frozen, and that it goes on alone."""

import dataclasses
import hashlib
import shutil

import pytest
import torch
import torchvision
from safetensors.torch import save_file

import fast_train
from fast_train.data_prep import cli as prep_cli
from fast_train.pipeline import cli
from fast_train.pipeline.run import session
from fast_train.pipeline.run.plan import plan_training

SMALL = {"device": "cpu", "amp": "off", "batch_size": 24, "epochs": 1}
# Rates so small that what was loaded is what is saved.
STILL = {"lr": 1e-20, "optimizer": {"head_lr": 1e-20}}


@pytest.fixture(scope="module")
def run(prepared_path, tmp_path_factory):
    """A training from scratch, with averaged weights."""
    folder = tmp_path_factory.mktemp("weights") / "run"
    settings = {**SMALL, "lr": 0.05, "ema_decay": 0.5, "activation": "elu"}
    return fast_train.train(prepared_path, recipe="cpu-sgd", arch="resnet8", out=folder, **settings).folder


@pytest.fixture(scope="module")
def other_set(image_folder, tmp_path_factory):
    """Of the same images, two of the three classes."""
    root = tmp_path_factory.mktemp("other")
    shutil.copytree(image_folder, root / "images", ignore=shutil.ignore_patterns("cross"))
    assert prep_cli.main(["--dataset", f"folder:{root / 'images'}", "--out", str(root / "set")]) == 0
    return root / "set"


def _state(folder):
    return torch.load(folder / "last.pt", weights_only=True)


def _model(folder):
    return _state(folder)["step"]["model"]


def _parameters(model):
    return {name: value for name, value in model.items() if "running" not in name and "num_batches" not in name}


def test_the_averaged_weights_of_a_run_are_taken_with_its_network(run, prepared_path, tmp_path):
    tuned = fast_train.train(prepared_path, weights=run, out=tmp_path / "run", **{**SMALL, **STILL})
    assert (tuned.config.model.arch, tuned.config.model.activation) == ("resnet8", "elu")
    assert tuned.config.recipe == "fine-tune"
    taken = _state(run)["step"]["average"]
    for name, value in _parameters(_model(tuned.folder)).items():
        assert torch.equal(value, taken[name]), name
    line = next(line for line in tuned.notes if line.startswith("weights"))
    assert line.startswith(f"weights: {len(taken)} tensors of ")
    assert line.endswith("run, resnet8 with cifar stem")


def test_the_classifier_starts_anew_for_other_classes(run, other_set, tmp_path):
    tuned = fast_train.train(other_set, weights=run, out=tmp_path / "run", **{**SMALL, **STILL})
    taken, model = _state(run)["step"]["average"], _model(tuned.folder)
    assert model["fc.weight"].shape[0] == 2
    assert torch.equal(model["conv1.weight"], taken["conv1.weight"])
    assert any(line.endswith("fc starts anew: 2 classes instead of 3") for line in tuned.notes)


def test_a_speednet_keeps_the_first_layer_of_its_weights(prepared_path, other_set, tmp_path):
    """And takes none from the new images."""
    first = fast_train.train(
        prepared_path, recipe="cpu-sgd", arch="small-speednet8", out=tmp_path / "a", **SMALL
    ).folder
    tuned = fast_train.train(other_set, weights=first, out=tmp_path / "b", **SMALL)
    assert tuned.config.model.arch == "small-speednet8"
    assert torch.equal(_model(tuned.folder)["whiten.weight"], _model(first)["whiten.weight"])


def test_a_run_goes_on_to_the_bit_without_the_file(run, prepared_path, tmp_path):
    gone = tmp_path / "gone.pt"
    shutil.copy(run / "last.pt", gone)
    settings = {**SMALL, "epochs": 2, "deterministic": True}
    whole = fast_train.train(prepared_path, weights=gone, out=tmp_path / "whole", **settings).folder
    parts = tmp_path / "parts"
    fast_train.train(prepared_path, weights=gone, out=parts, stop_after=1, **settings)
    shutil.copytree(parts, tmp_path / "named")
    gone.unlink()
    fast_train.train(prepared_path, weights=gone, out=parts, resume="auto", **settings)
    fast_train.train(resume=tmp_path / "named")
    for folder in (parts, tmp_path / "named"):
        for name, value in _model(whole).items():
            assert torch.equal(value, _model(folder)[name]), name
    with pytest.raises(ValueError, match="no weights at"):
        fast_train.train(prepared_path, weights=gone, out=tmp_path / "new", **settings)
    with pytest.raises(ValueError, match=r"was trained with model\.weights = "):
        fast_train.train(prepared_path, weights=run, out=parts, resume="auto", **settings)


def test_the_record_knows_the_file(run, prepared_path, tmp_path, capsys):
    flags = ["--data", str(prepared_path), "--out", str(tmp_path / "run"), "--weights", str(run), "--device", "cpu"]
    assert cli.main([*flags, "--brief", "--set", "run.steps=1"]) == 0
    assert "weights: " in capsys.readouterr().out
    config = _state(tmp_path / "run")["config"]["model"]
    assert config["weights"] == str(run)
    assert config["weights_sha256"] == hashlib.sha256((run / "last.pt").read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="is another file: its SHA-256 is"):
        fast_train.train(prepared_path, weights=run, model={"weights_sha256": "0" * 64}, out=tmp_path / "b", **SMALL)


@pytest.fixture(scope="module")
def torchvision_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("torchvision") / "resnet18.pth"
    state = torchvision.models.resnet18(num_classes=7).state_dict()
    torch.save({name: value for name, value in state.items() if "num_batches" not in name}, path)
    return path


def test_torchvisions_weights_are_taken(torchvision_file, prepared_path, tmp_path):
    settings = {**SMALL, **STILL, "stem": "imagenet", "normalise": "imagenet", "freeze": "backbone"}
    tuned = fast_train.train(prepared_path, weights=torchvision_file, out=tmp_path / "run", **settings)
    known, model = torch.load(torchvision_file, weights_only=True), _model(tuned.folder)
    # Frozen: the statistics too.
    assert all(torch.equal(model[name], known[name]) for name in known if not name.startswith("fc."))
    # Prediction normalises as training did.
    assert fast_train.evaluate(tuned.folder, device="cpu").accuracy == tuned.accuracy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"holds conv1\.weight of shape \[64, 3, 7, 7\].*add --set model\.stem=imagenet"),
        ({"stem": "imagenet", "arch": "resnet34"}, r"lacks layer1\.2\.conv1\.weight, which resnet34 .*--arch"),
        ({"stem": "imagenet", "arch": "plain-18"}, r"holds layer2\.0\.downsample\.0\.weight, which plain-18 .*lacks"),
        ({"stem": "imagenet", "arch": "resnet50"}, "give the --arch that the weights are of"),
    ],
)
def test_weights_of_another_network_are_refused(torchvision_file, prepared_path, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        fast_train.train(prepared_path, weights=torchvision_file, out=tmp_path / "run", **SMALL, **settings)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("renamed", [False, True])
def test_an_exported_file_knows_its_classes(run, prepared_path, image_folder, tmp_path, renamed):
    made = fast_train.export(run, to="weights", out=tmp_path / "file.safetensors")
    data = prepared_path
    if renamed:
        for split in ("train", "test"):
            shutil.copytree(image_folder / split, tmp_path / "images" / split)
            (tmp_path / "images" / split / "circle").rename(tmp_path / "images" / split / "disc")
        data = fast_train.prepare(tmp_path / "images", out=tmp_path / "set")
    settings = {**SMALL, **STILL, "arch": "resnet8", "activation": "elu"}
    tuned = fast_train.train(data, weights=made.path, out=tmp_path / "run", **settings)
    model, taken = _model(tuned.folder), _state(run)["step"]["average"]
    assert torch.equal(model["conv1.weight"], taken["conv1.weight"])
    assert torch.equal(model["fc.weight"], taken["fc.weight"]) is not renamed
    assert tuned.notes[0].endswith("fc starts anew: other classes, or in another order") is renamed


def test_a_file_without_a_classifier_serves(torchvision_file, prepared_path, tmp_path):
    known = torch.load(torchvision_file, weights_only=True)
    backbone = {name: value for name, value in known.items() if not name.startswith("fc.")}
    save_file(backbone, tmp_path / "file.safetensors")
    settings = {**SMALL, **STILL, "stem": "imagenet"}
    tuned = fast_train.train(prepared_path, weights=tmp_path / "file.safetensors", out=tmp_path / "run", **settings)
    assert tuned.notes[0].endswith("fc starts anew: there is none")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"model": {}, "epoch": 3}, "holds more than tensors by name"),
        (torch.nn.Flatten(), r"or holds more than tensors by name; .* file of a network's state_dict\(\)"),
        (None, "is damaged, or holds more"),
    ],
)
def test_a_file_without_weights_is_refused(prepared_path, tmp_path, state, message):
    path = tmp_path / "file.pth"
    torch.save(state, path) if state else path.write_bytes(b"words")
    with pytest.raises(ValueError, match=message):
        fast_train.train(prepared_path, weights=path, out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_refused(run, prepared_path, tmp_path):
    path = tmp_path / "last.pt"
    data = bytearray((run / "last.pt").read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        fast_train.train(prepared_path, weights=path, out=tmp_path / "run", **SMALL)


def test_the_newest_whole_checkpoint_of_a_run_is_taken_and_said(run, prepared_path, tmp_path):
    damaged = shutil.copytree(run, tmp_path / "damaged")
    shutil.copy(run / "last.pt", damaged / "best.pt")
    (damaged / "last.pt").write_bytes(b"words")
    tuned = fast_train.train(prepared_path, weights=damaged, out=tmp_path / "run", **SMALL, **STILL)
    assert any(line.endswith("best.pt, the newest whole one, takes its place") for line in tuned.notes)
    digest = hashlib.sha256((run / "last.pt").read_bytes()).hexdigest()
    assert tuned.config.model.weights_sha256 == digest


def test_what_the_plan_has_read_is_not_read_again(run, prepared_path, tmp_path):
    path = shutil.copy(run / "last.pt", tmp_path / "gone.pt")
    given = {"data": {"path": str(prepared_path)}, "model": {"weights": str(path)}, "run": {"epochs": 1}}
    plan = plan_training(given, recipe=None)
    path.unlink()
    tuned = session.train(plan, folder=tmp_path / "run")
    assert any(line.startswith("weights: ") for line in tuned.notes)


@pytest.fixture(scope="module")
def relu(prepared_path, tmp_path_factory):
    """A network that can be fused."""
    folder = tmp_path_factory.mktemp("weights") / "relu"
    return fast_train.train(prepared_path, recipe="cpu-sgd", arch="resnet8", out=folder, **SMALL).folder


@pytest.mark.parametrize(
    ("part", "fuse", "device"),
    [
        ("stem", "none", "cpu"),
        ("layer2", "none", "cpu"),
        ("backbone", "none", "cpu"),
        ("layer2", "norm", "cpu"),
        pytest.param("layer2", "norm", "cuda", marks=pytest.mark.gpu),
    ],
)
def test_what_is_frozen_stays(relu, prepared_path, tmp_path, part, fuse, device):
    """Over epochs, with an evaluation in between; what is not frozen moves."""
    settings = {**SMALL, "epochs": 2, "optimizer": {"name": "muon"}, "freeze": part, "fuse": fuse, "device": device}
    tuned = _model(fast_train.train(prepared_path, weights=relu, out=tmp_path / "run", **settings).folder)
    kept = {"stem": ("conv1", "bn1"), "layer2": ("conv1", "bn1", "layer1", "layer2")}.get(part)
    for name, value in _model(relu).items():
        frozen = not name.startswith("fc.") if kept is None else name.startswith(tuple(f"{k}." for k in kept))
        assert torch.equal(value, tuned[name]) == frozen, name


def test_freezing_is_refused_where_it_means_nothing(run, prepared_path, tmp_path):
    with pytest.raises(ValueError, match=r"model\.freeze means nothing without --weights"):
        fast_train.train(prepared_path, freeze="stem", out=tmp_path / "run", **SMALL)
    with pytest.raises(ValueError, match="--fuse conv takes each batch's sums"):
        fast_train.train(prepared_path, weights=run, freeze="stem", fuse="conv", out=tmp_path / "run", **SMALL)


def test_normalising_as_imagenet_is_for_colour(run, prepared):
    one = dataclasses.replace(prepared.manifest, mean=(0.5,), std=(0.2,))
    with pytest.raises(ValueError, match="is for 3 channels"):
        fast_train.Augmenter(one, fast_train.AugmentSpec(), normalise="imagenet", dtype=torch.float32, device="cpu")
