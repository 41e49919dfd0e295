"""Training, evaluating and predicting on images that keep their own shapes: what the network sees is the kernel's crop
of each, at the size that is due."""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs import make_ragged_set
from PIL import Image

import fast_train
from fast_train.data_prep.manifest import PreparedSet
from fast_train.kernels.augment import normalisation_table
from fast_train.kernels.resample import resampling
from fast_train.kernels.resized_crop_reference import Ragged, resized_crop_reference
from fast_train.kernels.spec import CropSpec
from fast_train.pipeline import cli
from fast_train.pipeline.config.recipe import override, resolve
from fast_train.pipeline.engine.augmentation import CropAugmenter
from fast_train.pipeline.engine.checkpoint import load_checkpoint, save_checkpoint
from fast_train.pipeline.engine.stored import stored_pixels
from fast_train.pipeline.loaders import LOADERS, build_loader
from fast_train.pipeline.loaders.batch import Batch, SplitView
from fast_train.pipeline.run.plan import plan_training

CPU = torch.device("cpu")
SPEC = CropSpec(size=12, scale=(0.2, 1), flip=True, brightness=0.3, saturation=0.2, erase=0.5)
RECIPE = """
model.arch = "resnet8"
data.batch_size = 8
optimizer.lr = 0.05
run.epochs = 3
"""


@pytest.fixture(scope="module")
def ragged_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("sets") / "ragged"
    make_ragged_set(path, counts={"train": 36, "test": 14}, formats=("packed", "ffcv", "dali"))
    return path


@pytest.fixture
def train(ragged_path, tmp_path, monkeypatch):
    """Call fast-train with a small recipe on the ragged set, from an empty folder; returns the exit status."""
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(RECIPE)
    options = ["--data", str(ragged_path), "--recipe", "small.toml", "--device", "cpu", "--brief"]
    return lambda *given: cli.main([*options, *given])


def augmenter(prepared, spec=SPEC, **options):
    return CropAugmenter(prepared.manifest, spec, normalise="set", dtype=torch.bfloat16, device=CPU, seed=3, **options)


def expected_crops(prepared, indices, spec, epoch):
    """By the reference, from images that Pillow decodes here."""
    images = stored_pixels(prepared, "train", indices)
    sizes = torch.tensor([image.size for image in images])
    ragged = Ragged(
        torch.from_numpy(np.concatenate([image.reshape(-1) for image in images])),
        sizes.cumsum(0) - sizes,
        torch.tensor([image.shape[0] for image in images], dtype=torch.int32),
        torch.tensor([image.shape[1] for image in images], dtype=torch.int32),
    )
    manifest = prepared.manifest
    table = normalisation_table(manifest.mean, manifest.std, torch.bfloat16)
    tables = resampling(spec, 100)
    return resized_crop_reference(ragged, indices, table, tables, spec=spec, seed=3, epoch=epoch, gather=False)


def test_crops_are_the_references_whatever_the_type_of_batch(ragged_path, prepared):
    ragged = PreparedSet.open(ragged_path)
    crops = augmenter(ragged)
    crops.set_epoch(2)
    with build_loader("resident", ragged, "train", batch_size=12, seed=1) as loader:
        for batch in (next(loader.feed()), next(iter(loader))):
            assert torch.equal(crops(batch), expected_crops(ragged, batch.indices, SPEC, 2))

    # Images of one shape are a special case.
    squares, crops = prepared.packed("train"), augmenter(prepared, channels_last=False)
    images, labels = torch.tensor(squares.images), torch.tensor(squares.labels)
    indices = torch.tensor([5, 0, 17])
    for given in (SplitView(images, labels, indices), Batch(images[indices], labels[indices], indices)):
        out = crops(given)
        assert out.is_contiguous()
        assert torch.equal(out, expected_crops(prepared, indices, SPEC, 0))


def test_crops_do_not_depend_on_the_number_of_threads(ragged_path):
    prepared = PreparedSet.open(ragged_path)
    crops = augmenter(prepared)
    threads = torch.get_num_threads()
    try:
        with build_loader("resident", prepared, "train", batch_size=36) as loader:
            made = [torch.set_num_threads(count) or crops(loader.example()) for count in (1, 3)]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*made)


def test_the_code_of_crops_is_kept_in_the_users_cache(ragged_path, tmp_path, monkeypatch):
    # Both, so that it is as it was in the end.
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    augmenter(PreparedSet.open(ragged_path))
    assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path / "fast-train" / "numba")


@pytest.mark.parametrize("options", [["--image-size", "24"], ["--progressive", "16,24,20"]], ids=["one size", "three"])
def test_a_checkpoint_from_inside_an_epoch_goes_on_to_the_same_bits(train, options):
    # Four steps an epoch; step 6 is inside the second one.
    assert train("--out", "straight", "--save-every", "1", "--keep", "99", *options) == 0
    assert cli.main(["--resume", "straight/checkpoints/step-000006.pt", "--out", "parts", "--brief"]) == 0
    straight, parts = (load_checkpoint(Path(name, "last.pt")) for name in ("straight", "parts"))
    assert straight["done_steps"] == parts["done_steps"] == 12
    for part in ("model", "optimizer"):
        assert str(straight["step"][part]) == str(parts["step"][part])
    for name, weights in straight["step"]["model"].items():
        assert torch.equal(weights, parts["step"]["model"][name])


def test_all_loaders_train_to_the_same_weights(train, name):
    for loader in {"resident", name}:
        options = ["--loader", loader, "--workers", "2", "--image-size", "24", "--epochs", "1"]
        assert train("--out", f"by-{loader}", *options) == 0
    first, second = (load_checkpoint(Path(f"by-{n}", "last.pt"))["step"]["model"] for n in ("resident", name))
    assert all(torch.equal(weights, second[place]) for place, weights in first.items())


def test_sizes_have_equal_parts_of_a_run_and_evaluation_one_size(train, monkeypatch):
    seen = []
    call = CropAugmenter.__call__

    def note(self, batch):
        images = call(self, batch)
        seen.append((images.shape[2], len(self.sizes) > 1))
        return images

    monkeypatch.setattr(CropAugmenter, "__call__", note)
    assert train("--progressive", "16,24", "--epochs", "4", "--set", "run.eval_size=32", "--out", "run") == 0
    # The first call compiles.
    sizes = [size for size, training in seen if training][1:]
    assert sizes == [16] * 8 + [24] * 8
    assert {size for size, training in seen if not training} == {32}
    assert json.loads(Path("run/config.json").read_text())["config"]["model"]["image_size"] == 24


def test_the_sizes_that_a_short_run_takes_are_told(train, capsys):
    # Two steps into the second of its epochs, which are of four.
    assert train("--progressive", "16,24,20", "--set", "run.steps=6", "--out", "run") == 0
    assert "crops of 24 then 20 pixels\n" in capsys.readouterr().out


def test_predictions_are_those_of_the_evaluation(train, ragged_path, tmp_path):
    assert cli.main(["--data", str(ragged_path), "--recipe", "small.toml", "--device", "cpu", "--out", "run",
                     "--image-size", "24"]) == 0  # fmt: skip
    prepared = PreparedSet.open(ragged_path)
    encoded = prepared.encoded("test")
    for index in range(14):
        Path(f"{index}.image").write_bytes(encoded.file(index).tobytes())
    model = fast_train.load_model("run", device="cpu")
    predicted = model.predict([f"{index}.image" for index in range(14)])
    with open("run/predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["predicted"] for row in rows] == [prediction.label for prediction in predicted]
    assert [row["confidence"] for row in rows] == [f"{prediction.confidence:.6f}" for prediction in predicted]
    assert Image.open("run/predictions.png").size[0] > 100

    evaluation = fast_train.evaluate("run", device="cpu")
    assert np.allclose(evaluation.confidences, [prediction.confidence for prediction in predicted], atol=1e-6)
    # At another size it is another evaluation.
    larger = fast_train.evaluate("run", device="cpu", eval_size=32)
    assert not np.allclose(larger.confidences, evaluation.confidences, atol=1e-3)


def test_a_large_file_is_predicted_as_what_a_set_keeps_of_it(train):
    assert train("--out", "run", "--image-size", "24", "--epochs", "1") == 0
    state = load_checkpoint(Path("run/last.pt"))
    save_checkpoint(Path("run/last.pt"), {**state, "keeping": {"shorter_side": 40, "store": "jpeg", "quality": 80}})
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("large.png")
    Image.fromarray(pixels).resize((50, 40), Image.Resampling.LANCZOS).save("kept.jpg", quality=80, subsampling=0)
    large, kept = fast_train.load_model("run", device="cpu").predict(["large.png", "kept.jpg"])
    assert np.array_equal(large.probabilities, kept.probabilities)


def test_show_batch_shows_crops(train, ragged_path, monkeypatch, capsys):
    options = ["--data", str(ragged_path), "--recipe", "small.toml", "--device", "cpu", "--show-batch", "--out", "look"]
    assert cli.main(options) == 0
    assert "crops of 32 pixels, by the images' shorter sides of 32; --image-size" in capsys.readouterr().out
    assert Image.open("look/batch.png").size[0] > 100


def test_a_speednet_starts_from_crops(train):
    given = ["--set", "model.arch=speednet8", "--image-size", "24", "--epochs", "1"]
    assert train("--out", "run", *given) == 0
    assert load_checkpoint(Path("run/last.pt"))["config"]["model"]["image_size"] == 24


def test_squares_are_cropped_where_a_size_is_given(prepared_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(RECIPE + "augment.pad = 2\n")
    command = ["--data", str(prepared_path), "--recipe", "small.toml", "--device", "cpu", "--brief", "--epochs", "1"]
    assert cli.main([*command, "--image-size", "12", "--out", "run"]) == 0
    assert "note: the images are cropped, by the settings crop.*" in capsys.readouterr().out
    assert load_checkpoint(Path("run/last.pt"))["config"]["augment"]["pad"] == 0
    images = PreparedSet.open(prepared_path).packed("test").images[:3]
    (first, *_) = fast_train.load_model("run", device="cpu").predict(images)
    assert first.confidence == pytest.approx(fast_train.evaluate("run", device="cpu").confidences[0], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image-size", "24", "--progressive", "16,24"], "--image-size and --progressive both say how large"),
        (["--image-size", "2000"], "error: --image-size 2000 is out of range; give 1 to 1024 pixels"),
        (["--progressive", "8,2000"], "error: --progressive 2000 is out of range; give 1 to 1024 pixels"),
        (["--set", "run.eval_size=2000"], r"error: run\.eval_size 2000 is out of range; give 1 to 1024 pixels"),
        (["--set", "crop.contrast=2"], r"error: crop\.contrast 2.0 is out of range; give a number from 0 to 1"),
        (["--progressive", "16,x"], "argument --progressive: invalid sizes value: '16,x'"),
        (["--set", "crop.scale=[0.5]"], r"crop scale .* is no range of parts of an area; give two numbers"),
        (["--set", "augment.pad=2"], "augment.pad is for images that are not cropped; leave it out, or set crop.*"),
        (["--set", "model.arch=speednet8", "--progressive", "8,24"], "speednet8 needs images of 9 pixels or more"),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_line(train, capsys, arguments, message):
    try:
        status = train("--out", "run", *arguments)
    except SystemExit as end:
        status = end.code
    assert status == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not Path("run").exists()


@pytest.mark.parametrize("given", [["--set", "crop.scale=[0.5, 1]"], ["--set", "run.eval_size=24"]])
def test_settings_of_crops_are_refused_where_nothing_is_cropped(prepared_path, tmp_path, monkeypatch, capsys, given):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--data", str(prepared_path), "--device", "cpu", *given]) == 2
    assert "is for images that are cropped, and these, which all have one shape, are not" in capsys.readouterr().err


def test_a_network_of_squares_does_not_take_images_of_any_shape(
    prepared_path, ragged_path, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(RECIPE)
    command = ["--data", str(prepared_path), "--recipe", "small.toml", "--device", "cpu", "--brief", "--epochs", "1"]
    assert cli.main([*command, "--out", "run"]) == 0
    state = load_checkpoint(Path("run/last.pt"))
    # As an earlier version wrote it.
    del state["config"]["crop"]
    save_checkpoint(Path("run/last.pt"), {**state, "classes": ["ant", "bee", "cow"]})
    assert cli.main(["--evaluate", "run", "--data", str(ragged_path), "--device", "cpu", "--brief"]) == 2
    assert "trained on images of one shape, and those of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arch", "recipe"), [(None, "photos-cpu"), ("resnet18", "photos"), ("quick-resnet8", "photos-cpu")]
)
def test_the_default_recipe_fits_the_images(ragged_path, arch, recipe):
    given = {"data": {"path": str(ragged_path)}, "run": {"device": "cpu"}}
    plan = plan_training({**given, **({"model": {"arch": arch}} if arch else {})}, recipe=None)
    assert plan.config.recipe == recipe
    assert plan.config.model.image_size == plan.config.crop.sizes[-1]


def test_one_size_takes_the_place_of_a_recipes_several_and_the_other_way_round():
    config = resolve("photos", {"crop": {"size": 96}})
    assert (config.crop.sizes, config.run.eval_size) == ((96,), None)
    assert resolve("photos", {"crop": {"progressive": [64, 96]}}).crop.sizes == (64, 96)
    assert override(config, {"crop": {"size": None, "progressive": (32, 64)}}).crop.sizes == (32, 64)


@pytest.mark.skipif(LOADERS["dali"].missing() is not None, reason=str(LOADERS["dali"].missing()))
def test_crops_by_dali_train_to_nearly_the_same(train, tmp_path, capsys):
    native = ["--loader", "dali", "--dali-augment", "native"]
    for name, options in (("kernel", []), ("native", native)):
        assert train("--out", name, "--image-size", "24", *options) == 0
    kernel, native_state = (load_checkpoint(Path(name, "last.pt"))["history"] for name in ("kernel", "native"))
    for ours, theirs in zip(kernel, native_state, strict=True):
        assert theirs["train_loss"] == pytest.approx(ours["train_loss"], abs=0.02)
    capsys.readouterr()
    assert train("--out", "several", "--progressive", "16,24", *native) == 2
    assert "makes crops of one size; add --image-size 24, or" in capsys.readouterr().err


_BY_LOADERS = [
    pytest.param(
        ["--no-compile", "--loader", name], id=name, marks=pytest.mark.skipif(lacks is not None, reason=str(lacks))
    )
    for name in ("torch", "ffcv", "dali")
    for lacks in [LOADERS[name].missing()]
]


@pytest.mark.gpu
@pytest.mark.parametrize("options", [
    pytest.param([], id="all"), pytest.param(["--no-compile"], id="graph"), pytest.param(["--no-graph"], id="compiled"),
    *_BY_LOADERS,
])  # fmt: skip
def test_gpu_sizes_are_captured_and_a_run_goes_on_to_the_same_bits(ragged_path, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(RECIPE)
    command = ["--data", str(ragged_path), "--recipe", "small.toml", "--progressive", "16,24,20", "--brief", *options]
    command += ["--amp", "--save-every", "1", "--keep", "99", "--deterministic"]
    assert cli.main([*command, "--out", "straight"]) == 0
    assert cli.main(["--resume", "straight/checkpoints/step-000006.pt", "--out", "parts", "--brief"]) == 0
    straight, parts = (load_checkpoint(Path(name, "last.pt"))["step"]["model"] for name in ("straight", "parts"))
    for name, weights in straight.items():
        assert torch.equal(weights, parts[name]), name
