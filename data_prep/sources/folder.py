"""A folder of images in class folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fast_train.common.files import user_path
from fast_train.common.text import show
from fast_train.data_prep.errors import BadFilesError, PreparedSetError
from fast_train.data_prep.images import DecodeJob, decode, scan
from fast_train.data_prep.processes import WorkerPool
from fast_train.data_prep.sources.base import Chunk, Plan, Source
from fast_train.data_prep.sources.listing import (
    ImageFile,
    Listing,
    draw_test_split,
    files_in_two_places,
    list_folder,
)

_DEFAULT_TEST_FRACTION = 0.2
#: Side of the stored square where the images have different sizes and none was asked for.
_DEFAULT_SIZE = 64
_SCAN_FILES = 500
# A job is as much as a process does in a fraction of a second, and returns a few megabytes.
_JOB_FILES, _JOB_PIXELS, _JOB_BYTES = 256, 8_000_000, 8_000_000


class ImageFolder(Source):
    """``folder:DIR``: DIR/train/CLASS/** and DIR/test/CLASS/** (or val), or DIR/CLASS/**, split here."""

    kind = "folder"
    accepts = frozenset({"size", "test_fraction", "split_seed", "skip_bad", "workers"})

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.root = Path(os.path.realpath(user_path(self.argument)))
        fraction = self.options.test_fraction
        self._test_fraction = _DEFAULT_TEST_FRACTION if fraction is None else fraction
        if not 0 < self._test_fraction < 1:
            raise PreparedSetError(f"--test-fraction {self._test_fraction:g} is not between 0 and 1")
        self._seed = self.options.split_seed or 0
        self._listing: Listing | None = None
        self._pool: WorkerPool | None = None
        self._files: list[ImageFile] = []
        self._sizes: dict[str, tuple[int, int]] = {}
        self._bad: list[tuple[str, str]] = []
        self._shape = (0, 0)
        self._to_resize = self._resized = 0

    @property
    def default_name(self) -> str:
        return self.root.name

    @property
    def listing(self) -> Listing:
        if self._listing is None:
            self._listing = list_folder(self.root)
        return self._listing

    def identity(self) -> dict[str, Any]:
        given = self.listing.has_test_split
        return {
            "kind": self.kind,
            "listing": self.listing.digest,
            "size": self.options.size,
            "test_fraction": None if given else self._test_fraction,
            "split_seed": None if given else self._seed,
            "skip_bad": self.options.skip_bad,
        }

    def plan(self, scratch: Path) -> Plan:
        self._announce()
        self._pool = WorkerPool(self.options.workers or os.cpu_count() or 1)
        self._scan()
        good = [file for file in self.listing.files if file.name in self._sizes]
        if not good:
            self._refuse()
        self._shape = self._choose_shape()
        if not self.listing.has_test_split:
            good = draw_test_split(good, test_fraction=self._test_fraction, seed=self._seed)
        self._files = good
        if shared := files_in_two_places(good, self.listing.again):
            first, other = shared[0]
            self.display.say(
                f"{_files(len(shared))} in two splits or classes by links, such as {show(first)}, also {show(other)}"
            )
        counts = Counter(file.split for file in good)
        for split in ("train", "test"):
            if not counts[split]:
                raise PreparedSetError(f"no image of {show(self.root)} is left for the {split} split; add images")
        return Plan(
            classes=self.listing.classes,
            image_shape=(*self._shape, 3),
            counts={"train": counts["train"], "test": counts["test"]},
        )

    def read(self, split: str) -> Iterator[Chunk]:
        assert self._pool is not None, "plan comes first"
        for decoded in self._pool.map(decode, self._jobs(split)):
            self._bad.extend(decoded.bad)
            self._resized += decoded.resized
            if len(decoded.labels):
                yield decoded.images, decoded.labels

    def outcome(self) -> dict[str, Any]:
        if self._bad and not self.options.skip_bad:
            self._refuse()
        if self._bad:
            self.display.say(f"skipped {_files(len(self._bad))} that can't be read as images: {_examples(self._bad)}")
        if self._resized > self._to_resize:
            self.display.say(f"images resized in all: {self._resized:,}; some have other sizes than their headers say")
        return {"path": show(self.root), "skipped": len(self._bad), "resized": self._resized}

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def _announce(self) -> None:
        listing = self.listing
        self.display.say(f"{show(self.root)}: {_files(len(listing.files))} in {len(listing.classes)} classes")
        for note in listing.notes:
            self.display.say(note)
        if listing.has_test_split and (self.options.test_fraction, self.options.split_seed) != (None, None):
            self.display.say("the folder has its own test split: --test-fraction and --split-seed are not used")

    def _scan(self) -> None:
        """Find out the size of every image, and the files that are none."""
        assert self._pool is not None
        self._bad.extend((name, "in no class folder") for name in self.listing.stray)
        names = [file.name for file in self.listing.files]
        batches = [names[i : i + _SCAN_FILES] for i in range(0, len(names), _SCAN_FILES)]
        jobs = ([self._path(name) for name in batch] for batch in batches)
        with self.display.progress("sizes", len(names)) as advance:
            for batch, results in zip(batches, self._pool.map(scan, jobs), strict=True):
                for name, result in zip(batch, results, strict=True):
                    if isinstance(result, str):
                        self._bad.append((name, result))
                    else:
                        self._sizes[name] = result
                advance(len(batch))

    def _choose_shape(self) -> tuple[int, int]:
        """(height, width) of the stored images; says how many are resized for it."""
        sizes = Counter(self._sizes.values())
        side = self.options.size
        if side is None and len(sizes) == 1:
            return next(iter(sizes))
        shape = (side or _DEFAULT_SIZE,) * 2
        self._to_resize = count = len(self._sizes) - sizes[shape]
        if count:
            ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
            low, high = ordered[0], ordered[-1]
            span = _by(low) if low == high else f"{_by(low)} to {_by(high)}"
            chosen = "" if side else " (--size N chooses another)"
            self.display.say(f"resizing {count:,} of {len(self._sizes):,} images, {span}, to {_by(shape)}{chosen}")
        return shape

    def _jobs(self, split: str) -> Iterator[DecodeJob]:
        labels = {name: label for label, name in enumerate(self.listing.classes)}
        height, width = self._shape
        most = min(_JOB_FILES, max(_JOB_BYTES // (height * width * 3), 1))
        batch: list[ImageFile] = []
        pixels = 0
        for file in self._files:
            if file.split != split:
                continue
            rows, columns = self._sizes[file.name]
            if batch and (len(batch) >= most or pixels + rows * columns > _JOB_PIXELS):
                yield self._job(batch, labels)
                batch, pixels = [], 0
            batch.append(file)
            pixels += rows * columns
        if batch:
            yield self._job(batch, labels)

    def _job(self, batch: list[ImageFile], labels: dict[str, int]) -> DecodeJob:
        names = [file.name for file in batch]
        return DecodeJob([self._path(n) for n in names], names, [labels[f.class_name] for f in batch], self._shape)

    def _path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def _refuse(self) -> None:
        total = len(self.listing.files) + len(self.listing.stray)
        name, reason = self._bad[0]
        raise BadFilesError(
            f"{len(self._bad):,} of {_files(total)} in {show(self.root)} can't be read as images, the first is "
            f"{show(name)} ({reason}); remove them, or leave them out with --skip-bad",
            self._bad,
        )


def _files(count: int) -> str:
    return f"{count:,} file" + ("" if count == 1 else "s")


def _examples(bad: list[tuple[str, str]]) -> str:
    shown = "; ".join(f"{show(name)} ({reason})" for name, reason in bad[:3])
    return shown + ("; ..." if len(bad) > 3 else "")


def _by(shape: tuple[int, ...]) -> str:
    height, width = shape
    return f"{width}x{height}"
