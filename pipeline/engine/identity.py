"""Which images a run was trained on, and whether a prepared set holds the same ones, whatever its format."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fast_train.data_prep.manifest import PreparedSet

# What is the same in every format. The mean and the deviation are exact: images that differ have others.
_FACTS = {
    "classes": "their classes",
    "image_shape": "their shape",
    "counts": "their number in a class",
    "mean": "the mean of those for training",
    "std": "the deviation of those for training",
}


def identity(prepared: PreparedSet) -> dict[str, Any]:
    """What a run's record and its checkpoints say of the set, in plain values. files: SHA-256 by path. pixels: of each
    split, that of its pixels and labels, which no format changes."""
    manifest = prepared.manifest
    return {
        "source": manifest.source,
        "classes": list(manifest.classes),
        "image_shape": dataclasses.asdict(manifest.ragged) if manifest.ragged else list(manifest.image_shape),
        "counts": {split: list(numbers) for split, numbers in manifest.counts.items()},
        "mean": list(manifest.mean),
        "std": list(manifest.std),
        "files": {entry.path: entry.sha256 for entry in manifest.files},
        "pixels": dict(manifest.pixels),
    }


def difference(known: Mapping[str, Any], prepared: PreparedSet, format: str) -> str | None:
    """In what, by words or the file's name, a set's images differ from those of an `identity`; None where they are the
    same as far as that tells.

    format: of the files that are read. Where the set was prepared in that format then too, its files must be the same;
    else those of one format that both know, and where they know none, the pixels and labels, as they were before a
    format's own encoding. Sets of earlier versions don't tell these.
    """
    now = identity(prepared)
    for name, words in _FACTS.items():
        if known.get(name, now[name]) != now[name]:
            return words
    files, changed, common = known["files"], dict[str, str](), set[str]()
    for entry in prepared.manifest.files:
        if entry.path in files:
            common.add(entry.format)
            if files[entry.path] != entry.sha256:
                changed.setdefault(entry.format, entry.path)
    compared = {format} & common or common
    if not compared:
        then, here = known.get("pixels") or {}, now["pixels"]
        return "their pixels" if then and here and then != here else None
    return None if compared - changed.keys() else next(changed[name] for name in sorted(compared))
