"""What a person looks at after a run: pictures, and a short table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fast_train.common.phases import phase
from fast_train.data_prep.manifest import PreparedSet, data_note
from fast_train.kernels.augment import normalisation_table
from fast_train.kernels.spec import CropSpec
from fast_train.pipeline.engine.augmentation import AnyAugmenter, crop_pixels
from fast_train.pipeline.engine.evaluate import Evaluation
from fast_train.pipeline.engine.stored import stored_labels, stored_pixels
from fast_train.pipeline.loaders import LOADERS, Loader, build_loader

GRID_IMAGES = 32
BATCH_IMAGES = 64
_MOST_ROWS = 20
# Images at once, where a split is read through for a few of them.
_BATCH = 64


@phase("pictures")
def write_pictures(
    folder: Path,
    evaluation: Evaluation,
    history: Sequence[Mapping[str, Any]],
    prepared: PreparedSet,
    *,
    title: str,
    crop: CropSpec | None = None,
) -> list[Path]:
    """Learning curves (where there is a history), confusion matrix, accuracies and predictions as PNG files. crop: what
    evaluation saw of each image; None for all of it."""
    # Here, not above: matplotlib takes a third of a second to import, which no training should wait for.
    from fast_train.pipeline.report import plots

    folder.mkdir(parents=True, exist_ok=True)
    classes = list(prepared.manifest.classes)
    title = title + data_note(prepared)
    paths = []
    if history:
        paths.append(plots.learning_curves(history, folder / "learning-curves.png", title=title))
    matrix = evaluation.confusion
    paths.append(plots.confusion_matrix(matrix, classes, folder / "confusion-matrix.png", title=title))
    paths.append(plots.per_class_accuracy(matrix, classes, folder / "class-accuracy.png", title=title))

    count = prepared.size(evaluation.split)
    # Spread over the split: its file is in the order of the classes where it comes from class folders.
    chosen = np.linspace(0, count - 1, min(GRID_IMAGES, count)).astype(np.int64)
    images, labels = _images(prepared, evaluation.split, chosen, crop)
    paths.append(
        plots.prediction_grid(
            images,
            labels,
            evaluation.predictions[chosen],
            evaluation.confidences[chosen],
            classes,
            folder / "predictions.png",
            title=title,
            count=len(chosen),
        )
    )
    return paths


def _images(
    prepared: PreparedSet, split: str, chosen: NDArray[np.int64], crop: CropSpec | None
) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    """Images [n, H, W, C] and labels [n] of a split, whatever format it is prepared in. chosen: their numbers,
    rising. crop: what evaluation saw of them; the images are then float32 from 0 to 1, else uint8."""
    formats = [entry.format for entry in prepared.manifest.files if entry.split == split]
    # A packed file gives single images; any other is read through, by a loader.
    readers = [name for name, loader in LOADERS.items() if loader.format in formats and loader.missing() is None]
    if "packed" in formats or not readers:
        return _crops(stored_pixels(prepared, split, chosen), crop), stored_labels(prepared, split)[chosen]
    images: list[NDArray[np.uint8]] = []
    labels = []
    with build_loader(readers[0], prepared, split, batch_size=_BATCH, train=False) as loader:
        for batch in loader:
            wanted = torch.isin(batch.indices, torch.from_numpy(chosen)).nonzero()[:, 0]
            images += (image.numpy().copy() for image in batch.images_at(wanted))
            labels.append(batch.labels[wanted].numpy())
    return _crops(images, crop), np.concatenate(labels)


def _crops(images: Sequence[NDArray[np.uint8]], crop: CropSpec | None) -> NDArray[np.generic]:
    if crop is None:
        return np.stack(images)
    channels = images[0].shape[2]
    plain = normalisation_table((0.0,) * channels, (1.0,) * channels, torch.float32)
    return crop_pixels(images, crop, plain).permute(0, 2, 3, 1).numpy()


def write_batch_picture(path: Path, loader: Loader, augmenter: AnyAugmenter, *, title: str) -> Path:
    """The first images of the first training batch of epoch 0, augmented, as the model sees them."""
    from fast_train.pipeline.report import plots

    loader.set_epoch(0)
    batch = next(loader.feed())
    images = augmenter(batch)[:BATCH_IMAGES].float().cpu()
    pixels = images.permute(0, 2, 3, 1).numpy() * np.array(augmenter.std) + np.array(augmenter.mean)
    path.parent.mkdir(parents=True, exist_ok=True)
    classes = list(loader.prepared.manifest.classes)
    labels = batch.targets()[:BATCH_IMAGES].cpu().numpy()
    title = title + data_note(loader.prepared)
    return plots.batch_grid(pixels.clip(0, 1).astype(np.float32), labels, classes, path, title=title)


def print_evaluation(console: Console, evaluation: Evaluation, prepared: PreparedSet) -> None:
    """Top-1 and the accuracy of each class; of many classes, the worst ones."""
    classes, accuracies = prepared.manifest.classes, evaluation.per_class()
    order: Any = range(len(classes))
    title = "accuracy by class"
    if len(classes) > _MOST_ROWS:
        order = np.argsort(accuracies)[:_MOST_ROWS]
        title = f"the {_MOST_ROWS} worst of {len(classes)} classes"
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    table.add_column(f"{evaluation.split} images", justify="right")
    table.add_column("accuracy", justify="right")
    for k in order:
        images = int(evaluation.confusion[k].sum())
        # As text: a name in brackets is no markup.
        table.add_row(Text(classes[k]), f"{images:,}", f"{accuracies[k]:.2%}" if images else "-")
    console.print(table)
    print_accuracy(console, evaluation, prepared)


def print_accuracy(console: Console, evaluation: Evaluation, prepared: PreparedSet) -> None:
    images = int(evaluation.confusion.sum())
    console.print(
        f"{evaluation.split} accuracy {evaluation.accuracy:.2%}, loss {evaluation.loss:.3f}, on {images:,} images"
        f"{data_note(prepared)}",
        soft_wrap=True,
    )
