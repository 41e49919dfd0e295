"""The set's own image files, written as others' formats want them: as class folders, or into shards.

They lie in the benchmark's scratch folder. Writing them is no part of what is measured.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from fast_train.common.text import format_bytes, show_path
from fast_train.data_prep.formats.decode import is_jpeg
from fast_train.data_prep.manifest import PreparedSet

#: Of files, by what they hold.
SUFFIXES = (".jpg", ".png")
# A file's share of the disk is a little more than its bytes.
_AROUND_FILE = 4096


def stored_files(prepared: PreparedSet, split: str) -> Iterator[tuple[bytes, str, int]]:
    """The file of each image, its suffix, and its label."""
    encoded = prepared.encoded(split)
    for index, label in enumerate(encoded.labels.tolist()):
        file = encoded.file(index).tobytes()
        yield file, SUFFIXES[not is_jpeg(file)], label


def written(prepared: PreparedSet, scratch: Path, name: str, write: Callable[[Path], None]) -> Path:
    """The folder ``name``, which ``write`` fills with the set's files where that was not done before.

    ValueError where the disk has no room for them.
    """
    place = scratch / name
    if not place.exists():
        images = sum(map(prepared.size, prepared.splits))
        packed = sum(entry.bytes for entry in prepared.manifest.files if entry.format == "packed")
        needed, free = packed + images * _AROUND_FILE, shutil.disk_usage(scratch).free
        if needed > free:
            raise ValueError(
                f"its files take {format_bytes(needed)} in {show_path(scratch)}, where {format_bytes(free)} are free; "
                "set TMPDIR to a folder with more room"
            )
        part = scratch / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        write(part)
        part.rename(place)
    return place


def class_folders(prepared: PreparedSet, scratch: Path) -> Path:
    """A folder of the set's files, as SPLIT/CLASS/NUMBER.jpg; classes are called by their numbers."""

    def write(folder: Path) -> None:
        for split in prepared.splits:
            for number, (file, suffix, label) in enumerate(stored_files(prepared, split)):
                place = folder / split / f"{label:05}"
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{number:08}{suffix}").write_bytes(file)

    return written(prepared, scratch, "images", write)
