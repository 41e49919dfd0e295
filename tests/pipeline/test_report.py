"""Pictures of a set in any format, and normalisation of a set that has no colours."""

import dataclasses

import numpy as np
import pytest
import torch
from rich.console import Console

from fast_train.data_prep import cli as prep_cli
from fast_train.data_prep.manifest import PreparedSet
from fast_train.kernels.spec import NO_AUGMENT
from fast_train.pipeline.engine.augmentation import Augmenter, normalisation
from fast_train.pipeline.engine.evaluate import Evaluation
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.loaders import LOADERS
from fast_train.pipeline.report import plots
from fast_train.pipeline.report.summary import print_accuracy, write_pictures

_PICTURES = ["class-accuracy.png", "confusion-matrix.png", "predictions.png"]


@pytest.fixture
def evaluation():
    return Evaluation(
        loss=1.0,
        accuracy=1.0,
        confusion=np.eye(3, dtype=np.int64) * 11,
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


def test_images_of_one_colour_are_told_what_to_do(prepared):
    manifest = dataclasses.replace(prepared.manifest, mean=(0.2, 0.0, 0.0), std=(0.1, 0.0, 0.0))
    with pytest.raises(ConfigError, match=r"same value in channel 1, 2, .* --set data\.normalise=half"):
        Augmenter(manifest, NO_AUGMENT, normalise="set", dtype=torch.float32, device=torch.device("cpu"))
    assert normalisation(manifest.mean, manifest.std, "half") == ((0.5,) * 3, (0.5,) * 3)
