"""Networks as files for other programs: each computes what `load_model` predicts."""

import json
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open

import fast_train
from fast_train.pipeline import export_cli
from fast_train.pipeline.config.settings import Config
from fast_train.pipeline.models import build_model
from fast_train.pipeline.run.export import export
from fast_train.pipeline.run.record import Saved

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
NEEDS = "needs pip install 'fast-train[onnx]'"


@pytest.fixture(scope="module")
def run(prepared_path, tmp_path_factory):
    """Its averaged weights, which evaluation takes, are others than the last ones."""
    settings = {"arch": "resnet8", "device": "cpu", "amp": "off", "batch_size": 24, "steps": 3, "lr": 0.5}
    optimizer = {"name": "sgd", "ema_decay": 0.9}
    out = tmp_path_factory.mktemp("export") / "run"
    return fast_train.train(prepared_path, recipe="cpu-quick", out=out, optimizer=optimizer, **settings)


def _assert_predicts(run, classify):
    """classify: uint8 [n, 16, 16, 3] to logits [n, 3], for any n."""
    expected = [p.probabilities for p in fast_train.load_model(run.folder, device="cpu").predict(IMAGES)]
    for count in (1, len(IMAGES)):
        found = torch.as_tensor(classify(IMAGES[:count])).softmax(dim=1)
        assert np.allclose(found.detach(), expected[:count], atol=1e-5)


def test_onnx_takes_bytes_and_says_of_what(run, prepared):
    pytest.importorskip("onnxscript", reason=NEEDS)
    runtime = pytest.importorskip("onnxruntime", reason=NEEDS)
    made = fast_train.export(run.folder)
    assert made.path == run.folder / "run.onnx"
    assert made.difference < 1e-4
    session = runtime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    _assert_predicts(run, lambda images: session.run(["logits"], {"images": images})[0])
    said = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(said["classes"])) == prepared.manifest.classes
    (step,) = json.loads(said["resize"])
    assert (step["fit"], step["size"]) == ("crop", [16, 16])


def test_pt2_is_loaded_by_torch_alone(run, tmp_path):
    made = fast_train.export(run.folder / "last.pt", to="pt2", out=tmp_path / "deep" / "net.pt2")
    said = {"metadata.json": ""}
    module = torch.export.load(tmp_path / "deep" / "net.pt2", extra_files=said).module()
    _assert_predicts(run, lambda images: module(torch.from_numpy(images)))
    assert json.loads(said["metadata.json"]) == made.metadata


def test_weights_have_the_names_of_the_network(run):
    path = fast_train.export(run.folder, to="weights").path
    with safe_open(path, "pt") as file:
        mean, std = (torch.tensor(json.loads(file.metadata()[name])) for name in ("mean", "std"))
    model = fast_train.build_model("resnet8", num_classes=3, image_size=16).eval()
    model.load_state_dict(safetensors.torch.load_file(path))
    _assert_predicts(run, lambda images: model(((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)))


def _saved(shape=(16, 24, 3), **sections):
    """A checkpoint of a new network of two classes. shape: of the set's images."""
    config = Config.from_dict({**sections, "model": {"num_classes": 2, "image_size": 16, **sections["model"]}})
    weights = build_model(config.model).to(memory_format=torch.channels_last).state_dict()
    state = {"classes": ["a", "b"], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "keeping": {"shorter_side": 64}}
    state |= {"step": {"model": weights, "average": None}, "data": {"image_shape": shape and list(shape)}}
    return Saved("last.pt", state, config)


@pytest.mark.parametrize("sections", [
    {"model": {"arch": "plain-8"}},
    {"model": {"arch": "preact-resnet8", "activation": "elu"}},
    {"model": {"arch": "quick-resnet8"}, "run": {"sync_batchnorm": True}},
    {"model": {"arch": "small-speednet8"}},
    {"model": {"arch": "resnet18", "stem": "imagenet"}, "run": {"fuse": "norm", "channels_last": True}},
])  # fmt: skip
def test_each_kind_of_network_is_exported(sections, tmp_path):
    made = export(_saved(**sections), "pt2", tmp_path / "net.pt2")
    assert made.difference < 1e-4
    assert json.loads(made.metadata["image_shape"]) == [16, 24, 3]


def test_crops_are_those_of_evaluation(tmp_path):
    saved = _saved(None, model={"arch": "small-speednet8"}, crop={"size": 20, "centre": 0.875}, run={"eval_size": 24})
    said = export(saved, "weights", tmp_path / "net").metadata
    smaller, crop = json.loads(said["resize"])
    assert (smaller["shorter_side_at_most"], crop["centre_square"], crop["size"]) == (64, 0.875, [24, 24])
    assert json.loads(said["image_shape"]) == [24, 24, 3]


def test_a_network_that_computes_something_else_is_not_left(tmp_path):
    saved = _saved(model={"arch": "resnet8"})
    saved.weights["fc.weight"][0, 0] = torch.nan
    with pytest.raises(ValueError, match="differ from PyTorch's by up to nan, so nothing was written"):
        export(saved, "pt2", tmp_path / "net.pt2")
    assert not any(tmp_path.iterdir())


def test_the_command_replaces_nothing_unless_it_is_told_to(run, tmp_path, capsys):
    path = tmp_path / "net"
    line = [str(run.folder), "--to", "weights", "--out", str(path)]
    assert export_cli.main(line) == 0
    path.write_bytes(b"mine")
    assert export_cli.main(line) == 2
    assert capsys.readouterr().err == (
        f"fast-export: error: {path} is there already; add --overwrite, or give another --out\n"
    )
    assert path.read_bytes() == b"mine"
    assert export_cli.main([*line[:-1], "/dev/null", "--overwrite"]) == 2
    assert capsys.readouterr().err == "fast-export: error: /dev/null is no file; give one as --out\n"
    assert export_cli.main([*line[:-1], str(path / "net")]) == 2
    assert capsys.readouterr().err == f"fast-export: error: {path} is a file, and no folder; name another place\n"
    assert export_cli.main([*line, "--overwrite"]) == 0
    assert "fc.weight" in safetensors.torch.load_file(path)


def test_packages_that_lack_are_named(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert export_cli.main([str(run.folder)]) == 2
    assert "onnxscript; pip install 'fast-train[onnx]'" in capsys.readouterr().err
    monkeypatch.undo()
    pytest.importorskip("onnxscript", reason=NEEDS)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export_cli.main([str(run.folder), "--out", str(tmp_path / "net.onnx")]) == 0
    assert "not compared with PyTorch: onnxruntime is not installed" in capsys.readouterr().out
