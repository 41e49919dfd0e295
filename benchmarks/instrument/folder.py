"""The folder that a report goes into: made and tried before anything is measured, so that no figure is lost to it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fast_train.common.files import remove_empty

# What a finished report has.
_REPORTS = {"report.json", "step-lab.json"}


@contextmanager
def report_folder(out: Path | None, default: Path) -> Iterator[Path]:
    """The folder for a report, there and writable: ``out``, or the first free one of ``default``, ``default-2`` ...

    Folders that were made for the block and that it leaves empty go again. Raises ValueError where ``out`` holds
    anything already, is not a folder, or can't be written.
    """
    folder = out or default
    made: list[Path] = []
    try:
        try:
            if out is None:
                folder = _make_free(default, made)
            else:
                check_empty(out)
                _make(out, made, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ValueError(
                f"no report can be written to {folder}: {error.strerror}; give another folder as --out"
            ) from error
        yield folder
    finally:
        remove_empty(made)


def check_empty(folder: Path) -> None:
    """ValueError for a folder, that need not be there, in which something lies."""
    if folder.is_dir():
        names = sorted(os.listdir(folder))
        if not _REPORTS.isdisjoint(names):
            raise ValueError(f"{folder} holds a report already; give another --out")
        if names:
            raise ValueError(f"{folder} is not empty: it holds {names[0]}; give a new or an empty folder as --out")
    elif os.path.lexists(folder):
        raise ValueError(f"{folder} is a file; give a folder as --out")


def _make_free(default: Path, made: list[Path]) -> Path:
    _make(default.parent, made, exist_ok=True)
    folder, number = default, 1
    while True:
        # Made and not only looked for: another measurement may begin at the same moment.
        try:
            _make(folder, made, exist_ok=False)
            return folder
        except FileExistsError:
            number += 1
            folder = default.with_name(f"{default.name}-{number}")


def _make(folder: Path, made: list[Path], *, exist_ok: bool) -> None:
    """Make a folder with its parents; those that were not there are added to ``made``, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=exist_ok)
    made[:0] = missing
