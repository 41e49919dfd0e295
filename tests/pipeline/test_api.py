"""The public face: settings by name, resuming, predicting from files."""

import dataclasses
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import fast_train
from fast_train.data_prep.images import Reading, read_rgb
from fast_train.data_prep.sources import SourceOptions
from fast_train.pipeline.run.predict import TrainedModel
from fast_train.pipeline.run.record import load

SMALL = {"recipe": "cpu-quick", "arch": "resnet8", "device": "cpu", "amp": "off", "batch_size": 24, "lr": 0.05}


@pytest.fixture(scope="module")
def run(prepared_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("api") / "run"
    return fast_train.train(prepared_path, out=folder, epochs=2, stop_after=1, optimizer={"name": "sgd"}, **SMALL)


def test_a_training_stops_goes_on_and_is_evaluated(run, prepared_path, capsys):
    assert (run.finished, run.steps, len(run.history)) == (False, 5, 1)
    assert run.config.optimizer.name == "sgd"
    assert run.accuracy == run.evaluation.accuracy
    # What a library does is silent unless it is asked to speak.
    assert capsys.readouterr().out == ""
    over = fast_train.train(prepared_path, out=run.folder, resume="auto", optimizer={"name": "sgd"}, **SMALL)
    assert (over.finished, over.steps, len(over.history)) == (True, 5, 2)
    # The run's own data, wherever one stands.
    done = fast_train.train(resume=run.folder)
    assert (done.steps, done.evaluation, done.accuracy) == (0, None, over.accuracy)
    assert fast_train.evaluate(run.folder, device=torch.device("cpu")).accuracy == over.accuracy


def test_a_path_is_a_folder_of_images(image_folder, tmp_path):
    made = fast_train.prepare(image_folder, out=tmp_path / "set", formats="packed")
    assert made.manifest.source["path"] == str(image_folder)


def test_predicting_files_and_bytes(run, image_folder, prepared, tmp_path):
    model = fast_train.load_model(run.folder, device="cpu")
    paths = sorted((image_folder / "test").rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    of_files, of_bytes = model.predict(paths), model.predict(pixels)
    assert [p.label for p in of_files] == [p.label for p in of_bytes]
    evaluation = fast_train.evaluate(run.folder, device="cpu")
    assert [p.label for p in of_files] == [prepared.manifest.classes[k] for k in evaluation.predictions]
    for prediction, confidence in zip(of_bytes, evaluation.confidences, strict=True):
        assert prediction.confidence == pytest.approx(float(confidence), abs=1e-5)
        assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert [p.label for p in model.predict(pixels[:, :, ::-1])] == [
        p.label for p in model.predict(pixels[:, :, ::-1].copy())
    ]
    # What shows behind a transparent image is what the set was made with.
    Image.new("RGBA", pixels.shape[2:0:-1]).save(tmp_path / "clear.png")
    (clear,), (grey,) = model.predict([tmp_path / "clear.png"]), model.predict(np.full_like(pixels[:1], 128))
    assert np.array_equal(clear.probabilities, grey.probabilities)
    with pytest.raises(ValueError, match=r"uint8 \[N, H, W, 3\]"):
        model.predict(pixels[0])
    with pytest.raises(ValueError, match=r"nowhere\.png can't be predicted"):
        model.predict([paths[0], "nowhere.png"])
    with pytest.raises(ValueError, match="give a list"):
        model.predict(str(paths[0]))
    with pytest.raises(ValueError, match=r"paths or arrays of uint8 \[H, W, 3\], not PngImageFile"):
        model.predict([Image.open(paths[0])])
    of_list = model.predict([*pixels[:2], paths[2]])
    assert [p.label for p in of_list] == [p.label for p in of_files[:3]]
    for wrong in (np.zeros((1, 0, 16, 3), np.uint8), np.zeros((1, 40, 50, 3), np.uint8)):
        with pytest.raises(ValueError, match="do not fit the network, which takes a shorter side of 16"):
            model.predict(wrong)
        with pytest.raises(ValueError, match="do not fit the network"):
            model.predict(list(wrong))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_files_of_other_shapes_are_predicted_as_the_set_was_made(run, image_folder, tmp_path, fit):
    ramp = np.linspace(0, 255, 40 * 9 * 3).reshape(9, 40, 3).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "wide.png")
    saved = load(run.folder)
    saved = dataclasses.replace(saved, state={**saved.state, "reading": {"background": [9, 9, 9], "fit": fit}})
    stored = read_rgb(str(tmp_path / "wide.png"), (16, 16), Reading((9, 9, 9), fit=fit)).pixels
    model = TrainedModel(saved, device="cpu")
    (of_file,), (of_bytes,) = model.predict([tmp_path / "wide.png"]), model.predict(stored[None])
    assert np.array_equal(of_file.probabilities, of_bytes.probabilities)


@pytest.mark.parametrize(("sizes", "options", "given"), [
    ([(24, 16)], SourceOptions(), {}),
    ([(40, 20), (18, 30)], SourceOptions(size=16, fit="pad"), {"size": 12}),
])  # fmt: skip
def test_files_are_predicted_as_those_of_a_set_of_one_shape(tmp_path, sizes, options, given):
    generator = np.random.default_rng(0)
    for number in range(20):
        width, height = sizes[number // 2 % len(sizes)]
        path = tmp_path / "images" / ("train", "test")[number >= 16] / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    prepared = fast_train.prepare(tmp_path / "images", out=tmp_path / "set", options=options)
    settings = {**SMALL, "batch_size": 8, "epochs": 1, **given}
    run = fast_train.train(prepared, out=tmp_path / "run", optimizer={"name": "sgd"}, **settings)
    files = [tmp_path / "images" / name for name in prepared.names("test")]
    found = fast_train.load_model(run.folder, device="cpu").predict(files)
    assert np.allclose([p.confidence for p in found], run.evaluation.confidences, atol=1e-6)


@pytest.mark.parametrize(("given", "message"), [
    ({"epohcs": 3}, "did you mean 'epochs'"), ({"name": "muon"}, "optimizer and of schedule; say which"),
    ({"epochs": "three"}, "it must be a whole number"), ({"batch_size": "3"}, "'3'; it must be a whole number"),
    ({"device": 3}, "unknown device '3'; give cpu"),
    ({"stop_after": "1"}, "stop_after is '1'"), ({"recipe": 3}, "recipe is 3; give it a name"),
    ({"optimizer": 3}, "must be a table"), ({"run": 3}, "run is 3; it must be a table"),
    ({"stop_after": 0}, "stop_after is 0, which is no epoch"), ({"num_classes": 5}, "what the data say"),
    ({"out": ""}, "out is ''; give it a name or a path"),
    ({"epochs": 2, "steps": 5}, "both say how long"), ({"path": "elsewhere"}, "leave out path"),
    ({"resume": "nowhere"}, "no checkpoint at nowhere"), ({"resume": "x", "recipe": "fast"}, "leave out recipe"),
])  # fmt: skip
def test_bad_settings_are_one_line(prepared_path, given, message):
    with pytest.raises(ValueError, match=message) as error:
        fast_train.train(prepared_path, **given)
    assert "\n" not in str(error.value)


def test_scalars_of_numpy_and_devices_of_torch_are_settings(prepared_path, tmp_path):
    given = {"epochs": np.int64(1), "seed": np.uint8(3), "lr": np.float32(0.5), "optimizer": {"nesterov": np.False_}}
    run = fast_train.train(prepared_path, out=tmp_path / "run", **{**SMALL, "device": torch.device("cpu"), **given})
    config = fast_train.load_model(run.folder, device="cpu").config
    assert (config.run.epochs, config.run.seed) == (1, 3)
    assert (config.optimizer.lr, config.optimizer.nesterov) == (0.5, False)


def test_an_outcome_holds_what_the_command_prints_of_its_plan(prepared_path, tmp_path):
    run = fast_train.train(prepared_path, out=tmp_path / "run", steps=1, **{**SMALL, "batch_size": 4096})
    assert run.notes[0].startswith("batch size 4096 -> 120: ")


def test_an_augmenter_takes_the_name_of_a_device(prepared):
    given = {"normalise": "set", "dtype": torch.float32, "device": "cpu"}
    with fast_train.make_loader(prepared, batch_size=8, device="cpu") as loader:
        batch = next(iter(loader))
        assert fast_train.Augmenter(prepared.manifest, fast_train.AugmentSpec(), **given)(batch).shape == (8, 3, 16, 16)
        spec = fast_train.CropSpec(size=12)
        assert fast_train.CropAugmenter(prepared.manifest, spec, **given)(batch).shape == (8, 3, 12, 12)


def test_pieces_refuse_names_that_they_do_not_know(prepared):
    with pytest.raises(ValueError, match="unknown fusion 'nrom'; did you mean 'norm'"):
        fast_train.build_model("resnet8", fuse="nrom")
    for normalise in ("x", None):
        with pytest.raises(ValueError, match=f"unknown normalisation '{normalise}'"):
            fast_train.Augmenter(
                prepared.manifest, fast_train.AugmentSpec(), normalise=normalise, dtype=None, device=None
            )
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        fast_train.make_loader(prepared, batch_size=8, device="gpu")
    with pytest.raises(ValueError, match="batch_size is '8'; give a whole number"):
        fast_train.make_loader(prepared, batch_size="8")
    with pytest.raises(ValueError, match="num_classes is '3'; it must be a whole number"):
        fast_train.build_model("resnet8", num_classes="3")


def test_formats_are_names(image_folder, tmp_path):
    for formats in (3, [3]):
        with pytest.raises(ValueError, match=r"formats is .*; give a list of names"):
            fast_train.prepare(image_folder, out=tmp_path / "set", formats=formats)


def test_a_thread_trains_an_opened_set(prepared, tmp_path):
    """Signals are the main thread's."""
    outcomes = []

    def work():
        outcomes.append(fast_train.train(prepared, out=tmp_path / "run", steps=1, **SMALL))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [outcome.finished for outcome in outcomes] == [True]
