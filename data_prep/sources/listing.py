"""What a folder of images holds: its splits, classes and files, before any file is opened."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fast_train.common.text import show
from fast_train.data_prep.errors import PreparedSetError

_TEST_FOLDERS = ("test", "val")
_CLUTTER = {"thumbs.db", "desktop.ini", "__macosx"}


@dataclass(frozen=True)
class ImageFile:
    """One file: its path below the image folder with ``/``, its class, and its split (None: not drawn yet)."""

    name: str
    class_name: str
    split: str | None


@dataclass
class Listing:
    """All files of an image folder in order, those in no class, and the number of hidden ones left out."""

    root: Path
    files: list[ImageFile] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    stray: list[str] = field(default_factory=list)
    hidden: int = 0
    ignored: tuple[str, ...] = ()
    digest: str = ""

    @property
    def has_test_split(self) -> bool:
        return any(file.split == "test" for file in self.files)


def list_folder(root: Path) -> Listing:
    """List ``root``: train/CLASS/** with test/CLASS/** or val/CLASS/**, or CLASS/** alone.

    The digest covers every file's path, size and time of change. Raises PreparedSetError: no such folder, no classes or
    only one, an empty class, a class of the test split that training doesn't know.
    """
    if not root.is_dir():
        raise PreparedSetError(f"{show(root)} is not a folder; give --dataset folder:DIR a folder of images")
    listing = Listing(root)
    entries = _Walker(listing)
    tops = entries.folders("")
    tests = [name for name in _TEST_FOLDERS if name in tops]
    if "train" in tops:
        splits = {"train": "train", **({"test": tests[0]} if tests else {})}
        listing.ignored = tuple(name for name in tops if name not in splits.values())
        listing.stray.clear()
    elif tests:
        raise PreparedSetError(
            f"{show(root)} has {tests[0]}/ but no train/; put the training images there (no class is called {tests[0]})"
        )
    else:
        splits = {"train": ""}
    by_split = {split: _classes_of(entries, folder) for split, folder in splits.items()}
    _check_classes(listing, by_split, splits)
    listing.classes = tuple(sorted(by_split["train"]))
    for split, classes in by_split.items():
        for class_name, names in sorted(classes.items()):
            fixed = split if len(splits) > 1 else None
            listing.files.extend(ImageFile(name, class_name, fixed) for name in names)
    listing.digest = _digest(listing)
    return listing


def _classes_of(entries: _Walker, folder: str) -> dict[str, list[str]]:
    above = frozenset({entries.key(""), entries.key(folder)})
    return {name: sorted(entries.files(_join(folder, name), above)) for name in entries.folders(folder)}


def _check_classes(listing: Listing, by_split: dict[str, dict[str, list[str]]], splits: dict[str, str]) -> None:
    for split, classes in by_split.items():
        folder = listing.root / splits[split]
        if not classes:
            reserved = " (no class is called train)" if folder.name == splits[split] == "train" else ""
            raise PreparedSetError(f"{show(folder)} holds no class folders; it must hold one for each class{reserved}")
        for name, files in classes.items():
            if show(name) != name:
                raise PreparedSetError(f"the class folder {show(folder / name)} has no printable name; rename it")
            if not files:
                raise PreparedSetError(f"the class folder {show(folder / name)} is empty; fill it or remove it")
    known = by_split["train"]
    if len(known) < 2:
        raise PreparedSetError(
            f"{show(listing.root / splits['train'])} holds the single class '{next(iter(known))}'; it takes two or more"
        )
    for name in by_split.get("test", {}):
        if name not in known:
            raise PreparedSetError(
                f"the class '{name}' of {show(listing.root / splits['test'])} is not in train/; add or remove it"
            )


class _Walker:
    """Goes through the folder, noting what is hidden and what lies in no class."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing

    def folders(self, below: str) -> list[str]:
        """Names of the folders right below; files beside them are strays."""
        names = []
        for entry in self._entries(below):
            if _is_folder(entry):
                names.append(entry.name)
            else:
                self._listing.stray.append(_join(below, entry.name))
        return names

    def key(self, below: str) -> tuple[int, int]:
        """Identifies a folder, by whichever path it was found."""
        status = os.stat(self._listing.root / below)
        return status.st_dev, status.st_ino

    def files(self, below: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
        """All files below, at any depth; a link to a folder above itself, known by `key`, is not followed."""
        key = self.key(below)
        if key in above:
            return
        for entry in self._entries(below):
            if _is_folder(entry):
                yield from self.files(_join(below, entry.name), above | {key})
            else:
                yield _join(below, entry.name)

    def _entries(self, below: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self._listing.root / below) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            place = show(self._listing.root / below)
            raise PreparedSetError(f"{place} can't be read: {error.strerror}; allow it or move it away") from error
        shown = [e for e in entries if not e.name.startswith(".") and e.name.lower() not in _CLUTTER]
        self._listing.hidden += len(entries) - len(shown)
        return shown


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself, for example: reading it reports that.
        return False


def _join(below: str, name: str) -> str:
    return f"{below}/{name}" if below else name


def _digest(listing: Listing) -> str:
    digest = hashlib.sha256()
    for name in [*listing.stray, *(file.name for file in listing.files)]:
        try:
            status = os.stat(listing.root / name)
            facts = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            # A broken link: reading it reports that.
            facts = "missing"
        digest.update(os.fsencode(name) + f"\0{facts}\0".encode())
    return digest.hexdigest()


def draw_test_split(files: list[ImageFile], *, test_fraction: float, seed: int) -> list[ImageFile]:
    """Give each file a split: the same fraction of every class goes to the test split, drawn by ``seed``.

    A class of two or more files has at least one in each. The draw depends on the seed and the paths alone: files are
    taken in the order of SHA-256(seed, path).
    """
    by_class: dict[str, list[ImageFile]] = {}
    for file in files:
        by_class.setdefault(file.class_name, []).append(file)
    drawn: set[str] = set()
    for members in by_class.values():
        count = min(max(round(len(members) * test_fraction), 1), len(members) - 1)
        ranked = sorted(members, key=lambda f: hashlib.sha256(f"{seed}\0".encode() + os.fsencode(f.name)).digest())
        drawn.update(file.name for file in ranked[:count])
    return [ImageFile(f.name, f.class_name, "test" if f.name in drawn else "train") for f in files]
