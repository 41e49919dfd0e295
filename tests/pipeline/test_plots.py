import subprocess
import sys

import numpy as np
import pytest
from fontTools import ttLib
from matplotlib import font_manager
from matplotlib.text import Text
from PIL import Image

from fast_train.pipeline.report import plots

ANIMALS = ["bird", "cat", "dog"]
LONG = [f"a class of many words, number {i}, and then some" for i in range(10)]
_RED = np.array([0xD5, 0x5E, 0x00])


@pytest.fixture
def texts(monkeypatch):
    """What stands in the last picture."""
    found = []
    save = plots.save

    def spy(figure, path):
        path = save(figure, path)
        found[:] = [t.get_text() for t in figure.findobj(Text) if t.get_visible() and t.get_text()]
        return path

    monkeypatch.setattr(plots, "save", spy)
    return found


def _pixels(path):
    """uint8 [H, W, 3]; fails if the file is no whole PNG, has an odd size, or is cropped."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert all(200 < side < 4000 for side in pixels.shape[:2])
    assert pixels.std() > 5
    for border in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
        assert (border == 255).all()
    return pixels


def _count_red(path):
    return int((_pixels(path) == _RED).all(-1).sum())


def _history(epochs, test_every=1):
    return [
        {
            "epoch": e,
            "train_loss": 2 / e,
            "train_accuracy": 1 - 0.7 / e,
            "test_loss": None if e % test_every else 2.2 / e,
            "test_accuracy": None if e % test_every else 0.9 - 0.6 / e,
            "lr": 0.1,
        }
        for e in range(1, epochs + 1)
    ]


def _matrix(count, images=100, seed=0):
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet(np.ones(count), size=count) * 0.3 + 0.7 * np.eye(count)
    return np.stack([generator.multinomial(images, row) for row in shares])


def _images(count, channels=3, size=(8, 8)):
    return np.random.default_rng(1).integers(0, 256, size=(count, *size, channels), dtype=np.uint8)


@pytest.mark.parametrize("epochs, test_every", [(1, 1), (2, 1), (16, 3), (300, 10)])
def test_learning_curves_name_the_best_evaluation(tmp_path, texts, epochs, test_every):
    history = _history(epochs, test_every)
    path = plots.learning_curves(history, tmp_path / "curves.png", title="shapes (synthetic data)")
    assert path == tmp_path / "curves.png"
    _pixels(path)
    best = max((r["test_accuracy"], r["epoch"]) for r in history if r["test_accuracy"] is not None)
    assert f"best test: {best[0]:.2%} (epoch {best[1]})" in texts
    assert "shapes (synthetic data)" in texts
    assert "learning rate at\nthe epoch's end" in texts


def test_learning_curves_mark_a_best_that_is_not_the_last(tmp_path, texts):
    history = _history(5)
    history[2]["test_accuracy"] = 0.97
    plots.learning_curves(history, tmp_path / "a.png", title="")
    assert "best test: 97.00% (epoch 3)" in texts


def test_learning_curves_without_evaluations_and_rates(tmp_path, texts):
    history = [{k: r[k] for k in ("epoch", "train_loss", "train_accuracy")} for r in _history(3)]
    _pixels(plots.learning_curves(history, tmp_path / "a.png", title="t"))
    assert not any("test" in t or "rate" in t for t in texts)


def test_learning_curves_leave_out_what_is_not_finite(tmp_path, texts):
    history = _history(4)
    history[3].update(train_loss=float("inf"), test_loss=float("nan"), test_accuracy=float("nan"))
    _pixels(plots.learning_curves(history, tmp_path / "a.png", title="t"))
    assert any(t.endswith("(epoch 3)") for t in texts)


def test_learning_curves_of_constant_zeros(tmp_path):
    history = [dict(r, train_loss=0.0, test_loss=0.0, lr=0.0) for r in _history(3)]
    _pixels(plots.learning_curves(history, tmp_path / "a.png", title="t"))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda h: h.clear(), "no epochs"),
        (lambda h: h[1].pop("train_loss"), "record 2 of the history has no 'train_loss'"),
        (lambda h: h[1].pop("epoch"), "record 2 of the history has no 'epoch'"),
        (lambda h: h.reverse(), "must rise"),
    ],
)
def test_learning_curves_refuse_a_bad_history(tmp_path, change, message):
    history = _history(3)
    change(history)
    with pytest.raises(ValueError, match=message):
        plots.learning_curves(history, tmp_path / "a.png", title="t")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [1, 2, 10, 20])
def test_confusion_matrix_writes_the_counts(tmp_path, texts, count):
    matrix = _matrix(count, images=12_345)
    classes = [f"class {i}" for i in range(count)]
    _pixels(plots.confusion_matrix(matrix, classes, tmp_path / "m.png", title="t"))
    assert {str(n) for n in matrix.flat} <= set(texts)
    assert all(texts.count(name) == 2 for name in classes)


@pytest.mark.parametrize("count", [21, 100, 250])
def test_confusion_matrix_of_many_classes_has_few_labels_and_no_counts(tmp_path, texts, count):
    matrix = _matrix(count, images=777)
    classes = [f"k{i:03}" for i in range(count)]
    _pixels(plots.confusion_matrix(matrix, classes, tmp_path / "m.png", title="t"))
    assert not {str(n) for n in matrix.flat} & set(texts)
    labels = [t for t in texts if t in classes]
    assert "k000" in labels
    assert 40 <= len(labels) <= 80


def test_confusion_matrix_colours_by_the_share_of_the_true_class(tmp_path):
    """A rare class that is always right is as dark as a frequent one, and an empty one is no error."""
    matrix = np.diag([1000, 5, 0])
    pixels = _pixels(plots.confusion_matrix(matrix, ANIMALS, tmp_path / "m.png", title="t"))
    scaled = _pixels(plots.confusion_matrix(matrix * [[1], [7], [1]], ANIMALS, tmp_path / "n.png", title="t"))
    # But for the number in the cell nothing has changed.
    assert pixels.shape == scaled.shape
    assert (pixels != scaled).any(-1).mean() < 0.002


@pytest.mark.parametrize("draw", [plots.confusion_matrix, plots.per_class_accuracy])
@pytest.mark.parametrize(
    "matrix, message",
    [
        (np.zeros((2, 3), np.int64), r"shape \(2, 3\); 3 classes need \(3, 3\)"),
        (np.zeros(9, np.int64), "shape"),
        (np.full((3, 3), 0.5), "whole numbers"),
        (np.full((3, 3), -1), "whole numbers"),
    ],
)
def test_bad_matrices_are_refused(tmp_path, draw, matrix, message):
    with pytest.raises(ValueError, match=message):
        draw(matrix, ANIMALS, tmp_path / "a.png", title="t")
    with pytest.raises(ValueError, match="no classes"):
        draw(np.zeros((0, 0), np.int64), [], tmp_path / "a.png", title="t")


def test_per_class_accuracy_is_sorted_with_its_numbers(tmp_path, texts):
    matrix = np.array([[5, 5, 0], [0, 1900, 100], [0, 0, 0]])
    _pixels(plots.per_class_accuracy(matrix, ANIMALS, tmp_path / "a.png", title="t"))
    assert [t for t in texts if t in ANIMALS] == ["cat", "bird", "dog"]
    assert [t for t in texts if "of" in t and "(" in t] == ["95.0%  (1,900 of 2,000)", "50.0%  (5 of 10)"]
    assert "no images" in texts
    assert any(f"{1905 / 2010:.2%}" in t for t in texts)


@pytest.mark.parametrize("count", [1, 2, 10, 100, 150])
def test_per_class_accuracy_of_any_number_of_classes(tmp_path, texts, count):
    matrix = _matrix(count)
    classes = [f"k{i:03}" for i in range(count)]
    _pixels(plots.per_class_accuracy(matrix, classes, tmp_path / "a.png", title="t"))
    shown = [t for t in texts if t in classes]
    assert len(shown) == min(count, 100)
    accuracies = np.diag(matrix) / matrix.sum(1)
    assert classes[int(accuracies.argmin())] in shown
    assert [accuracies[int(t[1:])] for t in shown] == sorted(accuracies, reverse=True)[-100:]


def test_prediction_grid_marks_the_wrong_ones(tmp_path, texts):
    true, right, wrong = np.array([1, 0]), np.array([1, 0]), np.array([2, 0])
    images = np.full((2, 8, 8, 3), 128, np.uint8)
    confidence = np.array([0.61, 0.984])
    path = plots.prediction_grid(images, true, right, confidence, ANIMALS, tmp_path / "a.png", title="t")
    assert _count_red(path) == 0
    assert {"✓ cat\n61%", "✓ bird\n98%"} <= set(texts)
    path = plots.prediction_grid(images, true, wrong, confidence, ANIMALS, tmp_path / "a.png", title="t")
    assert _count_red(path) > 500
    assert {"✗ cat\n→ dog 61%", "✓ bird\n98%"} <= set(texts)
    assert any("right: 1" in t and "wrong: 1" in t for t in texts)


@pytest.mark.parametrize("count, drawn", [(1, 1), (5, 5), (32, 32), (500, 40)])
def test_prediction_grid_draws_the_first_count(tmp_path, texts, count, drawn):
    labels = np.arange(40) % 3
    plots.prediction_grid(_images(40), labels, labels, None, ANIMALS, tmp_path / "a.png", title="t", count=count)
    assert [t for t in texts if t.startswith("✓ ") and "right" not in t] == [
        f"✓ {ANIMALS[k]}\n" for k in labels[:drawn]
    ]


@pytest.mark.parametrize("size", [(8, 8), (20, 32), (28, 14)])
@pytest.mark.parametrize("channels", [1, 3])
def test_grids_take_colour_and_grey_of_any_shape(tmp_path, channels, size):
    images, labels = _images(9, channels, size), np.arange(9)
    _pixels(plots.prediction_grid(images, labels, labels[::-1], None, LONG, tmp_path / "a.png", title="t"))
    bytes_in = _pixels(plots.batch_grid(images, labels, LONG, tmp_path / "b.png", title="t"))
    floats_in = _pixels(plots.batch_grid(images / 255.0, labels, LONG, tmp_path / "c.png", title="t"))
    assert abs(bytes_in.astype(int) - floats_in).max() <= 1


def test_grey_images_are_not_stretched(tmp_path):
    """Each image keeps its own brightness: an all-grey one stays grey."""
    images = np.full((1, 8, 8, 1), 128, np.uint8)
    pixels = _pixels(plots.batch_grid(images, np.array([0]), ANIMALS, tmp_path / "a.png", title="t"))
    assert (abs(pixels.astype(int) - 128) <= 1).all(-1).mean() > 0.05


def test_batch_grid_draws_64(tmp_path, texts):
    _pixels(plots.batch_grid(_images(70), np.zeros(70, np.int64), ANIMALS, tmp_path / "a.png", title="t"))
    assert texts.count("bird") == 64


def test_batch_grid_clips(tmp_path):
    """Values outside 0..1 don't change the brightness of the others."""
    images = np.random.default_rng(0).normal(0.5, 1, size=(4, 8, 8, 3)).astype(np.float32)
    labels = np.zeros(4, np.int64)
    raw = _pixels(plots.batch_grid(images, labels, ANIMALS, tmp_path / "a.png", title="t"))
    clipped = _pixels(plots.batch_grid(images.clip(0, 1), labels, ANIMALS, tmp_path / "b.png", title="t"))
    assert np.array_equal(raw, clipped)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": _images(4)[0]}, "images of shape"),
        ({"images": _images(4, channels=2)}, "1 or 3 channels"),
        ({"images": _images(0)}, "at least one image"),
        ({"images": _images(4).astype(np.int64)}, "give uint8 or float"),
        ({"true": np.zeros(3, np.int64)}, r"true classes of shape \(3,\) for 4 images"),
        ({"true": np.full(4, 3)}, r"true classes outside 0\.\.2"),
        ({"predicted": np.full(4, -1)}, r"predicted classes outside 0\.\.2"),
        ({"predicted": np.zeros(4)}, "whole numbers"),
        ({"confidence": np.zeros((4, 3))}, "confidences of shape"),
    ],
)
def test_prediction_grid_refuses_what_does_not_fit(tmp_path, change, message):
    given = {"images": _images(4), "true": np.zeros(4, np.int64), "predicted": np.zeros(4, np.int64)}
    given = {**given, "confidence": None, **change}
    with pytest.raises(ValueError, match=message):
        plots.prediction_grid(**given, classes=ANIMALS, path=tmp_path / "a.png", title="t")
    assert not list(tmp_path.iterdir())


def test_batch_grid_refuses_labels_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="labels of shape"):
        plots.batch_grid(_images(4), np.zeros(5, np.int64), ANIMALS, tmp_path / "a.png", title="t")


def test_long_names_and_titles_are_cut_or_wrapped(tmp_path, texts):
    labels, title = np.arange(10), "a very long title " * 12
    _pixels(plots.confusion_matrix(_matrix(10), LONG, tmp_path / "a.png", title=title))
    assert any(t.endswith("…") for t in texts)
    assert not set(LONG) & set(texts)
    for path in (
        plots.confusion_matrix(_matrix(2), LONG[:2], tmp_path / "b.png", title=title),
        plots.per_class_accuracy(_matrix(10), LONG, tmp_path / "c.png", title=title),
        plots.prediction_grid(_images(10), labels, labels[::-1], np.ones(10), LONG, tmp_path / "d.png", title=title),
        plots.batch_grid(_images(2), labels[:2], LONG, tmp_path / "e.png", title=title),
        plots.learning_curves(_history(3), tmp_path / "f.png", title=title),
    ):
        _pixels(path)


def test_names_are_no_formulas(tmp_path):
    names = [r"$\frac{", "$5 and $_10$", "a\nb"]
    labels = np.arange(3)
    for path in (
        plots.confusion_matrix(_matrix(3), names, tmp_path / "a.png", title=names[0] + "$"),
        plots.per_class_accuracy(_matrix(3), names, tmp_path / "b.png", title=names[1]),
        plots.prediction_grid(_images(3), labels, labels[::-1], None, names, tmp_path / "c.png", title=names[0] + "$"),
    ):
        _pixels(path)


@pytest.fixture
def a_font_of_one_letter(tmp_path):
    """A font that is called as a Japanese one and draws 日 as an A."""
    path = tmp_path / "font.ttf"
    with ttLib.TTFont(font_manager.findfont("DejaVu Sans")) as font:
        for table in font["cmap"].tables:
            table.cmap = {0x65E5: "A"}
        for number in (1, 16):
            font["name"].setName("IPAGothic", number, 3, 1, 0x409)
            font["name"].setName("IPAGothic", number, 1, 0, 0)
        font.save(path)
    before = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(path)
    yield
    font_manager.fontManager.ttflist[:] = before


@pytest.fixture
def no_more_fonts(monkeypatch):
    monkeypatch.setattr(plots, "_MORE_FONTS", ())


def _draw_every_name(folder, name):
    names, labels = [name, "cat", "dog"], np.arange(3)
    return [
        _pixels(path)
        for path in (
            plots.confusion_matrix(_matrix(3), names, folder / "a.png", title=name),
            plots.per_class_accuracy(_matrix(3), names, folder / "b.png", title=name),
            plots.prediction_grid(_images(3), labels, labels[::-1], None, names, folder / "c.png", title=name),
            plots.batch_grid(_images(3), labels, names, folder / "d.png", title=name),
        )
    ]


def test_letters_that_no_font_has_are_boxes_without_a_word(tmp_path, no_more_fonts, recwarn):
    _draw_every_name(tmp_path, "日本語")
    assert not recwarn.list


@pytest.mark.usefixtures("a_font_of_one_letter")
def test_letters_are_drawn_by_an_installed_font_that_has_them(tmp_path, monkeypatch, recwarn):
    drawn = _draw_every_name(tmp_path, "日")
    assert not recwarn.list
    monkeypatch.setattr(plots, "_MORE_FONTS", ())
    for picture, boxes in zip(drawn, _draw_every_name(tmp_path, "日"), strict=True):
        assert picture.shape != boxes.shape or (picture != boxes).any()


def test_a_wide_letter_takes_the_place_of_two():
    assert plots.short_text("日本語日本語", 12) == "日本語日本語"
    assert plots.short_text("日本語日本語", 11) == "日本語日本…"
    assert plots.short_text("日本語日本語", 10) == "日本語日…"
    assert plots.short_text("abcdef", 6) == "abcdef"
    assert plots.short_text("abc defg", 5) == "abc…"


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(OSError, match="taken"):
        plots.learning_curves(_history(2), tmp_path / "taken.png", title="t")
    assert [p.name for p in tmp_path.iterdir()] == ["taken.png"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        plots.learning_curves(_history(2), tmp_path / "nowhere" / "a.png", title="t")


def test_an_old_picture_is_replaced(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    _pixels(plots.learning_curves(_history(2), path, title="t"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_no_global_state_of_matplotlib():
    code = "import sys, fast_train.pipeline.report.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
