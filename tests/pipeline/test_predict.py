"""fast-predict: what an evaluation finds, of any pictures, and one line for each that is none."""

import csv
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import fast_train
from fast_train.data_prep.sources.listing import files_below
from fast_train.pipeline import cli
from fast_train.pipeline.predict_cli import main
from fast_train.pipeline.run.predict import TrainedModel


@pytest.fixture(scope="module")
def run(prepared_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict") / "run"
    settings = {"recipe": "cpu-quick", "arch": "resnet8", "device": "cpu", "amp": "off", "batch_size": 24}
    return fast_train.train(prepared_path, out=folder, epochs=1, tta="flip", **settings).folder


@pytest.fixture
def pictures(image_folder, tmp_path, monkeypatch):
    """A folder to be in: pictures of three classes, hidden files, a folder in the folder, and what is no picture."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, source in (("10.png", "cross/001"), ("9.png", "circle/000"), ("deep/a.png", "stripes/002")):
        (tmp_path / "in" / name).write_bytes((image_folder / "test" / f"{source}.png").read_bytes())
    (tmp_path / "in" / ".hidden.png").touch()
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


@pytest.mark.parametrize("tta", [[], ["--tta", "multicrop"]])
def test_files_are_predicted_as_their_set_was_evaluated(run, image_folder, tmp_path, tta):
    """Without --tta both take the run's own."""
    assert cli.main(["--evaluate", str(run), "--device", "cpu", "--out", str(tmp_path), *tta]) == 0
    table = str(tmp_path / "found.csv")
    assert main([str(run), str(image_folder / "test"), "--csv", table, "--device", "cpu", *tta]) == 0
    with open(tmp_path / "predictions.csv") as evaluated, open(table) as predicted:
        expected, found = list(csv.DictReader(evaluated)), list(csv.DictReader(predicted))
    assert [row["file"] for row in found] == [str(image_folder / row["file"]) for row in expected]
    assert [row["predicted"] for row in found] == [row["predicted"] for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert float(one["confidence"]) == pytest.approx(float(other["confidence"]), abs=2e-6)


def test_each_picture_is_a_line_whatever_lies_between(run, pictures, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"in/9.png\nnowhere.png\n")))
    assert main([str(run), "in", "notes.txt", "-", "--top", "5", "--batch-size", "2", "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    model = fast_train.load_model(run, device="cpu")
    names = ["in/9.png", "in/10.png", "in/deep/a.png", "in/9.png"]
    expected = []
    for name, found in zip(names, model.predict(names), strict=True):
        ranked = sorted(zip(-found.probabilities, model.classes, strict=True))
        expected.append(f"{name}: " + ", ".join(f"{label} {-part:.1%}" for part, label in ranked))
    assert out.splitlines() == expected
    assert err.splitlines() == [
        "fast-predict: notes.txt can't be predicted: not an image of a known format",
        "fast-predict: nowhere.png can't be predicted: No such file or directory",
    ]


def test_a_table_goes_where_it_is_wanted_and_holds_any_name(run, pictures, capsys):
    os.rename("in/9.png", "=1+1.png")
    command = [str(run), "=1+1.png", "in", "--device", "cpu", "--top", "2", "--csv"]
    assert main([*command, "-"]) == 0
    written = capsys.readouterr().out
    header, first, *rest = csv.reader(written.splitlines())
    assert header == ["file", "predicted", "confidence", "predicted_2", "confidence_2"]
    assert (first[0], len(rest)) == ("./=1+1.png", 2)
    assert main([*command, "table.csv"]) == 0
    assert (pictures / "table.csv").read_text() == written
    assert capsys.readouterr() == ("", "")


def test_a_table_is_whole_or_not_there(run, pictures, monkeypatch):
    def fail(*_):
        raise ValueError("broken")

    monkeypatch.setattr(TrainedModel, "_predictions", fail)
    assert main([str(run), "in", "--csv", "table.csv", "--device", "cpu"]) == 2
    assert sorted(os.listdir()) == ["in", "notes.txt"]


@pytest.mark.parametrize("form", [[], ["--csv", "-"]])
def test_it_ends_where_nobody_reads_on(run, pictures, monkeypatch, capsys, form):
    """As `| head`: the picture that is none is not reached."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main([str(run), "in", "notes.txt", "--batch-size", "1", "--device", "cpu", *form]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("form", [[], ["--csv", "-"]])
def test_predictions_that_a_full_disk_takes_are_an_error(run, pictures, monkeypatch, form):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main([str(run), "in", "--device", "cpu", *form]) == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere", "in"], "no checkpoint at nowhere"),
        (["in", "in"], "in holds no checkpoint"),
        (["run", "empty"], "empty holds no pictures"),
        (["run", "in", "--top", "0"], "--top 0 is too few"),
        (["run", "in", "--tta", "flop"], "did you mean 'flip'?"),
        (["run", "in", "--device", "gpu"], "unknown device 'gpu'"),
        (["run", "in", "--csv", "in"], "--csv 'in' is no file"),
    ],
)
def test_what_cannot_work_is_refused_without_torch(pictures, arguments, message):
    (pictures / "empty").mkdir()
    (pictures / "run").mkdir()
    (pictures / "run" / "last.pt").touch()
    code = "import sys; sys.modules['torch'] = None; from fast_train.pipeline.predict_cli import main; sys.exit(main())"
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("fast-predict: error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_its_help_needs_no_torch(tmp_path):
    code = "import sys; sys.modules['torch'] = None; from fast_train.pipeline.predict_cli import main; main(['--help'])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert shown.stdout.startswith("usage: fast-predict")


def test_files_come_in_natural_order(tmp_path):
    ordered = ["2/x.png", "10/1.png", "10/02.png", "10/2.png", "10/2b.png", "10/10.png", "a/1.png"]
    for name in (*sorted(ordered), ".hidden.png", "Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert files_below(tmp_path) == [
        "2/x.png",
        "10/1.png",
        "10/02.png",
        "10/2.png",
        "10/2b.png",
        "10/10.png",
        "a/1.png",
    ]


def test_any_iterable_of_images_is_predicted(run, image_folder):
    model, paths = fast_train.load_model(run, device="cpu"), sorted((image_folder / "test").rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    evaluation = fast_train.evaluate(run, device="cpu", tta="none")
    for images in ((path for path in paths), pixels, list(pixels)):
        found = model.predict(images, tta="none", batch_size=7)
        assert np.allclose([prediction.confidence for prediction in found], evaluation.confidences, atol=2e-6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda model: model.predict(3), "as a list or an array, not int"),
        (lambda model: model.predict([], tta="flop"), "did you mean 'flip'?"),
        (lambda model: model.predict([], batch_size=0), "batch_size is 0; give 1 or more"),
        (lambda model: fast_train.open_set(None), "None is no path"),
        (lambda model: fast_train.train(listeners=fast_train.Listener()), r"give a list of Listeners, such as \[Speed"),
        (lambda model: fast_train.train(listeners=[fast_train.Listener]), "give a list of Listeners"),
        (lambda model: fast_train.prepare(options={"size": 8}), r"options is {'size': 8}; give SourceOptions\("),
        (lambda model: fast_train.AugmentSpec(pad="4"), "pad is '4'; it must be a number"),
        (lambda model: fast_train.CropSpec(size="24"), "size is '24'; it must be a number"),
    ],
)
def test_what_is_of_another_type_is_one_line(run, call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(fast_train.load_model(run, device="cpu"))
    assert "\n" not in str(error.value)
