"""A folder of images in class folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import ImageColor

from fast_train.common.cores import usable_cores
from fast_train.common.files import user_path
from fast_train.common.text import show
from fast_train.data_prep.errors import BadFilesError, PreparedSetError
from fast_train.data_prep.images import FITS, DecodeJob, Header, Reading, decode, scan
from fast_train.data_prep.processes import WorkerPool
from fast_train.data_prep.sources.base import Chunk, Plan, PlanChangedError, Source
from fast_train.data_prep.sources.listing import (
    ImageFile,
    Listing,
    draw_test_split,
    linked_files,
    list_folder,
)

_DEFAULT_TEST_FRACTION = 0.2
#: Side of the stored square where the images have different sizes and none was asked for.
_DEFAULT_SIZE = 64
#: Images of one size with a longer side are stored as they are with a word on what that costs.
_LARGE_SIDE = 256
#: Neither black nor white drawings vanish on it.
_DEFAULT_BACKGROUND = (128, 128, 128)
_SCAN_FILES = 500
# A job is as much as a process does in a fraction of a second, and returns a few megabytes.
_JOB_FILES, _JOB_PIXELS, _JOB_BYTES = 256, 8_000_000, 8_000_000


class ImageFolder(Source):
    """``folder:DIR``: DIR/train/CLASS/** and DIR/test/CLASS/** (or val), or DIR/CLASS/**, split here."""

    kind = "folder"
    accepts = frozenset({"size", "test_fraction", "split_seed", "skip_bad", "workers", "background", "fit"})

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.root = Path(os.path.realpath(user_path(self.argument)))
        fraction = self.options.test_fraction
        self._test_fraction = _DEFAULT_TEST_FRACTION if fraction is None else fraction
        if not 0 < self._test_fraction < 1:
            raise PreparedSetError(f"--test-fraction {self._test_fraction:g} is not between 0 and 1")
        self._seed = self.options.split_seed or 0
        colour = self.options.background
        self._background = _DEFAULT_BACKGROUND if colour is None else _colour(colour)
        self._fit = Reading.fit if self.options.fit is None else self.options.fit
        if self._fit not in FITS:
            raise PreparedSetError(f"--fit {show(self._fit)} is not known; choose from {', '.join(FITS)}")
        self._listing: Listing | None = None
        self._pool: WorkerPool | None = None
        # What is known of the files that are images, as far as is known, and of the others.
        self._headers: dict[str, Header] = {}
        self._bad: list[tuple[str, str]] = []
        self._begin(())

    def _begin(self, files: Iterable[ImageFile]) -> None:
        """Nothing of these files has been decoded."""
        self._files = list(files)
        self._resized = self._transparent = 0
        self._one_colour: list[str] = []

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
            "background": self.options.background and ",".join(map(str, self._background)),
            # Sets of earlier versions say nothing of it.
            "fit": None if self._fit == Reading.fit else self._fit,
        }

    def plan(self, scratch: Path) -> Plan:
        if self._pool is None:
            self._announce()
            self._pool = WorkerPool(self.options.workers or usable_cores())
            self._scan()
        if not self._headers:
            self._refuse()
        self._begin(self._good_files())
        self._shape, self._reading = self._choose_shape(), self._choose_reading()
        counts = Counter(file.split for file in self._files)
        for split in ("train", "test"):
            if not counts[split]:
                raise PreparedSetError(f"no image of {show(self.root)} is left for the {split} split; add images")
        self._announce_plan()
        return Plan(
            classes=self.listing.classes,
            image_shape=(*self._shape, 3),
            counts={"train": counts["train"], "test": counts["test"]},
        )

    def read(self, split: str) -> Iterator[Chunk]:
        assert self._pool is not None, "plan comes first"
        for decoded in self._pool.map(decode, self._jobs(split), say=self.display.say):
            self._bad.extend(decoded.bad)
            self._resized += decoded.resized
            self._transparent += decoded.transparent
            self._one_colour += decoded.one_colour
            if len(decoded.labels):
                yield Chunk(decoded.images, decoded.labels, decoded.names)

    def outcome(self) -> dict[str, Any]:
        if self._bad and not self.options.skip_bad:
            self._refuse()
        self._check_plan()
        if self._bad:
            self.display.say(f"skipped {_files(len(self._bad))} that can't be read as images: {_examples(self._bad)}")
        self._announce_content()
        return {
            "path": show(self.root),
            "skipped": len(self._bad),
            "resized": self._resized,
            "transparent": self._transparent,
            "one_colour": len(self._one_colour),
            "reading": asdict(self._reading),
        }

    def _check_plan(self) -> None:
        """PlanChangedError where a file that can't be decoded had a part in the shape or in the draw of the test
        split: the set must be what it is without."""
        lost = [name for name, _ in self._bad if self._headers.pop(name, None)]
        rest = [file for file in self._files if file.name in self._headers]
        if lost and (self._choose_shape() != self._shape or self._good_files() != rest):
            self.display.say(f"once more without {_files(len(lost))} that can't be decoded, such as {show(lost[0])}")
            raise PlanChangedError

    def _good_files(self) -> list[ImageFile]:
        """The files that are images as far as is known, with their splits."""
        good = [file for file in self.listing.files if file.name in self._headers]
        if self.listing.has_test_split:
            return good
        return draw_test_split(good, self.listing.again, test_fraction=self._test_fraction, seed=self._seed)

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
        results = self._pool.map(scan, jobs, say=self.display.say)
        with self.display.progress("sizes", len(names)) as advance:
            for batch, headers in zip(batches, results, strict=True):
                for name, header in zip(batch, headers, strict=True):
                    if isinstance(header, str):
                        self._bad.append((name, header))
                    else:
                        self._headers[name] = header
                advance(len(batch))

    def _sizes(self) -> Counter[tuple[int, int]]:
        return Counter((header.height, header.width) for header in self._headers.values())

    def _choose_shape(self) -> tuple[int, int]:
        """(height, width) of the stored images."""
        sizes = self._sizes()
        if self.options.size is None and len(sizes) == 1:
            return next(iter(sizes))
        return (self.options.size or _DEFAULT_SIZE,) * 2

    def _choose_reading(self) -> Reading:
        """One rule for all images of 16 bits: those of a camera often use 12 of them, and 8 bits would keep 4."""
        bits = max((header.grey_bits for header in self._headers.values()), default=0)
        return Reading(self._background, max(bits, 8) if bits else 16, self._fit)

    def _announce_plan(self) -> None:
        say, sizes = self.display.say, self._sizes()
        # Some give images a greater weight that way; others have had their doubles replaced by links.
        for within, what in ((False, "in two splits or classes by links"), (True, "counted again in a class by links")):
            if shared := linked_files(self._files, self.listing.again, in_one_class=within):
                first, other = shared[0]
                say(f"{_files(len(shared))} {what}, such as {show(first)}, also {show(other)}")
        resized = len(self._headers) - sizes[self._shape]
        if resized:
            ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
            low, high = ordered[0], ordered[-1]
            span = _by(low) if low == high else f"{_by(low)} to {_by(high)}"
            chosen = "" if self.options.size else " (--size N chooses another)"
            say(f"resizing {resized:,} of {len(self._headers):,} images, {span}, to {_by(self._shape)}{chosen}")
            self._announce_fit(sizes)
        elif self.options.size is None and max(self._shape) > _LARGE_SIDE:
            say(f"all images are {_by(self._shape)} and stored as they are, which trains slowly; --size N stores NxN")
        grey = sum(header.grey_bits > 0 for header in self._headers.values())
        if grey and self._reading.bits < 16:
            top = (1 << self._reading.bits) - 1
            say(f"{_images(grey)} of 16-bit greyscale use {self._reading.bits} bits: 0 to {top:,} becomes 0 to 255")
        colour = [header.colour_bits for header in self._headers.values() if header.colour_bits]
        if colour and max(colour) < 16:
            say(
                f"{_images(len(colour))} of 16 bits a colour use {max(colour)} of them, of which the lower 8 are lost; "
                "store them with 8 bits, scaled to 0 to 255"
            )

    def _announce_fit(self, sizes: Counter[tuple[int, int]]) -> None:
        height, width = self._shape
        others = sum(count for (h, w), count in sizes.items() if h * width != w * height)
        ground = ",".join(map(str, self._background))
        how = {
            "crop": "cropped at the centre (--fit pad or stretch keeps all of it)",
            "pad": f"padded with {ground} (--background chooses another)",
            "stretch": "stretched",
        }
        if others:
            self.display.say(f"{_images(others)} of another shape, {how[self._fit]}")

    def _announce_content(self) -> None:
        say = self.display.say
        if self._transparent:
            ground = ",".join(map(str, self._background))
            say(f"{_images(self._transparent)} with transparent parts, laid on {ground} (--background chooses another)")
        if self._one_colour:
            say(f"{_images(len(self._one_colour))} of one single colour, such as {show(self._one_colour[0])}")

    def _jobs(self, split: str) -> Iterator[DecodeJob]:
        labels = {name: label for label, name in enumerate(self.listing.classes)}
        height, width = self._shape
        most = min(_JOB_FILES, max(_JOB_BYTES // (height * width * 3), 1))
        batch: list[ImageFile] = []
        pixels = 0
        for file in self._files:
            if file.split != split:
                continue
            header = self._headers[file.name]
            size = header.height * header.width
            if batch and (len(batch) >= most or pixels + size > _JOB_PIXELS):
                yield self._job(batch, labels)
                batch, pixels = [], 0
            batch.append(file)
            pixels += size
        if batch:
            yield self._job(batch, labels)

    def _job(self, batch: list[ImageFile], labels: dict[str, int]) -> DecodeJob:
        names = [file.name for file in batch]
        return DecodeJob(
            [self._path(name) for name in names],
            names,
            [labels[file.class_name] for file in batch],
            self._shape,
            self._reading,
        )

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


def _images(count: int) -> str:
    return f"{count:,} image" + ("" if count == 1 else "s")


def _colour(text: str) -> tuple[int, int, int]:
    try:
        red, green, blue, *_ = ImageColor.getrgb(f"rgb({text})" if text[:1].isdigit() else text)
    except ValueError:
        red = green = blue = -1
    if not all(0 <= level <= 255 for level in (red, green, blue)):
        raise PreparedSetError(f"--background {show(text)} is no colour; give a name, or R,G,B of 0 to 255 each")
    return red, green, blue


def _examples(bad: list[tuple[str, str]]) -> str:
    shown = "; ".join(f"{show(name)} ({reason})" for name, reason in bad[:3])
    return shown + ("; ..." if len(bad) > 3 else "")


def _by(shape: tuple[int, ...]) -> str:
    height, width = shape
    return f"{width}x{height}"
