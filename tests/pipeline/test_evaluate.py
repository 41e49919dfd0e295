import numpy as np
import pytest
import torch
from torch import nn

from fast_train.kernels.spec import NO_AUGMENT
from fast_train.pipeline.config.settings import ModelConfig
from fast_train.pipeline.engine.augmentation import Augmenter
from fast_train.pipeline.engine.evaluate import check_tta, evaluate, evaluation_batch
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.loaders import build_loader
from fast_train.pipeline.models import build_model


class _LeftBright(nn.Module):
    """Class 0 if the left half is the brighter one, else class 1: mirror images get the other class."""

    def forward(self, x):
        left, right = x[..., : x.shape[3] // 2].mean((1, 2, 3)), x[..., x.shape[3] // 2 :].mean((1, 2, 3))
        return torch.stack([left, right, torch.full_like(left, -9.0)], dim=1)


def _augmenter(prepared):
    return Augmenter(prepared.manifest, NO_AUGMENT, normalise="set", dtype=torch.float32, device=torch.device("cpu"))


def _plainly(model, prepared):
    """All images in one batch, normalised by hand."""
    packed = prepared.packed("test")
    mean, std = np.array(prepared.manifest.mean), np.array(prepared.manifest.std)
    images = torch.tensor((packed.images / 255 - mean) / std, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        return model.eval()(images).softmax(1), torch.tensor(packed.labels)


@pytest.mark.parametrize("batch_size", [1, 5, 33, 100])
def test_equals_one_big_batch(prepared, name, batch_size):
    model = build_model(ModelConfig(arch="resnet8", num_classes=3))
    probabilities, labels = _plainly(model, prepared)
    model.train()
    with build_loader(name, prepared, "test", batch_size=batch_size, train=False, workers=1) as loader:
        result = evaluate(model, loader, _augmenter(prepared))
    assert model.training
    expected = probabilities.argmax(1)
    assert np.array_equal(result.predictions, expected.numpy())
    assert result.confidences == pytest.approx(probabilities.max(1).values.numpy(), abs=1e-5)
    assert result.accuracy == pytest.approx(float((expected == labels).double().mean()))
    assert result.loss == pytest.approx(float(-probabilities[range(33), labels].log().mean()), rel=1e-5)
    assert result.confusion.sum() == 33
    for true in range(3):
        for predicted in range(3):
            assert result.confusion[true, predicted] == int(((labels == true) & (expected == predicted)).sum())
    assert result.per_class() == pytest.approx(np.diag(result.confusion) / 11)


def test_flip_averages_an_image_with_its_mirror(prepared):
    with build_loader("resident", prepared, "test", batch_size=10, train=False) as loader:
        plain = evaluate(_LeftBright(), loader, _augmenter(prepared))
        flipped = evaluate(_LeftBright(), loader, _augmenter(prepared), tta="flip")
    assert len(set(plain.predictions)) == 2
    # What the mirror image gains the image loses: both classes end with the same probability.
    assert flipped.confidences == pytest.approx(np.full(33, 0.5), abs=1e-3)


class _Weighing(nn.Module):
    """Logits that are a fixed weighing of all pixels: no two views of an image give the same."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16 * 16 * 3, 3)

    def forward(self, x):
        return self.fc(x.flatten(1))


def test_multicrop_is_the_weighted_mean_of_the_logits_of_six_views(prepared):
    """Pixel by pixel: view (dy, dx) shows at (y, x) what is at (y + dy, x + dx), reflected at the border."""
    torch.manual_seed(0)
    model = _Weighing()
    with build_loader("resident", prepared, "test", batch_size=10, train=False) as loader:
        result = evaluate(model, loader, _augmenter(prepared), tta="multicrop")
    packed = prepared.packed("test")
    mean, std = np.array(prepared.manifest.mean), np.array(prepared.manifest.std)
    images = torch.tensor((packed.images / 255 - mean) / std, dtype=torch.float32)

    def moved(by):
        place = (torch.arange(16) + by).abs()
        place = torch.where(place > 15, 30 - place, place)
        return images[:, place][:, :, place]

    logits = 0
    for weight, view in ((0.5, images), (0.25, moved(1)), (0.25, moved(-1))):
        for side in (view, view.flip(2)):
            logits = logits + weight / 2 * model(side.permute(0, 3, 1, 2)).detach()
    expected = logits.softmax(1)
    assert np.array_equal(result.predictions, expected.argmax(1).numpy())
    assert result.confidences == pytest.approx(expected.max(1).values.numpy(), abs=1e-5)


def _evaluated(model, prepared, tta, share):
    with build_loader("resident", prepared, "test", batch_size=10, train=False) as loader:
        return evaluate(model, loader, _augmenter(prepared), tta=tta, tta_share=share)


@pytest.mark.parametrize(("share", "views"), [(0.4, [4, 4, 4, 2]), (0.01, [1, 1, 1, 1])])
@pytest.mark.parametrize("tta", ["flip", "multicrop"])
def test_only_the_least_certain_images_of_each_batch_get_more_views(prepared, tta, share, views):
    """Batches of 10, and a last one of 3: a part of them, rounded up."""
    torch.manual_seed(0)
    model = _Weighing()
    plain, six, some = (_evaluated(model, prepared, tta, part) for part in (0.0, 1.0, share))
    expected = plain.confidences.copy()
    for rows, count in zip(np.split(np.arange(33), [10, 20, 30]), views, strict=True):
        chosen = rows[np.argsort(plain.confidences[rows])[:count]]
        expected[chosen] = six.confidences[chosen]
    assert some.confidences == pytest.approx(expected, abs=1e-6)
    assert np.count_nonzero(some.confidences != plain.confidences) == sum(views)


def test_no_share_of_more_views_is_the_image_alone(prepared):
    model = build_model(ModelConfig(arch="resnet8", num_classes=3))
    none, alone = _evaluated(model, prepared, "multicrop", 0.0), _evaluated(model, prepared, "none", 1.0)
    assert np.array_equal(none.confidences, alone.confidences)


def test_images_of_one_pixel_cannot_be_moved_by_one():
    for tta, shape in (("multicrop", (2, 2)), ("flip", (1, 1)), ("none", (1, 1))):
        check_tta(tta, *shape)
    for shape in ((1, 8), (8, 1)):
        with pytest.raises(ConfigError, match=f"--tta multicrop .* {shape[0]} x {shape[1]} pixels .* give --tta flip"):
            check_tta("multicrop", *shape)


@pytest.mark.parametrize(
    ("size", "images", "expected"),
    [(32, 10_000, 1000), (16, 10_000, 1000), (32, 60, 60), (64, 10_000, 250), (224, 10_000, 20), (2000, 60, 1)],
)
def test_a_batch_of_large_images_takes_no_more_memory(size, images, expected):
    assert evaluation_batch(images, size, size) == expected


def test_a_class_without_images_has_no_accuracy(prepared):
    with build_loader("resident", prepared, "test", batch_size=10, train=False) as loader:
        result = evaluate(_LeftBright(), loader, _augmenter(prepared))
    result.confusion[1] = 0
    assert np.isnan(result.per_class()[1])


@pytest.mark.parametrize(("change", "words"), [
    (lambda batches: batches[:2], "left out 13 and gave 0 more than once"),
    (lambda batches: [*batches, batches[0]], "left out 0 and gave 10 more than once"),
    (lambda batches: [batches[0]] * 4, "left out 23 and gave 10 more than once"),
    (lambda batches: [], "left out 33 and gave 0 more than once"),
])  # fmt: skip
def test_images_that_a_loader_does_not_give_once_are_no_right_answers(prepared, monkeypatch, change, words):
    with build_loader("resident", prepared, "test", batch_size=10, train=False) as loader:
        feed = loader.feed
        monkeypatch.setattr(loader, "feed", lambda: iter(change(list(feed()))))
        with pytest.raises(ValueError, match=words):
            evaluate(_LeftBright(), loader, _augmenter(prepared))
