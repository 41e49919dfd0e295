"""Small inputs of the formats that are read, made without the commands."""

import hashlib
import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fast_train.data_prep.formats import RAGGED_WRITERS, WRITERS, FormatOptions
from fast_train.data_prep.formats.base import Encoded
from fast_train.data_prep.manifest import MANIFEST_NAME, FileEntry, Manifest, RaggedShapes
from fast_train.data_prep.sources.known import KnownFile

CLASSES = ("ant", "bee", "cow")
SHAPE = (10, 8, 3)
COUNTS = {"train": 12, "test": 6}


def make_set(root: Path, format: str, mode: str) -> None:
    """A prepared set of smooth images, with the files of one format."""
    root.mkdir(parents=True)
    options = FormatOptions(**({f"{format}_mode": mode} if mode != "raw" else {}))
    entries = []
    for split, count in COUNTS.items():
        writer = WRITERS[format](root, split, count, SHAPE, options)
        writer.write(pixels_of(split), labels_of(split))
        entries += [_entry(root, name, split, format) for name in writer.close()]
    manifest = Manifest(
        format_version=1,
        classes=CLASSES,
        shape=SHAPE,
        counts={split: tuple(np.bincount(labels_of(split)).tolist()) for split in COUNTS},
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        files=tuple(entries),
        source={"kind": "folder", "listing": "0" * 64, "skip_bad": False, "size": None},
        encodings={format: WRITERS[format].encoding(options)},
    )
    (root / MANIFEST_NAME).write_text(manifest.to_json())


def make_ragged_set(
    root: Path, *, counts: dict[str, int] | None = None, quality: int = 90, formats: Sequence[str] = ("packed",)
) -> None:
    """A prepared set of smooth images of 20 to 60 pixels a side: JPEG files, some of them grey or progressive, and
    every fifth a PNG file."""
    root.mkdir(parents=True)
    generator, entries, largest = np.random.default_rng(0), [], np.zeros(3, dtype=np.int64)
    counts = counts or COUNTS
    for split, count in counts.items():
        files = [encoded_image(generator, number, quality) for number in range(count)]
        for _, height, width in files:
            largest = np.maximum(largest, (height, width, height * width))
        for format in formats:
            writer = RAGGED_WRITERS[format](root, split, count, 60 * 60)
            writer.write(files, np.arange(count) % len(CLASSES))
            entries += [_entry(root, name, split, format) for name in writer.close()]
    labels = {split: np.arange(count) % len(CLASSES) for split, count in counts.items()}
    manifest = Manifest(
        format_version=2,
        classes=CLASSES,
        shape=RaggedShapes(height=int(largest[0]), width=int(largest[1]), pixels=int(largest[2]), side=32),
        counts={split: tuple(np.bincount(numbers, minlength=3).tolist()) for split, numbers in labels.items()},
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        files=tuple(entries),
        source={"kind": "folder", "listing": "0" * 64, "skip_bad": False, "size": None},
        encodings=dict.fromkeys(formats, FormatOptions().ragged_encoding()),
    )
    (root / MANIFEST_NAME).write_text(manifest.to_json())


def encoded_image(generator: np.random.Generator, number: int, quality: int = 90) -> Encoded:
    """The image of this number in a set that keeps shapes."""
    height, width = map(int, generator.integers(20, 61, 2))
    kind, options = ("PNG", {}) if number % 5 == 4 else ("JPEG", {"quality": quality, "progressive": number % 10 == 8})
    file = io.BytesIO()
    smooth_image(generator, height, width).convert("L" if number % 10 == 3 else "RGB").save(file, kind, **options)
    return Encoded(file.getvalue(), height, width)


def _entry(root: Path, name: str, split: str, format: str) -> FileEntry:
    raw = (root / name).read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    return FileEntry(path=name, split=split, format=format, bytes=len(raw), sha256=digest)


def smooth_image(generator: np.random.Generator, height: int, width: int) -> Image.Image:
    """An image of a few soft spots, as a photograph is softer than noise."""
    coarse = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((int(width), int(height)), Image.Resampling.BICUBIC)


def pixels_of(split: str) -> np.ndarray:
    count, (height, width, channels) = COUNTS[split], SHAPE
    ramp = np.linspace(0, 200, height * width * channels).reshape(SHAPE)
    return (ramp + 4 * np.arange(count)[:, None, None, None]).astype(np.uint8)


def labels_of(split: str) -> np.ndarray:
    return np.arange(COUNTS[split]) % len(CLASSES)


def python2_pickle(value: Any) -> bytes:
    """A pickle as Python 2 wrote CIFAR's: strings are bytes, an array is made by numpy.core's functions."""
    return b"\x80\x02" + _pickled(value) + b"."


def _pickled(value: Any) -> bytes:
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_pickled, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_pickled(item) for pair in value.items() for item in pair) + b"u"
    uint8 = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"".join(map(_pickled, value.shape)) + b"\x86"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return empty + b"(K\x01" + shape + uint8 + b"\x89" + _pickled(value.tobytes()) + b"tb"


def known_file(path: Path) -> KnownFile:
    """A file of a test as one whose content is known."""
    content = path.read_bytes()
    return KnownFile(path.name, len(content), hashlib.sha256(content).hexdigest(), hashlib.md5(content).hexdigest())
