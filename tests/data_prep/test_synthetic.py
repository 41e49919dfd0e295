import hashlib

import numpy as np
import pytest

from fast_train.data_prep.manifest import PreparedSet


@pytest.fixture(scope="module")
def splits(synthetic):
    opened = {split: PreparedSet.open(synthetic).packed(split) for split in ("train", "test")}
    return {split: (np.array(packed.images), packed.labels) for split, packed in opened.items()}


def test_same_bytes_everywhere(splits):
    # Only integers and the raw stream of PCG64 enter, so this holds on any machine and with any NumPy.
    images, labels = splits["test"]
    assert (images.shape, images.dtype, labels.dtype) == ((2000, 32, 32, 3), np.uint8, np.int64)
    assert (
        hashlib.sha256(images.tobytes()).hexdigest()
        == "351cd8b8f94c0184572fdb32c5474135b2253bb05299e28db5094335d2f912d7"
    )


def test_classes_are_balanced_and_no_image_comes_twice(splits):
    for images, labels in splits.values():
        assert len(set(np.bincount(labels, minlength=10))) == 1
        assert len({image.tobytes() for image in images}) == len(images)
    assert not {i.tobytes() for i in splits["train"][0]} & {i.tobytes() for i in splits["test"][0]}


def test_classes_can_be_learned_but_not_by_looking_at_means(splits):
    """Nearest neighbours find far more than chance; the nearest class mean, which shifts blur, far from all."""
    (train, train_labels), (test, test_labels) = splits["train"], splits["test"]
    train, test = (x.reshape(len(x), -1).astype(np.float32) / 255 for x in (train, test[:500]))
    train -= train.mean(axis=1, keepdims=True)
    test -= test.mean(axis=1, keepdims=True)
    means = np.stack([train[train_labels == i].mean(axis=0) for i in range(10)])
    by_mean = ((test[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    train /= np.linalg.norm(train, axis=1, keepdims=True)
    nearest = np.argsort(test @ train.T, axis=1)[:, -9:]
    votes = np.array([np.bincount(row, minlength=10).argmax() for row in train_labels[nearest]])
    assert (votes == test_labels[:500]).mean() > 0.3
    assert (by_mean == test_labels[:500]).mean() < 0.8


def test_the_set_says_what_it_is(synthetic, prep):
    result = prep("--dataset", "synthetic", "--out", synthetic)
    assert result.status == 0
    assert "whole already" in result.out
    assert "synthetic" in result.out
    opened = PreparedSet.open(synthetic)
    assert opened.synthetic
    assert opened.manifest.classes == tuple(f"synthetic-{i}" for i in range(10))
    assert (opened.size("train"), opened.size("test")) == (10_000, 2_000)
