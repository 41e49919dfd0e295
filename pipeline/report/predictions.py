"""What a network made of each image that it was evaluated on, by its file's name."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from rich.console import Console

from fast_train.common.files import whole_file
from fast_train.common.text import show
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.engine.evaluate import Evaluation

PREDICTIONS = "predictions.csv"
_MISTAKES = 5
# What makes a spreadsheet program take a cell for a formula; the last four are the first ones in full width.
_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")


def write_predictions(folder: Path, evaluation: Evaluation, prepared: PreparedSet) -> Path:
    """One line an image, in the set's order: index, file below the folder of images (empty where the set doesn't
    know), true and predicted class, and the prediction's probability.

    No text begins as a formula does: such a path is written as ``./path``, such a class with a ``'`` in front. Bytes of
    a name that are not text are escaped, and so are carriage returns.
    """
    classes = list(map(class_cell, prepared.manifest.classes))
    names = prepared.names(evaluation.split) or [""] * len(evaluation.labels)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["index", "file", "true", "predicted", "confidence"])
    for i, (true, predicted) in enumerate(zip(evaluation.labels, evaluation.predictions, strict=True)):
        rows.writerow([i, file_cell(names[i]), classes[true], classes[predicted], f"{evaluation.confidences[i]:.6f}"])
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / PREDICTIONS) as binary:
        binary.write(text.getvalue().encode())
    return folder / PREDICTIONS


def class_cell(name: str) -> str:
    """A class's name as a table has it (`write_predictions`)."""
    return f"'{name}" if name.startswith(_FORMULA) else name


def file_cell(name: str) -> str:
    """The same of a file's path."""
    name = (f"./{name}" if name.startswith(_FORMULA) else name).encode(errors="backslashreplace").decode()
    # Before Python 3.13 the csv module does not quote it, and a reader takes it for the row's end.
    return name.replace("\r", r"\r")


def print_mistakes(console: Console, evaluation: Evaluation, prepared: PreparedSet) -> None:
    """The wrong predictions that the network was most sure of."""
    wrong = np.flatnonzero(evaluation.labels != evaluation.predictions)
    if not len(wrong):
        return
    names, classes = prepared.names(evaluation.split), prepared.manifest.classes
    console.print("most confident mistakes:", soft_wrap=True)
    for i in wrong[np.argsort(-evaluation.confidences[wrong], kind="stable")][:_MISTAKES]:
        image = show(names[i]) if names else f"{evaluation.split} image {i:,}"
        taken = f"{classes[evaluation.labels[i]]} taken for {classes[evaluation.predictions[i]]}"
        console.print(f"  {image}: {taken}, {evaluation.confidences[i]:.1%}", soft_wrap=True)
