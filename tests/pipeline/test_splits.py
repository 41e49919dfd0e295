"""Trainings of sets that have a validation split beside their test split."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

import fast_train
from fast_train.data_prep.manifest import MANIFEST_NAME, FileEntry, PreparedSet
from fast_train.data_prep.whole import sha256_of
from fast_train.pipeline import cli
from fast_train.pipeline.engine.history import accuracies, stale

SETTINGS = {"arch": "resnet8", "batch_size": 24, "epochs": 3, "device": "cpu", "lr": 0.1, "seed": 1}


def _with_validation(prepared, root, *, test=True):
    """A copy of a set, packed, whose validation split holds the first images of the training split."""
    shutil.copytree(prepared.root, root)
    packed = prepared.packed("train")
    path = root / "validation.safetensors"
    _write_packed(path, packed.images[::4], packed.labels[::4])
    with open(path, "rb") as file:
        digest = sha256_of(file)
    entry = FileEntry(path=path.name, split="validation", format="packed", bytes=path.stat().st_size, sha256=digest)
    manifest = prepared.manifest
    counts = {**manifest.counts, "validation": tuple(np.bincount(packed.labels[::4]).tolist())}
    files = tuple(file for file in manifest.files if file.format == "packed")
    if not test:
        counts.pop("test")
        files = tuple(file for file in files if file.split != "test")
    changed = dataclasses.replace(manifest, counts=counts, files=(*files, entry), name_files=(), pixels={})
    (root / MANIFEST_NAME).write_text(changed.to_json())
    return PreparedSet.open(root)


def _write_packed(path, images, labels):
    from fast_train.data_prep.formats import WRITERS, FormatOptions

    writer = WRITERS["packed"](path.parent, path.stem, len(labels), images.shape[1:], FormatOptions())
    writer.write(np.ascontiguousarray(images), labels)
    writer.close()


@pytest.fixture(scope="module")
def three_splits(prepared, tmp_path_factory):
    return _with_validation(prepared, tmp_path_factory.mktemp("three") / "set")


def test_validation_judges_and_the_test_split_is_looked_at_once(three_splits, tmp_path):
    outcome = fast_train.train(three_splits, out=tmp_path / "run", **SETTINGS)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(record["validation_accuracy"] is not None for record in records)
    assert not any("test_accuracy" in record for record in records)
    assert outcome.evaluation.split == "test"
    assert len(outcome.evaluation.labels) == three_splits.size("test")
    again = fast_train.evaluate(tmp_path / "run")
    assert (again.split, again.accuracy) == ("test", outcome.accuracy)


def test_a_set_without_a_test_split_ends_with_its_validation(prepared, tmp_path):
    given = _with_validation(prepared, tmp_path / "set", test=False)
    outcome = fast_train.train(given, out=tmp_path / "run", **{**SETTINGS, "epochs": 1})
    assert outcome.evaluation.split == "validation"
    assert outcome.accuracy == outcome.history[-1]["validation_accuracy"]


def test_patience_ends_a_run_that_no_longer_improves_and_tests_its_best(three_splits, tmp_path):
    # At this rate nothing is learnt after the first step.
    given = {**SETTINGS, "epochs": 40, "lr": 1e-12}
    outcome = fast_train.train(three_splits, out=tmp_path / "run", run={"patience": 2}, **given)
    assert outcome.finished
    assert stale(outcome.history) == 2
    assert len(outcome.history) < 40
    best = fast_train.evaluate(tmp_path / "run" / "best.pt")
    assert np.array_equal(outcome.evaluation.predictions, best.predictions)
    again = fast_train.train(resume=tmp_path / "run")
    assert again.evaluation is None
    longer = fast_train.train(resume=tmp_path / "run", run={"patience": 3})
    assert len(longer.history) > len(outcome.history)


def test_target_and_best_go_by_validation(three_splits, tmp_path, capsys):
    arguments = ["--data", str(three_splits.root), "--recipe", "cpu-quick", "--arch", "resnet8", "--device", "cpu"]
    length = ["--batch-size", "24", "--epochs", "4", "--keep-best", "--target-accuracy", "0.2", "--out"]
    assert cli.main([*arguments, *length, str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "that is of the best weights" in out
    assert "validation " in out
    assert "test accuracy" in out
    assert "test images" in out
    assert (tmp_path / "run" / "learning-curves.png").is_file()
    history = torch.load(tmp_path / "run" / "best.pt", weights_only=True)["history"]
    assert accuracies(history)[-1] >= 0.2
