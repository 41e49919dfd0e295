"""From a source to a prepared set: plan, check the disk, write beside the place, hash, rename."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fast_train.common.console import Display
from fast_train.common.cores import usable_cores
from fast_train.common.text import format_bytes, show
from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.formats import RAGGED_WRITERS, WRITERS, FormatOptions, SplitWriter
from fast_train.data_prep.formats.base import flush
from fast_train.data_prep.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    RAGGED_VERSION,
    FileEntry,
    Manifest,
    PreparedSet,
    RaggedShapes,
)
from fast_train.data_prep.names import NAMES, encode_names
from fast_train.data_prep.sources import (
    SOURCES,
    Chunk,
    EncodedChunk,
    Plan,
    PlanChangedError,
    Source,
    SourceOptions,
    build_source,
)
from fast_train.data_prep.sources.folder import ImageFolder
from fast_train.data_prep.staging import Stage, check_free_disk, remove_leftovers, staging
from fast_train.data_prep.stats import ChannelHistogram, PixelHash, pixel_digest
from fast_train.data_prep.whole import sha256_of

_CLASSES_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to prepare, in which formats, and where (None: ``data/`` and the data set's name)."""

    dataset: str = "cifar10"
    out: Path | None = None
    formats: tuple[str, ...] = ("packed",)
    encoding: FormatOptions = field(default_factory=FormatOptions)
    overwrite: bool = False
    options: SourceOptions = field(default_factory=SourceOptions)

    def __post_init__(self) -> None:
        if not self.formats:
            raise PreparedSetError(f"--formats names none; choose from {', '.join(WRITERS)}")
        for name in self.formats:
            if name not in WRITERS:
                raise PreparedSetError(f"--formats {show(name)} is not known; choose from {', '.join(WRITERS)}")
        for name in ("size", "workers"):
            value = getattr(self.options, name)
            if value is not None and value < 1:
                raise PreparedSetError(f"--{name} {value} is not 1 or more")
        # Of a user's own images it shows only later whether they keep their shapes.
        own = issubclass(SOURCES.get(self.dataset.partition(":")[0], Source), ImageFolder)
        later = own and self.options.size is None
        self.encoding.check(self.formats, ragged=None if later else False)

    def encodings(self, *, ragged: bool) -> dict[str, dict[str, Any]]:
        """What the manifest says of how the files of each format store the images."""
        if ragged:
            return {name: self.encoding.ragged_encoding() for name in self.formats}
        return {name: WRITERS[name].encoding(self.encoding) for name in self.formats}


def prepare(request: Request, display: Display) -> PreparedSet:
    """Prepare what is asked for, or find it there; the opened set.

    Raises PreparedSetError for whatever can't be done; nothing that looks like a set is left behind then.
    """
    source = build_source(request.dataset, request.options, display, request.encoding)
    with closing(source):
        place = _place(request, source)
        real = Path(os.path.realpath(place))
        remove_leftovers(real)
        if _is_there(place, request, source):
            return _whole_already(place, display)
        with staging(real) as stage:
            while not _make(stage, request, source, display):
                for file in stage.new_set.iterdir():
                    file.unlink()
            # Another run may have put a set there in the meantime, or the user a file.
            if _is_there(place, request, source):
                return _whole_already(place, display)
            stage.publish(replace=request.overwrite)
    prepared = PreparedSet.open(place)
    display.say(f"{show(place)} is ready: {summary(prepared)}")
    for line in _class_table(prepared.manifest):
        display.say(line)
    return prepared


def default_place(source: Source) -> Path:
    """Where a source's set goes, unless the user says."""
    if not source.default_name:
        raise PreparedSetError("the folder has no name to call the set by; give --out")
    return Path("data") / source.default_name


_OPENERS: dict[str, Callable[[PreparedSet, str], object]] = {
    "packed": PreparedSet.any_packed,
    "ffcv": PreparedSet.beton,
    "dali": PreparedSet.tfrecords,
}


def verify(place: Path, display: Display) -> PreparedSet:
    """Open a set, compare the SHA-256 of every file and the labels; PreparedSetError names what is broken."""
    prepared = PreparedSet.open(place)
    entries = prepared.manifest.all_files
    with display.progress("checking", sum(entry.bytes for entry in entries), in_bytes=True) as advance:
        for entry in entries:
            prepared.check_hash(entry)
            advance(entry.bytes)
    for split, name in dict.fromkeys((entry.split, entry.format) for entry in prepared.manifest.files):
        if name in _OPENERS:
            _OPENERS[name](prepared, split)
    for split in prepared.splits:
        prepared.names(split)
    display.say(f"{show(place)} is ok: {summary(prepared)}")
    return prepared


def summary(prepared: PreparedSet) -> str:
    manifest, shape = prepared.manifest, prepared.manifest.shape
    *first, last = (f"{prepared.size(split):,} {split}" for split in prepared.splits)
    images = f"{', '.join(first)} and {last} images"
    if isinstance(shape, RaggedShapes):
        images += f" of their own shapes, shorter side {shape.side} px (median)"
    else:
        height, width, channels = shape
        images = f"{images} of {width}x{height}x{channels}"
    size = format_bytes(sum(entry.bytes for entry in manifest.all_files))
    made_up = ", synthetic" if prepared.synthetic else ""
    return f"{len(manifest.classes)} classes, {images}{made_up}; {', '.join(manifest.formats)}, {size}"


def _class_table(manifest: Manifest) -> list[str]:
    """Lines that show the images of each class and split; of many classes the smallest and the largest."""
    if len(manifest.classes) > _CLASSES_SHOWN:
        ranked = sorted(zip(manifest.counts["train"], manifest.classes, strict=True))
        (least, smallest), (most, largest) = ranked[0], ranked[-1]
        return [f"training images of a class: {least:,} ({smallest}) to {most:,} ({largest})"]
    # The name comes last: how wide it is on a terminal depends on its script.
    return ["".join(f"{split:>12}" for split in manifest.counts) + "  class"] + [
        "".join(f"{numbers[label]:>12,}" for numbers in manifest.counts.values()) + f"  {name}"
        for label, name in enumerate(manifest.classes)
    ]


def _place(request: Request, source: Source) -> Path:
    place = request.out or default_place(source)
    if ".." in place.parts:
        # A folder that such a path goes through may not be there yet.
        place = Path(os.path.realpath(place))
    # A folder is listed; of what lies beside a list of files nothing is.
    if type(source) is ImageFolder and Path(os.path.realpath(place)).is_relative_to(source.root):
        raise PreparedSetError(f"--out {show(place)} lies in the image folder {show(source.root)}; name another place")
    return place


def _is_there(place: Path, request: Request, source: Source) -> bool:
    """Whether the requested set is at its place; PreparedSetError if something else is and may not be replaced."""
    if not os.path.lexists(os.path.realpath(place)) or (place.is_dir() and not any(place.iterdir())):
        return False
    path = place / MANIFEST_NAME
    if not path.is_file():
        raise PreparedSetError(f"{show(place)} is there and is not a prepared set; give another --out or move it away")
    manifest = Manifest.from_json(path.read_bytes(), where=show(path))
    if not request.overwrite:
        differences = _differences(manifest, request, source)
        if differences:
            what = "; ".join(differences)
            raise PreparedSetError(f"{show(place)} holds another set ({what}); give another --out, or --overwrite")
        return True
    known = {MANIFEST_NAME, *(PurePosixPath(entry.path).parts[0] for entry in manifest.all_files)}
    for path in place.iterdir():
        if path.name not in known:
            raise PreparedSetError(f"--overwrite would delete {show(path)}, which is not part of the set; move it away")
    return False


def _whole_already(place: Path, display: Display) -> PreparedSet:
    """The set that is there, once none of its files turned out broken."""
    prepared = PreparedSet.open(place)
    for split, name in dict.fromkeys((entry.split, entry.format) for entry in prepared.manifest.files):
        prepared.files(split, name)
    for split in prepared.splits:
        prepared.names(split)
    display.say(f"{show(place)} is whole already: {summary(prepared)}")
    return prepared


def _differences(manifest: Manifest, request: Request, source: Source) -> list[str]:
    """How the set that is there differs from the one asked for, in words."""
    there, asked = manifest.source, source.identity()
    if there["kind"] != asked["kind"]:
        return [f"of {there['kind']}, not {asked['kind']}"]
    differences = [
        f"the files in the {source.kind} have changed"
        if key == "listing"
        else f"{key} {_text(there.get(key))}, not {_text(value)}"
        for key, value in asked.items()
        if there.get(key) != value
    ]
    if not differences and (outdated := source.outdated(manifest)):
        return [outdated]
    ragged = manifest.ragged is not None
    if not differences:
        request.encoding.check(request.formats, ragged=ragged)
    missing = [name for name in request.formats if name not in manifest.formats]
    others = [
        f"{name} files {_text_of_encoding(manifest.encoding(name))}, not {_text_of_encoding(wanted)}"
        for name, wanted in request.encodings(ragged=ragged).items()
        if name not in missing and manifest.encoding(name) != wanted
    ]
    return differences + [f"without {name} files" for name in missing] + others


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "unset" if value is None else str(value)


def _text_of_encoding(encoding: Mapping[str, Any]) -> str:
    details = [f"{key} {value}" for key, value in encoding.items() if key != "mode"]
    return " ".join([encoding["mode"], *details])


def _make(stage: Stage, request: Request, source: Source, display: Display) -> bool:
    """Write the set; False where it has to be written anew, since the plan has changed on the way."""
    plan = source.plan(stage.scratch)
    ragged = isinstance(plan.shape, RaggedShapes)
    request.encoding.check(request.formats, ragged=ragged)
    check_free_disk(stage.folder, sum(_estimates(plan, request)), "the set")
    tallies = {split: _Tally(plan) for split in plan.counts}
    files = [
        file for split in plan.counts for file in _write_split(stage, split, plan, request, source, display, tallies)
    ]
    try:
        outcome = source.outcome()
    except PlanChangedError:
        return False
    _check_classes(plan, tallies)
    mean, std = tallies["train"].histogram.mean_std()
    entries = _entries(stage.new_set, files)
    manifest = Manifest(
        format_version=RAGGED_VERSION if ragged else FORMAT_VERSION,
        classes=plan.classes,
        shape=plan.shape,
        counts={split: tuple(tally.counts.tolist()) for split, tally in tallies.items()},
        mean=mean,
        std=std,
        files=tuple(entry for entry in entries if entry.format != NAMES),
        source={**source.identity(), **outcome},
        encodings=request.encodings(ragged=ragged),
        name_files=tuple(entry for entry in entries if entry.format == NAMES),
        pixels={split: tally.pixels.hexdigest() for split, tally in tallies.items()},
    )
    with open(stage.new_set / MANIFEST_NAME, "x", encoding="utf-8") as file:
        file.write(manifest.to_json())
        flush(file)
    return True


def _check_classes(plan: Plan, tallies: Mapping[str, _Tally]) -> None:
    """PreparedSetError for a split without images, and for a class without one to train from."""
    for split, tally in tallies.items():
        if not tally.counts.any():
            raise PreparedSetError(f"no image is left for the {split} split; add images")
    for name, number in zip(plan.classes, tallies["train"].counts, strict=True):
        if not number:
            raise PreparedSetError(f"no image is left for training of class '{name}'; add images or remove the class")


class _Tally:
    """What is found out of a split's images while they are written."""

    def __init__(self, plan: Plan) -> None:
        self.counts = np.zeros(len(plan.classes), dtype=np.int64)
        self.histogram = ChannelHistogram(3 if isinstance(plan.shape, RaggedShapes) else plan.shape[2])
        self.pixels = PixelHash()
        self.names = bytearray()

    def update(self, chunk: Chunk | EncodedChunk) -> None:
        if isinstance(chunk, EncodedChunk):
            self.histogram.counts += chunk.histogram.counts
            self.pixels.update(chunk.digests, chunk.labels)
        else:
            self.histogram.update(chunk.images)
            self.pixels.update(map(pixel_digest, chunk.images), chunk.labels)
        self.counts += np.bincount(chunk.labels, minlength=len(self.counts))
        self.names += encode_names(chunk.names)


def _estimates(plan: Plan, request: Request) -> Iterator[int]:
    """About how many bytes each split takes in each format."""
    for name, (split, count) in itertools.product(request.formats, plan.counts.items()):
        if isinstance(plan.shape, RaggedShapes):
            yield RAGGED_WRITERS[name].estimate_bytes(count, plan.stored_bytes[split], plan.shape.pixels)
        else:
            yield WRITERS[name].estimate_bytes(count, plan.shape, request.encoding)


def _writer(name: str, folder: Path, split: str, plan: Plan, request: Request) -> SplitWriter:
    if isinstance(plan.shape, RaggedShapes):
        return RAGGED_WRITERS[name](folder, split, plan.counts[split], plan.shape.pixels)
    return WRITERS[name](folder, split, plan.counts[split], plan.shape, request.encoding)


def _write_split(
    stage: Stage,
    split: str,
    plan: Plan,
    request: Request,
    source: Source,
    display: Display,
    tallies: Mapping[str, _Tally],
) -> list[tuple[str, str, str]]:
    """Read a split once into all formats, and its tally. The files as (name, split, format or NAMES)."""
    tally = tallies[split]
    writers: dict[str, SplitWriter] = {}
    files = []
    try:
        for name in request.formats:
            writers[name] = _writer(name, stage.new_set, split, plan, request)
        with display.progress(split, plan.counts[split]) as advance:
            for chunk in source.read(split):
                if isinstance(chunk, Chunk):
                    # Contiguous, once for all writers: a source may yield a transposed view.
                    chunk = chunk._replace(images=np.ascontiguousarray(chunk.images))
                for writer in writers.values():
                    writer.write(chunk.images, chunk.labels)
                tally.update(chunk)
                advance(len(chunk.labels))
        if tally.counts.any():
            for name, writer in writers.items():
                files += [(file, split, name) for file in writer.close()]
        if tally.names:
            files.append((f"{split}.{NAMES}", split, NAMES))
            with open(stage.new_set / files[-1][0], "xb") as file:
                file.write(tally.names)
                flush(file)
    finally:
        for writer in writers.values():
            writer.abort()
    return files


def _entries(folder: Path, files: list[tuple[str, str, str]]) -> tuple[FileEntry, ...]:
    # Hashing releases the GIL, so threads do it in parallel.
    with ThreadPoolExecutor(usable_cores()) as pool:
        sums = pool.map(_sha256_of, [folder / name for name, _, _ in files])
        return tuple(
            FileEntry(path=name, split=split, format=fmt, bytes=(folder / name).stat().st_size, sha256=digest)
            for (name, split, fmt), digest in zip(files, sums, strict=True)
        )


def _sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return sha256_of(file)
