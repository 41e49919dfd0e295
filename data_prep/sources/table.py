"""Images that a CSV file lists, with their classes and, where it says so, their splits."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from fast_train.common.files import user_path
from fast_train.common.text import is_plain, one_line, show
from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.sources.base import SPLITS
from fast_train.data_prep.sources.folder import ImageFolder
from fast_train.data_prep.sources.listing import SPLIT_OF, ImageFile, Listing, look_at_files, normal, same_looks

# What columns are usually called, in any case.
_COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "filepaths", "image", "image_path"),
    "label": ("label", "labels", "class", "category", "target"),
    "split": ("split", "set", "subset", "data set"),
}
_SEPARATORS = ",;\t|"
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
#: Of a folder, its files by what they may be called in a list.
_Names = dict[str, dict[str, list[str]]]


class CsvTable(ImageFolder):
    """``csv:FILE``: below a header, in each row the path of an image, its class and, if there is such a column, its
    split. The set is the one that a folder of these files makes."""

    kind, takes = "csv", "FILE"
    accepts = ImageFolder.accepts | {"csv_root", "csv_columns"}

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.place = Path(os.path.abspath(user_path(self.argument)))
        root = self.options.csv_root
        self.root = self.place.parent if root is None else Path(os.path.abspath(user_path(root)))
        self._columns = _columns(self.options.csv_columns)

    @property
    def default_name(self) -> str:
        return self.place.stem

    def _list(self) -> Listing:
        return list_table(self.place, self.root, self._columns, skip_missing=self.options.skip_bad)


def _columns(text: str | None) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in ([] if text is None else text.split(","))]
    if not all(equals and role.strip() in _COLUMNS for role, equals, _ in pairs):
        raise PreparedSetError(
            f"--csv-columns {show(text or '')} is not understood; give path=NAME,label=NAME,split=NAME, or some of them"
        )
    return {role.strip(): name.strip() for role, _, name in pairs}


def list_table(table: Path, root: Path, columns: Mapping[str, str], *, skip_missing: bool = False) -> Listing:
    """List the files that ``table`` names below ``root``, in the order of `list_folder`: by split, class and path.

    columns: the names of columns that are not found by their usual ones. skip_missing: list files that are not there
    too. Classes that are all numbers are in the order of these. The digest covers every file's path, size, time of
    change, class and split. Raises PreparedSetError: no such table or columns; a row, by its number (the header's is
    1), whose file is missing, outside of ``root`` or in another row too, or whose class or split can't be; no training
    images, or of one class only.
    """
    found: dict[str, tuple[int, ImageFile]] = {}
    names: _Names = {}
    for row, cells in _rows(table, columns):
        try:
            file = _image_file(root, cells, names, skip_missing=skip_missing)
            if file.name in found:
                first, other = found[file.name]
                labels = "" if other == file else f", as {other.split} '{other.class_name}'"
                raise PreparedSetError(f"{show(file.name)} is in row {first} already{labels}; keep one of them")
        except PreparedSetError as error:
            raise PreparedSetError(f"{show(table)}, row {row}: {error}") from error
        found[file.name] = row, file
    trained = sorted({file.class_name for _, file in found.values() if file.split == "train"})
    classes = tuple(sorted(trained, key=float if all(map(_NUMBER.fullmatch, trained)) else str))
    if len(classes) < 2:
        held = f"the single class '{classes[0]}'" if classes else "no images"
        raise PreparedSetError(f"{show(table)} holds {held} for training; it takes two classes or more")
    label_of = {name: label for label, name in enumerate(classes)}
    for row, file in found.values():
        if file.class_name not in label_of:
            raise PreparedSetError(
                f"{show(table)}, row {row}: the class '{file.class_name}' of the {file.split} split has no row for "
                "training; add or remove it"
            )
    found_files = (file for _, file in found.values())
    files = sorted(found_files, key=lambda f: (SPLITS.index(f.split), label_of[f.class_name], f.name))
    listing = Listing(root, files, classes, notes=same_looks(classes))
    look_at_files(listing)
    said = "\n".join([listing.digest, *(f"{file.split}\0{file.class_name}" for file in files)])
    listing.digest = hashlib.sha256(said.encode()).hexdigest()
    return listing


def _rows(table: Path, columns: Mapping[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The number of each row and its cells by what they mean."""
    row = 1
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            line = file.readline()
            readers = [partial(csv.reader, delimiter=mark, skipinitialspace=True) for mark in _SEPARATORS]
            # csv.Sniffer guesses from letters too; a header alone says it.
            reader = max(readers, key=lambda reader: len(next(reader([line]), [])))
            header = [name.strip() for name in next(reader([line]), [])]
            places = _places(table, header, columns)
            for row, cells in enumerate(reader(file, strict=True), start=2):
                # Tables of office programs end with rows of separators.
                if not any(map(str.strip, cells)):
                    continue
                if len(cells) != len(header):
                    differ = f"cells {len(cells)}, names in the header {len(header)}"
                    raise PreparedSetError(f"{show(table)}, row {row}: {differ}; quote cells that hold a separator")
                yield row, {role: cells[place].strip() for role, place in places.items()}
    except OSError as error:
        raise PreparedSetError(f"{one_line(error)}; give --dataset csv:FILE a CSV file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise PreparedSetError(
            f"{show(table)} is not CSV in UTF-8 after row {row}: {one_line(error)}; save it as that"
        ) from error


def _places(table: Path, header: list[str], columns: Mapping[str, str]) -> dict[str, int]:
    """Which column holds what."""
    places = {}
    for role, usual in _COLUMNS.items():
        name = columns.get(role)
        found = [i for i, title in enumerate(header) if (title.lower() in usual if name is None else title == name)]
        if role == "split" and (name == "" or (name is None and not found)):
            continue
        if len(found) != 1:
            # Of another file the first row may be all of it.
            titles = ", ".join(show(title[:40]) for title in header[:20]) or "nothing"
            raise PreparedSetError(
                f"{show(table)} has {'several columns' if found else 'no column'} for the {role}; its first row has "
                f"{titles}; choose with --csv-columns {role}=NAME"
            )
        places[role] = found[0]
    return places


def _image_file(root: Path, cells: Mapping[str, str], names: _Names, *, skip_missing: bool) -> ImageFile:
    for role, cell in cells.items():
        if not cell:
            raise PreparedSetError(f"the {role} is empty; fill it in or remove the row")
    path, below = os.path.normpath(os.path.join(root, cells["path"])), os.path.join(root, "")
    if not path.startswith(below):
        raise PreparedSetError(f"{show(path)} lies outside of {show(root)}; give --csv-root a folder that holds it")
    if not os.path.isfile(path):
        path = _meant(path, names, skip_missing=skip_missing)
    label, split = normal(cells["label"]), cells.get("split", "train")
    if not is_plain(label):
        raise PreparedSetError(f"the class {show(label)} does not print; rename it")
    if split.lower() not in SPLIT_OF:
        raise PreparedSetError(
            f"the split {show(split)} is not known; choose from {', '.join(SPLIT_OF)}, or use none: "
            "--csv-columns split="
        )
    return ImageFile(path[len(below) :], label, SPLIT_OF[split.lower()])


def _meant(path: str, names: _Names, *, skip_missing: bool) -> str:
    """The only file beside that is so called but for its ending, which lists often leave out, or for its case. Where
    there is none, PreparedSetError or, with ``skip_missing``, the path itself."""
    folder, name = os.path.split(path)
    if folder not in names:
        names[folder] = {}
        with suppress(OSError, ValueError), os.scandir(folder) as entries:
            for other in sorted(entry.name for entry in entries if entry.is_file()):
                for key in {other.lower(), os.path.splitext(other.lower())[0]}:
                    names[folder].setdefault(key, []).append(other)
    found = names[folder].get(name.lower(), [])
    if len(found) == 1:
        return os.path.join(folder, found[0])
    if skip_missing and "\0" not in path:
        return path
    several = f", but {' and '.join(map(show, found[:3]))}" if found else ""
    what = "write / for \\" if "\\" in path else "--csv-root says where the paths begin, --skip-bad leaves it out"
    raise PreparedSetError(f"there is no file {show(path)}{several}; {what}")
