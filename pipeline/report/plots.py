"""Pictures of a run: learning curves, confusion matrix, accuracies of the classes, grids of images.

Each function takes arrays, writes one PNG file (whole or not at all) and returns its path. Wrong shapes raise a
ValueError. Colours are Okabe and Ito's (2008), which the colour-blind can tell apart, and nothing is told by
colour alone.
"""

from __future__ import annotations

import math
import textwrap
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fast_train.common.files import whole_file
from fast_train.pipeline.engine.history import judge

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
DPI = 130
_FEWEST_COLUMNS, _MOST_COLUMNS = 4, 8
_MOST_IMAGES = 64
_MOST_BARS = 100
_MOST_CELL_TEXTS = 20
_MOST_TICKS = 40
# Fonts with the letters that matplotlib's own lacks: of Noto, Linux distributions, macOS and Windows.
_MORE_FONTS = (
    *(f"Noto Sans CJK {area}" for area in ("JP", "SC", "TC", "HK", "KR")),
    *("WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "IPAexGothic", "IPAGothic", "TakaoGothic", "NanumGothic", "UnDotum"),
    *("Droid Sans Fallback", "Source Han Sans", "Noto Sans", "FreeSans", "Unifont"),
    *("Hiragino Sans", "PingFang HK", "Heiti TC", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Yu Gothic", "MS Gothic", "Microsoft YaHei", "SimHei", "Malgun Gothic", "Nirmala UI", "Leelawadee UI"),
)


def learning_curves(history: Sequence[Mapping[str, Any]], path: Path | str, *, title: str) -> Path:
    """Loss and accuracy side by side, the learning rate below.

    history: one record an epoch, with ``epoch`` (from 1, rising), ``train_loss`` and ``train_accuracy``, and where
    there was an evaluation the loss and accuracy of the split that judges (`pipeline.engine.history`); ``lr`` if known.
    Accuracies are fractions.
    """
    _require(len(history) > 0, "no epochs in the history; nothing to draw")
    epochs = _column(history, "epoch")
    _require(bool(np.isfinite(epochs).all() and (np.diff(epochs) > 0).all()), "the history's epochs must rise")
    rates = _column(history, "lr")
    known = bool(np.isfinite(rates).any())
    figure = _figure(10.5, 5.4 if known else 4.4)
    rows = figure.add_gridspec(2 if known else 1, 2, height_ratios=[5, 1] if known else None)
    loss, accuracy = figure.add_subplot(rows[0, 0]), figure.add_subplot(rows[0, 1])
    _lines(loss, epochs, history, "loss")
    _lines(accuracy, epochs, history, "accuracy")
    _mark_best(accuracy, epochs, history)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (loss, accuracy):
        _style_epochs(axes, epochs)
        # Above the axes: inside, it would hide some point of some run.
        axes.legend(frameon=False, fontsize=9.5, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    if known:
        _draw_rate(figure.add_subplot(rows[1, :]), epochs, rates)
    _suptitle(figure, title)
    return save(figure, path)


def _style_epochs(axes: Axes, epochs: np.ndarray) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    margin = max(0.02 * (epochs[-1] - epochs[0]), 0.25)
    axes.set_xlim(epochs[0] - margin, epochs[-1] + margin)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_rate(axes: Axes, epochs: np.ndarray, rates: np.ndarray) -> None:
    axes.plot(epochs, rates, color=GREY, marker="." if len(epochs) == 1 else "", linewidth=1.5)
    peak = float(np.nanmax(rates))
    if peak > 0:
        axes.set_ylim(0, 1.15 * peak)
        axes.set_yticks([0, peak], ["0", f"{peak:.3g}"])
    axes.set_ylabel("learning rate at\nthe epoch's end", fontsize=8)
    _style_epochs(axes, epochs)


def _lines(axes: Axes, epochs: np.ndarray, history: Sequence[Mapping[str, Any]], what: str) -> None:
    for split, colour, style, marker in (("train", BLUE, "-", "o"), (judge(*history), ORANGE, "--", "s")):
        values = _column(history, f"{split}_{what}")
        # Epochs without a value are left out, so that the line joins its neighbours.
        there = np.isfinite(values)
        if there.any():
            size = 3.5 if there.sum() <= 40 else 0
            axes.plot(epochs[there], values[there], style, color=colour, marker=marker, markersize=size, label=split)
    axes.set_ylabel(what)


def _mark_best(axes: Axes, epochs: np.ndarray, history: Sequence[Mapping[str, Any]]) -> None:
    split = judge(*history)
    accuracies = _column(history, f"{split}_accuracy")
    if np.isfinite(accuracies).any():
        best = int(np.nanargmax(accuracies))
        label = f"best {split}: {accuracies[best]:.2%} (epoch {epochs[best]:g})"
        axes.plot(epochs[best], accuracies[best], "*", markersize=14, color=RED, mec="white", zorder=5, label=label)


def confusion_matrix(matrix: np.ndarray, classes: Sequence[str], path: Path | str, *, title: str) -> Path:
    """True classes down, predicted ones across; the colour is the share of the true class.

    matrix: int64 [K, K], counts, a row for each true class. Up to 20 classes the counts are written in the cells;
    of more than 40 classes every second, third ... is named.
    """
    matrix = _check_matrix(matrix, classes)
    count = len(classes)
    texts = count <= _MOST_CELL_TEXTS
    ticks = range(0, count, math.ceil(count / _MOST_TICKS))
    names = [short_text(classes[k], 20) for k in ticks]
    size = 9 if texts else 7
    side = float(np.clip(0.5 * count, 3.0, 9.0))
    longest = 0.6 * size / 72 * max(map(_letters, names))
    upright = count <= 2
    figure = _figure(side + longest + 1.9, side + 1.2 + (0 if upright else longest), layout="compressed")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    # The square root: a confusion of 2 % of the images shall be seen beside a diagonal of 90 %.
    norm = PowerNorm(0.5, 0, 1)
    image = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bar.set_label("share of the true class")
    axes.set_xticks(ticks, names, rotation=0 if upright else 90, fontsize=size)
    axes.set_yticks(ticks, names, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if texts:
        for row, column in np.ndindex(matrix.shape):
            value = int(matrix[row, column])
            colour = "white" if norm(shares[row, column]) > 0.6 else "black"
            # A digit is about 0.64 as wide as the font is high.
            text_size = min(10.0, 0.85 * 72 * side / count / (0.64 * len(str(value))))
            axes.text(column, row, str(value), ha="center", va="center", color=colour, fontsize=text_size)
    _suptitle(figure, title)
    return save(figure, path)


def per_class_accuracy(matrix: np.ndarray, classes: Sequence[str], path: Path | str, *, title: str) -> Path:
    """A bar for each class, the best on top, with the numbers; of more than 100 classes, the worst 100.

    matrix: int64 [K, K], counts, a row for each true class. A class without images has no accuracy and stands
    last.
    """
    matrix = _check_matrix(matrix, classes)
    right, totals = np.diag(matrix), matrix.sum(1)
    accuracies = np.where(totals > 0, right / np.maximum(totals, 1), -1.0)
    order = np.argsort(-accuracies, kind="stable")[-_MOST_BARS:]
    figure = _figure(8.0, 1.7 + len(order) * (0.34 if len(order) <= 30 else 0.18))
    axes = figure.subplots()
    places = range(len(order))
    axes.barh(places, np.maximum(accuracies[order], 0), color=BLUE, height=0.72)
    size = 9.5 if len(order) <= 30 else 8
    for place, k in enumerate(order):
        text = f"{accuracies[k]:.1%}  ({right[k]:,} of {totals[k]:,})" if totals[k] else "no images"
        axes.text(1.02, place, text, va="center", fontsize=size)
    axes.set_yticks(places, [short_text(classes[k], 24) for k in order], fontsize=size)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.spines[["top", "right"]].set_visible(False)
    label = "accuracy"
    if len(order) < len(classes):
        label += f" of the worst {len(order)} of {len(classes)} classes"
    if totals.sum():
        mean = right.sum() / totals.sum()
        axes.axvline(mean, color=RED, linestyle="--", linewidth=1.3)
        label += f" (dashed: all images, {mean:.2%})"
    axes.set_xlabel(label)
    _suptitle(figure, title)
    return save(figure, path)


def prediction_grid(
    images: np.ndarray,
    true: np.ndarray,
    predicted: np.ndarray,
    confidence: np.ndarray | None,
    classes: Sequence[str],
    path: Path | str,
    *,
    title: str,
    count: int = 32,
) -> Path:
    """The first ``count`` images with what they are and what they were taken for; wrong ones are marked.

    images: uint8 [N, H, W, C], C 1 or 3. true, predicted: int [N], numbers of classes. confidence: the
    prediction's probability, float [N], or None.
    """
    images = _check_images(images)[:count]
    true = _check_labels("true classes", true, len(images), count, classes)
    predicted = _check_labels("predicted classes", predicted, len(images), count, classes)
    if confidence is not None:
        confidence = np.asarray(confidence)[:count]
        _require(
            confidence.shape == (len(images),), f"confidences of shape {confidence.shape} for {len(images)} images"
        )
    wrong = int((true != predicted).sum())
    note = f"✓ right: {len(images) - wrong}     ✗ wrong: {wrong}, marked, with true class → predicted class"
    axes, frames = _grid(images, title, note)
    for i, frame in enumerate(frames):
        share = "" if confidence is None else f"{confidence[i]:.0%}"
        if true[i] == predicted[i]:
            _caption(axes, frame, f"✓ {short_text(classes[true[i]], 17)}\n{share}", "black")
        else:
            name = short_text(classes[predicted[i]], 11 if share else 17)
            _caption(axes, frame, f"✗ {short_text(classes[true[i]], 17)}\n→ {name} {share}".rstrip(), "#A33E00")
            frame.set(edgecolor=RED, linewidth=4.0)
    return save(axes.get_figure(root=True), path)


def batch_grid(images: np.ndarray, labels: np.ndarray, classes: Sequence[str], path: Path | str, *, title: str) -> Path:
    """What the model sees: the first 64 images with their classes.

    images: uint8 or float in 0..1 (denormalised; other values are clipped) [N, H, W, C], C 1 or 3. labels: int
    [N], numbers of classes.
    """
    images = _check_images(images)[:_MOST_IMAGES]
    labels = _check_labels("labels", labels, len(images), _MOST_IMAGES, classes)
    axes, frames = _grid(images, title, "")
    for frame, label in zip(frames, labels, strict=True):
        _caption(axes, frame, short_text(classes[label], 18), "black")
    return save(axes.get_figure(root=True), path)


def _grid(images: np.ndarray, title: str, note: str) -> tuple[Axes, list[Rectangle]]:
    """Axes of up to eight images a row with room for two lines of text below each (one without a note), and the
    images' frames.

    All lie in the same axes, in inches from the top left: axes for each, or a layout engine, take long.
    """
    cell, gap, text, edge = 1.16, 0.22, 0.42 if note else 0.26, 0.25
    height_of = cell * images.shape[1] / images.shape[2]
    columns = min(max(len(images), _FEWEST_COLUMNS), _MOST_COLUMNS)
    rows = math.ceil(len(images) / columns)
    width = 2 * edge + columns * (cell + gap) - gap
    lines = wrap_text(title, width, 12)
    header = 0.25 + 0.21 * len(lines) + (0.26 if note else 0)
    height = header + rows * (height_of + text) + 0.08
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    figure.text(0.5, 1 - 0.14 / height, "\n".join(lines), ha="center", va="top", fontsize=12)
    if note:
        figure.text(0.5, 1 - (header - 0.12) / height, note, ha="center", va="bottom", fontsize=9.5, color=GREY)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    frames = []
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        left, top = edge + column * (cell + gap), header + row * (height_of + text)
        place = (left, left + cell, top + height_of, top)
        pixels = image if image.shape[-1] == 3 else image[..., 0]
        axes.imshow(pixels, extent=place, cmap="gray", vmin=0, vmax=1, aspect="auto")
        frames.append(Rectangle((left, top), cell, height_of, fill=False, edgecolor="#BBBBBB", linewidth=0.6))
        axes.add_patch(frames[-1])
    return axes, frames


def _caption(axes: Axes, frame: Rectangle, text: str, colour: str) -> None:
    centre, below = frame.get_x() + frame.get_width() / 2, frame.get_y() + frame.get_height() + 4 / 72
    axes.text(centre, below, text, fontsize=8, color=colour, ha="center", va="top", linespacing=1.15)


def _figure(width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained") -> Figure:
    return Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")


def _suptitle(figure: Figure, title: str) -> None:
    figure.suptitle("\n".join(wrap_text(title, figure.get_figwidth(), 12)), fontsize=12)


def wrap_text(text: str, inches: float, points: float) -> list[str]:
    """Lines of a text that fit a width, taking a letter as 0.6 of the font's height."""
    return textwrap.wrap(plain_text(text), max(10, int(inches * 72 / (0.6 * points)))) or [""]


def plain_text(text: str) -> str:
    """One line, without matplotlib's formulas: a class may well be called ``$5``."""
    return " ".join(text.split()).replace("$", r"\$")


def short_text(name: str, length: int) -> str:
    """At most ``length`` letters, the last of them … if there were more; a Chinese one counts as two."""
    name = " ".join(name.split())
    if _letters(name) <= length:
        return plain_text(name)
    while _letters(name) > length - 1:
        name = name[:-1]
    return plain_text(name.rstrip() + "…")


def _letters(text: str) -> int:
    """How many letters of usual width are as wide as a text."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _column(history: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """One value of each record as float64 [epochs], NaN where there is none or no finite one."""
    needed = key == "epoch" or key.startswith("train_")
    for number, record in enumerate(history, start=1):
        _require(not needed or key in record, f"record {number} of the history has no '{key}'")
    values = np.array([math.nan if r.get(key) is None else r[key] for r in history], dtype=np.float64)
    return np.where(np.isfinite(values), values, math.nan)


def _check_matrix(matrix: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    matrix, count = np.asarray(matrix), len(classes)
    _require(count > 0, "no classes; nothing to draw")
    _require(
        matrix.shape == (count, count), f"confusion matrix of shape {matrix.shape}; {count} classes need {count, count}"
    )
    counts = np.issubdtype(matrix.dtype, np.integer) and bool((matrix >= 0).all())
    _require(counts, "the confusion matrix must hold whole numbers of 0 or more")
    return matrix


def _check_images(images: np.ndarray) -> np.ndarray:
    """float [N, H, W, C] in 0..1."""
    images = np.asarray(images)
    _require(
        images.ndim == 4 and images.shape[-1] in (1, 3) and images.size > 0,
        f"images of shape {images.shape}; give [N, H, W, C] with at least one image and 1 or 3 channels",
    )
    if images.dtype == np.uint8:
        return images / np.float32(255)
    _require(np.issubdtype(images.dtype, np.floating), f"images of type {images.dtype}; give uint8 or float in 0..1")
    return images.clip(0, 1)


def _check_labels(what: str, labels: np.ndarray, images: int, most: int, classes: Sequence[str]) -> np.ndarray:
    labels = np.asarray(labels)[:most]
    _require(labels.shape == (images,), f"{what} of shape {labels.shape} for {images} images")
    _require(np.issubdtype(labels.dtype, np.integer), f"{what} of type {labels.dtype}; give whole numbers")
    inside = bool(((labels >= 0) & (labels < len(classes))).all())
    _require(inside, f"{what} outside 0..{len(classes) - 1}; there are {len(classes)} classes")
    return labels


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def save(figure: Any, path: Path | str) -> Path:
    path = Path(path)
    _find_fonts(figure)
    with whole_file(path) as file, warnings.catch_warnings():
        # A letter that no font here has is drawn as a box, which says as much.
        warnings.filterwarnings("ignore", message="Glyph ", category=UserWarning)
        FigureCanvasAgg(figure).print_png(file)
    return path


def _find_fonts(figure: Figure) -> None:
    """Draw a figure's letters that matplotlib's own font lacks by fonts that are installed, if any has them."""
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    letters = {ord(letter) for text in texts for letter in text.get_text() if letter.isprintable()}
    own = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    if letters <= own.get_charmap().keys():
        return
    installed = set(font_manager.get_font_names())
    fonts = [name for name in _MORE_FONTS if name in installed]
    for text in texts:
        text.set_fontfamily([*text.get_fontfamily(), *fonts])
