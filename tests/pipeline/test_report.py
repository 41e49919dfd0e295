"""Pictures of a set in any format, and normalisation of a set that has no colours."""

import csv
import dataclasses
import os

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import fast_train
from fast_train.data_prep import cli as prep_cli
from fast_train.data_prep.manifest import PreparedSet
from fast_train.data_prep.sources import SourceOptions
from fast_train.kernels.spec import NO_AUGMENT
from fast_train.pipeline.engine.augmentation import Augmenter, normalisation
from fast_train.pipeline.engine.evaluate import Evaluation
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.loaders import LOADERS
from fast_train.pipeline.report import plots
from fast_train.pipeline.report.predictions import print_mistakes, write_predictions
from fast_train.pipeline.report.summary import print_accuracy, write_pictures

_PICTURES = ["class-accuracy.png", "confusion-matrix.png", "predictions.png"]


@pytest.fixture
def evaluation():
    return Evaluation(
        split="test",
        loss=1.0,
        accuracy=1.0,
        confusion=np.eye(3, dtype=np.int64) * 11,
        labels=np.arange(33) // 11,
        predictions=np.arange(33) // 11,
        confidences=np.full(33, 0.5, np.float32),
    )


@pytest.mark.parametrize("name", ["resident", "ffcv", "dali"])
def test_pictures_need_no_other_files_than_the_training(
    image_folder, prepared, tmp_path, monkeypatch, evaluation, name
):
    missing = LOADERS[name].missing()
    if missing:
        pytest.skip(missing)
    out, drawn = tmp_path / "set", {}
    form = LOADERS[name].format
    assert prep_cli.main(["--dataset", f"folder:{image_folder}", "--out", str(out), "--formats", form]) == 0
    draw = plots.prediction_grid

    def spy(images, true, *arguments, **options):
        drawn.update(images=images, true=true)
        return draw(images, true, *arguments, **options)

    monkeypatch.setattr(plots, "prediction_grid", spy)
    paths = write_pictures(tmp_path / "run", evaluation, [], PreparedSet.open(out), title="t")
    assert sorted(path.name for path in paths) == _PICTURES
    chosen = np.linspace(0, 32, 32).astype(int)
    packed = prepared.packed("test")
    assert np.array_equal(drawn["images"], packed.images[chosen])
    assert np.array_equal(drawn["true"], packed.labels[chosen])


def test_a_line_of_figures_is_not_wrapped(prepared, evaluation, capsys):
    print_accuracy(Console(width=20), evaluation, prepared)
    assert capsys.readouterr().out == "test accuracy 100.00%, loss 1.000, on 33 images\n"


@pytest.fixture
def mistaken(evaluation):
    """Image 12, a cross, is taken for stripes; 2 and 3, circles, for crosses; nothing else is wrong."""
    predictions, confidences = evaluation.predictions.copy(), evaluation.confidences.copy()
    predictions[[2, 3, 12]], confidences[[2, 3, 12]] = [1, 1, 2], [0.625, 0.75, 0.875]
    return dataclasses.replace(evaluation, predictions=predictions, confidences=confidences)


def test_the_worst_predictions_are_named(prepared, mistaken, evaluation, capsys):
    print_mistakes(Console(width=20), mistaken, prepared)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  test/cross/001.png: cross taken for stripes, 87.5%",
        "  test/circle/003.png: circle taken for cross, 75.0%",
        "  test/circle/002.png: circle taken for cross, 62.5%",
    ]
    nameless = dataclasses.replace(prepared, manifest=dataclasses.replace(prepared.manifest, name_files=()))
    print_mistakes(Console(), mistaken, nameless)
    assert "  test image 12: cross taken for stripes, 87.5%" in capsys.readouterr().out
    print_mistakes(Console(), evaluation, prepared)
    assert capsys.readouterr().out == ""


def test_every_prediction_is_a_line_of_a_table(prepared, mistaken, tmp_path):
    table = write_predictions(tmp_path / "run", mistaken, prepared)
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["index"] for row in rows] == [str(i) for i in range(33)]
    assert [row["file"] for row in rows] == prepared.names("test")
    assert rows[12] == {
        "index": "12",
        "file": "test/cross/001.png",
        "true": "cross",
        "predicted": "stripes",
        "confidence": "0.875000",
    }


def test_a_table_holds_any_name_and_no_formula(tmp_path):
    """Names of several lines, of bytes that are no text, or such that a spreadsheet program would run."""
    for name in ("=1+1", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (2, 2)).save(tmp_path / "images" / name / os.fsdecode(b'a\n\r,";\xff%d.png' % i))
    made = fast_train.prepare(
        tmp_path / "images", out=tmp_path / "set", options=SourceOptions(test_fraction=0.5, workers=1)
    )
    labels = made.packed("test").labels
    result = Evaluation(
        "test", 1.0, 0.5, np.array([[2, 0], [2, 0]]), labels, np.zeros_like(labels), np.ones(4, np.float32)
    )
    with open(write_predictions(tmp_path, result, made), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name.replace("\udcff", r"\udcff").replace("\r", r"\r") for name in made.names("test")]
    assert [row["file"] for row in rows] == [f"./{names[0]}", f"./{names[1]}", *names[2:]]
    assert [(row["true"], row["predicted"]) for row in rows] == [("'=1+1",) * 2] * 2 + [("b", "'=1+1")] * 2


def test_images_of_one_colour_are_told_what_to_do(prepared):
    manifest = dataclasses.replace(prepared.manifest, mean=(0.2, 0.0, 0.0), std=(0.1, 0.0, 0.0))
    with pytest.raises(ConfigError, match=r"same value in channel 1, 2, .* --set data\.normalise=half"):
        Augmenter(manifest, NO_AUGMENT, normalise="set", dtype=torch.float32, device=torch.device("cpu"))
    assert normalisation(manifest.mean, manifest.std, "half") == ((0.5,) * 3, (0.5,) * 3)
