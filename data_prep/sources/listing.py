"""What a folder of images holds: its splits, classes and files, before any file is opened."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import unicodedata
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from fast_train.common.text import is_plain, show, show_path
from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.sources.base import SPLITS

# What splits are usually called, in any case.
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
#: The split that each of these names, in small letters, stands for.
SPLIT_OF = {name: split for split, names in _SPLIT_NAMES.items() for name in names}
# What systems and servers leave in folders, in small letters; besides all that begins with a dot.
_CLUTTER = {
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "__macosx", "lost+found", "@eadir"),
    *("$recycle.bin", "recycler", "recycled", "#recycle", "@recycle", "system volume information", "found.000"),
}
#: (device, inode): one file or folder, by whichever path it was found.
_Key = tuple[int, int]


# A folder may hold millions: without a dictionary in each they take half the memory.
@dataclass(frozen=True, slots=True)
class ImageFile:
    """One file: its path below the image folder with ``/``, its class, and its split."""

    name: str
    class_name: str
    split: str


@dataclass
class Listing:
    """All files of an image folder in order, and those in no class.

    ``notes``: what the user should know of what was chosen or left out. ``again``: files that were found before under
    another name, by a link, and that name.
    """

    root: Path
    files: list[ImageFile] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    stray: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    again: dict[str, str] = field(default_factory=dict)
    digest: str = ""

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """Those of the files, in order; only ``train`` where these are not parted."""
        found = {file.split for file in self.files}
        return tuple(split for split in SPLITS if split in found)


def list_folder(root: Path) -> Listing:
    """List ``root``: CLASS/** alone, or TRAIN/CLASS/** with VAL/CLASS/**, TEST/CLASS/** or both, each under one of its
    usual names. One of the two that has no labels is left out.

    Names of classes are compared as they look, in Unicode's form NFC. The digest covers every file's path, size and
    time of change. Raises PreparedSetError: no such folder, no classes or only one, an empty class, a class of the test
    split that training doesn't know.
    """
    if not root.is_dir():
        raise PreparedSetError(f"{show(root)} is not a folder; give --dataset folder:DIR a folder of images")
    listing, tree = Listing(root), _Tree(root)
    splits = _choose_splits(tree, listing.notes)
    by_split = {split: _classes_of(tree, folder) for split, folder in splits.items()}
    _check_classes(tree, by_split, splits)
    listing.classes = tuple(sorted(by_split["train"]))
    listing.notes += same_looks(listing.classes)
    for split, classes in by_split.items():
        listing.stray += tree.beside(splits[split])
        for class_name, names in sorted(classes.items()):
            listing.files.extend(ImageFile(name, class_name, split) for name in names)
    if tree.hidden:
        listing.notes.append(f"ignored hidden files and what systems leave: {tree.hidden:,}")
    look_at_files(listing)
    return listing


def files_below(root: Path) -> list[str]:
    """The files of a folder at any depth, by their paths below it: those that `list_folder` would take, whatever
    folders they lie in. In natural order, ``img2`` before ``img10``. PreparedSetError: a folder can't be read."""
    return sorted(_Tree(root).files([""], set()), key=_natural)


def _natural(path: str) -> tuple[list[list[str | int]], str]:
    """A key to sort by: the numbers in each folder's or file's name count as numbers."""
    parts = (re.split("([0-9]+)", part) for part in path.split("/"))
    # Text and numbers take turns.
    return [[int(text) if place % 2 else text for place, text in enumerate(part)] for part in parts], path


def _choose_splits(tree: _Tree, notes: list[str]) -> dict[str, str]:
    """The folder of each split; that of train is "" where the classes lie in the root itself."""
    tops = tree.folders("")
    found = {role: [top for top in tops if top.lower() in names] for role, names in _SPLIT_NAMES.items()}
    for names in found.values():
        if len(names) > 1:
            raise PreparedSetError(f"{show(tree.root)} has both {names[0]}/ and {names[1]}/; keep one of them")
    held_out = found["test"] + found["validation"]
    if not found["train"]:
        if held_out:
            raise PreparedSetError(
                f"{show(tree.root)} has {held_out[0]}/ but no train/; put the training images there "
                f"(no class is called {held_out[0]})"
            )
        return {"train": ""}
    splits = {"train": found["train"][0]}
    known = set(map(normal, tree.folders(splits["train"])))
    with_classes = [folder for folder in held_out if tree.folders(folder)]
    labelled = [folder for folder in with_classes if known.intersection(map(normal, tree.folders(folder)))]
    for folder in held_out:
        if folder not in with_classes:
            notes.append(f"{folder}/ holds no class folders, so its images have no labels")
    # Where none holds a known class, one is kept, to be refused.
    kept = labelled or with_classes[:1]
    splits |= {split: top for split in ("validation", "test") for top in found[split] if top in kept}
    ignored = [top for top in tops if top not in splits.values()]
    if ignored:
        notes.append(f"ignored beside {' and '.join(splits.values())}: {', '.join(map(show, ignored))}")
    return splits


def _classes_of(tree: _Tree, folder: str) -> dict[str, list[str]]:
    """The files of each class, sorted; folders whose names look the same are one class."""
    above = {tree.key(""), tree.key(folder)}
    folders: dict[str, list[str]] = {}
    for name in tree.folders(folder):
        folders.setdefault(normal(name), []).append(_join(folder, name))
    return {name: sorted(tree.files(parts, above)) for name, parts in folders.items()}


def normal(name: str) -> str:
    """The name in Unicode's form NFC; macOS writes é as e and an accent, most others as one sign."""
    return unicodedata.normalize("NFC", name)


def _look(name: str) -> str:
    """The name without what can't be seen in it: which kind of space, spaces at its ends, signs of no width."""
    return " ".join("".join(c for c in name if c.isprintable() or c.isspace()).split())


def same_looks(classes: tuple[str, ...]) -> list[str]:
    """A note for each class that looks like another one."""
    first: dict[str, str] = {}
    pairs = [(first.setdefault(_look(name), name), name) for name in classes]
    return [f"two classes look the same: {one!a} and {other!a}" for one, other in pairs if one != other]


def _check_classes(tree: _Tree, by_split: dict[str, dict[str, list[str]]], splits: dict[str, str]) -> None:
    for split, classes in by_split.items():
        folder = tree.root / splits[split]
        if not classes:
            reserved = f" (no class is called {folder.name})" if splits[split] else ""
            raise PreparedSetError(f"{show(folder)} holds no class folders; it must hold one for each class{reserved}")
        for name, files in classes.items():
            if not is_plain(name):
                raise PreparedSetError(f"the name of the class folder {show(folder / name)} does not print; rename it")
            if not files:
                raise PreparedSetError(f"the class folder {show(folder / name)} is empty; fill it or remove it")
    _check_level(tree, splits["train"])
    known = {_look(name): name for name in by_split["train"]}
    for split, name in ((split, name) for split, classes in by_split.items() for name in classes):
        if name not in by_split["train"]:
            alike = known.get(_look(name))
            differs = f", which has {alike!a} and not {name!a}" if alike else ""
            raise PreparedSetError(
                f"the class '{name}' of {show(tree.root / splits[split])} is not in {splits['train']}/{differs}; "
                "add or remove it"
            )


def _check_level(tree: _Tree, folder: str) -> None:
    """PreparedSetError where the folders right below can't be the classes: only one, or the same few in each."""
    place, names = tree.root / folder, tree.folders(folder)
    below = [_join(folder, name) for name in names]
    if len(set(map(normal, names))) < 2:
        inner = below[0]
        while len(tree.folders(inner)) == 1 and not tree.beside(inner):
            inner = _join(inner, tree.folders(inner)[0])
        hint = "it takes two or more"
        if len(tree.folders(inner)) > 1:
            wrapped = show(shlex.quote(f"folder:{show_path(tree.root / inner)}"))
            hint = f"move up the folders of {show(inner)}/" if folder else f"did you mean --dataset {wrapped}?"
        raise PreparedSetError(f"{show(place)} holds the single class '{normal(names[0])}'; {hint}")
    inside = [set(tree.folders(path)) for path in below]
    shared = set.intersection(*inside)
    # In many classes, folders of the same names are views of a thing, say; splits are two or three.
    if len(names) > 3 or len(shared) < 2 or shared not in inside or any(map(tree.beside, below)):
        return
    raise PreparedSetError(
        f"{' and '.join(map(show, names))} in {show(place)} are no classes: they hold nothing but the same folders, "
        f"such as {show(min(shared))}; if they are splits, call them train and test"
    )


class _Tree:
    """Looks into folders below the root; counts the entries that are left out, once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hidden = 0
        self._counted: set[_Key] = set()

    def folders(self, below: str) -> list[str]:
        """Names of the folders right below, sorted."""
        return [entry.name for entry in self._entries(below) if _is_folder(entry)]

    def beside(self, below: str) -> list[str]:
        """Paths of the files that lie beside those folders."""
        return [_join(below, entry.name) for entry in self._entries(below) if not _is_folder(entry)]

    def key(self, below: str) -> _Key:
        status = os.stat(os.path.join(self.root, below))
        return status.st_dev, status.st_ino

    def files(self, folders: list[str], above: set[_Key]) -> list[str]:
        """All files below, at any depth: each folder once, whatever links lead to it, and none of those ``above``."""
        found = []
        seen, left = set(above), list(folders)
        while left:
            below = left.pop()
            entries = self._entries(below)
            if (key := self.key(below)) in seen:
                continue
            seen.add(key)
            for entry in entries:
                if _is_folder(entry):
                    # Links come last: a folder goes by its own name where it has one here.
                    left.insert(0 if entry.is_symlink() else len(left), _join(below, entry.name))
                else:
                    found.append(_join(below, entry.name))
        return found

    def _entries(self, below: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(os.path.join(self.root, below)) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
            key = self.key(below)
        except OSError as error:
            raise PreparedSetError(
                f"{show(self.root / below)} can't be read: {error.strerror}; allow it or move it away"
            ) from error
        shown = [e for e in entries if not e.name.startswith(".") and e.name.lower() not in _CLUTTER]
        if key not in self._counted:
            self._counted.add(key)
            self.hidden += len(entries) - len(shown)
        return shown


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself, for example: reading it reports that.
        return False


def _join(below: str, name: str) -> str:
    return f"{below}/{name}" if below else name


def look_at_files(listing: Listing) -> None:
    """Fill in ``digest`` and ``again``."""
    digest = hashlib.sha256()
    first: dict[_Key, str] = {}
    for name in [*listing.stray, *(file.name for file in listing.files)]:
        try:
            status = os.stat(os.path.join(listing.root, name))
            facts = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            # A broken link: reading it reports that.
            facts = "missing"
        else:
            found = first.setdefault((status.st_dev, status.st_ino), name)
            if found != name:
                listing.again[name] = found
        digest.update(os.fsencode(name) + f"\0{facts}\0".encode())
    listing.digest = digest.hexdigest()


def linked_files(files: list[ImageFile], again: dict[str, str], *, in_one_class: bool = False) -> list[tuple[str, str]]:
    """Two names of one file (see `Listing`) that lie in different splits or classes, or in the same ones."""
    names = {*again, *again.values()}
    places = {file.name: (file.split, file.class_name) for file in files if file.name in names}
    pairs = [(first, name) for name, first in again.items() if first in places and name in places]
    return [(first, name) for first, name in pairs if (places[first] == places[name]) == in_one_class]


def draw_split(
    files: list[ImageFile], again: dict[str, str], split: str, *, fraction: float, seed: int
) -> list[ImageFile]:
    """The same files, of which the same fraction of every class of the training split goes to another, drawn by
    ``seed``.

    A class of two or more files has at least one in each. All names of one file (see `Listing`) go where its first one
    goes. The draw depends on the seed and the paths alone: files are taken in the order of SHA-256(seed, path).
    """
    first: dict[str, str] = {}
    by_class: dict[str, list[ImageFile]] = {}
    for file in files:
        if file.split == "train" and first.setdefault(again.get(file.name, file.name), file.name) == file.name:
            by_class.setdefault(file.class_name, []).append(file)
    drawn: set[str] = set()
    for members in by_class.values():
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        ranked = sorted(members, key=lambda f: hashlib.sha256(f"{seed}\0".encode() + os.fsencode(f.name)).digest())
        drawn.update(file.name for file in ranked[:count])
    return [
        replace(file, split=split)
        if file.split == "train" and first[again.get(file.name, file.name)] in drawn
        else file
        for file in files
    ]
