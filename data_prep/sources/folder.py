"""A folder of images in class folders."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from fast_train.common.cores import usable_cores
from fast_train.common.files import user_path
from fast_train.common.text import show
from fast_train.data_prep.errors import BadFilesError, PreparedSetError
from fast_train.data_prep.formats.ragged import LONGEST_SIDE
from fast_train.data_prep.images import FITS, Files, Found, Header, Reading, decode, scan
from fast_train.data_prep.keep import STORES, Keeping, keep
from fast_train.data_prep.manifest import Manifest, RaggedShapes
from fast_train.data_prep.processes import WorkerPool
from fast_train.data_prep.sources.base import SPLITS, Chunk, EncodedChunk, Plan, PlanChangedError, Source
from fast_train.data_prep.sources.listing import (
    ImageFile,
    Listing,
    draw_split,
    linked_files,
    list_folder,
)

_DEFAULT_TEST_FRACTION = 0.2
#: Images of one size with no longer side are stored as pixels; others, and those of several sizes, as files.
_LARGEST_PIXELS_SIDE = 128
#: Neither black nor white drawings vanish on it.
_DEFAULT_BACKGROUND = (128, 128, 128)
_SCAN_FILES = 500
# A job is as much as a process does in a fraction of a second, and returns a few megabytes.
_JOB_FILES, _JOB_PIXELS, _JOB_BYTES = 256, 8_000_000, 8_000_000


class ImageFolder(Source):
    """``folder:DIR``: DIR/train/CLASS/** with DIR/val/CLASS/** or DIR/test/CLASS/** or both, or DIR/CLASS/**, split
    here."""

    kind, takes = "folder", "DIR"
    accepts = frozenset(
        {"size", "test_fraction", "val_fraction", "split_seed", "skip_bad", "workers", "background", "fit"}
        | {"shorter_side", "store"}
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        #: What the user named, and where the paths of the files begin.
        self.place = self.root = Path(os.path.realpath(user_path(self.argument)))
        self._seed = self.options.split_seed or 0
        colour = self.options.background
        self._background = _DEFAULT_BACKGROUND if colour is None else _colour(colour)
        self._fit = _choice("--fit", self.options.fit, FITS)
        side = Keeping.shorter_side if self.options.shorter_side is None else self.options.shorter_side
        if not 1 <= side <= LONGEST_SIDE:
            raise PreparedSetError(f"--shorter-side {side} is out of range; give 1 to {LONGEST_SIDE}")
        store = _choice("--store", self.options.store, STORES)
        self._keeping = Keeping(side, store, self.encoding.ragged_quality)
        self._check_shape_flags()
        self._listing: Listing | None = None
        self._pool: WorkerPool | None = None
        # What is known of the files that are images, as far as is known, and of the others.
        self._headers: dict[str, Header] = {}
        self._bad: list[tuple[str, str]] = []
        self._begin(())

    def _check_shape_flags(self) -> None:
        """PreparedSetError for flags of squares and of images that keep their shapes at a time."""
        size, options = self.options.size, self.options
        if size is None and options.fit is not None:
            raise PreparedSetError("--fit means nothing without --size, as images keep their shapes; leave it out")
        if size is not None and (options.shorter_side is not None or options.store is not None):
            flag = "--store" if options.shorter_side is None else "--shorter-side"
            raise PreparedSetError(f"{flag} means nothing with --size, which makes squares; leave one of them out")

    def _begin(self, files: Iterable[ImageFile]) -> None:
        """Nothing of these files has been decoded."""
        self._files = list(files)
        self._resized = self._transparent = self._copied = 0
        self._one_colour: list[str] = []
        # Of each split, `file_digest` of its images, in order.
        self._digests: dict[str, array[int]] = {}

    @property
    def default_name(self) -> str:
        return self.place.name

    @property
    def listing(self) -> Listing:
        if self._listing is None:
            self._listing = self._list()
        return self._listing

    def _list(self) -> Listing:
        return list_folder(self.root)

    def identity(self) -> dict[str, Any]:
        fractions = self._fractions()
        return {
            "kind": self.kind,
            "listing": self.listing.digest,
            "size": self.options.size,
            "test_fraction": fractions.get("test"),
            "split_seed": self._seed if fractions else None,
            "skip_bad": self.options.skip_bad,
            "background": self.options.background and ",".join(map(str, self._background)),
            # Sets of earlier versions say nothing of these.
            "fit": None if self._fit == FITS[0] else self._fit,
            "val_fraction": fractions.get("validation"),
            "shorter_side": None if self._keeping.shorter_side == Keeping.shorter_side else self._keeping.shorter_side,
            "store": None if self._keeping.store == STORES[0] else self._keeping.store,
            "splits": None if "validation" not in self.listing.splits else ",".join(self.listing.splits),
        }

    def outdated(self, manifest: Manifest) -> str | None:
        if manifest.ragged is not None or self.options.size is not None:
            return None
        height, width = manifest.image_shape[:2]
        if manifest.source.get("resized") or max(height, width) > _LARGEST_PIXELS_SIDE:
            return f"images of {_by((height, width))} pixels, not of their own shapes"
        return None

    def _fractions(self) -> dict[str, float]:
        """Of the splits that are drawn, in this order, which part of the training images each gets."""
        options, there = self.options, self.listing.splits
        fractions: dict[str, float] = {}
        if "test" not in there and ("validation" not in there or options.test_fraction is not None):
            fractions["test"] = _DEFAULT_TEST_FRACTION if options.test_fraction is None else options.test_fraction
        if "validation" not in there and options.val_fraction is not None:
            fractions["validation"] = options.val_fraction
        return fractions

    def plan(self, scratch: Path) -> Plan:
        if self._pool is None:
            self._announce()
            self._pool = WorkerPool(self.options.workers or usable_cores())
            self._scan()
        if not self._headers:
            self._refuse()
        self._begin(self._good_files())
        self._label_of = {name: label for label, name in enumerate(self.listing.classes)}
        self._shape, self._reading = self._choose_shape(), self._choose_reading()
        counts = Counter(file.split for file in self._files)
        splits = [split for split in SPLITS if split in self.listing.splits or split in self._fractions()]
        for split in splits:
            if not counts[split]:
                raise PreparedSetError(f"no image of {show(self.place)} is left for the {split} split; add images")
        self._announce_plan()
        ragged = isinstance(self._shape, RaggedShapes)
        return Plan(
            classes=self.listing.classes,
            shape=self._shape if isinstance(self._shape, RaggedShapes) else (*self._shape, 3),
            counts={split: counts[split] for split in splits},
            stored_bytes={split: self._stored_bytes(split) for split in splits} if ragged else {},
        )

    def _stored_bytes(self, split: str) -> int:
        headers = (self._headers[file.name] for file in self._files if file.split == split)
        return sum(map(self._keeping.stored_bytes, headers))

    def read(self, split: str) -> Iterator[Chunk] | Iterator[EncodedChunk]:
        self._digests[split] = array("Q")
        return self._keep(split) if isinstance(self._shape, RaggedShapes) else self._decode(split, self._shape)

    def _decode(self, split: str, shape: tuple[int, int]) -> Iterator[Chunk]:
        assert self._pool is not None, "plan comes first"
        most = max(_JOB_BYTES // (shape[0] * shape[1] * 3), 1)
        work = partial(decode, shape=shape, reading=self._reading)
        for decoded in self._pool.map(work, self._batches(split, most), say=self.display.say):
            labels = self._note(split, decoded)
            if len(labels):
                yield Chunk(decoded.images, labels, decoded.names)

    def _keep(self, split: str) -> Iterator[EncodedChunk]:
        assert self._pool is not None, "plan comes first"
        work = partial(keep, keeping=self._keeping, reading=self._reading)
        for kept in self._pool.map(work, self._batches(split, _JOB_FILES), say=self.display.say):
            labels = self._note(split, kept)
            self._copied += kept.copied
            if len(labels):
                yield EncodedChunk(kept.images, labels, kept.names, kept.pixels, kept.histogram)

    def _note(self, split: str, found: Found) -> NDArray[np.int64]:
        """Add up what a job found; the labels of its images, int64 [n]."""
        self._bad.extend(found.bad)
        self._resized += found.resized
        self._transparent += found.transparent
        self._one_colour += found.one_colour
        self._digests[split].extend(found.files)
        return np.array(found.labels, dtype=np.int64)

    def outcome(self) -> dict[str, Any]:
        if self._bad and not self.options.skip_bad:
            self._refuse()
        self._check_plan()
        if self._bad:
            self.display.say(f"skipped {_files(len(self._bad))} that can't be read as images: {_examples(self._bad)}")
        self._announce_content()
        ragged = isinstance(self._shape, RaggedShapes)
        return {
            "path": show(self.place),
            "skipped": len(self._bad),
            "resized": self._resized,
            "transparent": self._transparent,
            "one_colour": len(self._one_colour),
            "in_two_splits": self._announce_twins(),
            "reading": asdict(self._reading),
            **({"copied": self._copied, "keeping": asdict(self._keeping)} if ragged else {}),
        }

    def _announce_twins(self) -> int:
        """Say which images lie in two splits, by the bytes of their files; of those in the later one, the number."""
        earlier, names, twins = np.array([], dtype=np.uint64), list[str](), list[tuple[str, str]]()
        for split, digests in self._digests.items():
            own = np.array(digests, dtype=np.uint64)
            own_names = [file.name for file in self._files if file.split == split and file.name in self._headers]
            for place in np.flatnonzero(np.isin(own, earlier)).tolist():
                first = int(np.argmax(earlier == own[place]))
                twins.append((names[first], own_names[place]))
            earlier, names = np.concatenate([earlier, own]), names + own_names
        if twins:
            first_name, other = twins[0]
            self.display.say(
                f"{_images(len(twins))} in two splits, byte for byte the same, such as {show(first_name)} and "
                f"{show(other)}; remove one of each"
            )
        return len(twins)

    def _check_plan(self) -> None:
        """PlanChangedError where a file that can't be decoded had a part in the shape or in the draw of the test
        split: the set must be what it is without."""
        lost = [name for name, _ in self._bad if self._headers.pop(name, None)]
        rest = [file for file in self._files if file.name in self._headers]
        if lost and (not rest or self._choose_shape() != self._shape or self._good_files() != rest):
            self.display.say(f"once more without {_files(len(lost))} that can't be decoded, such as {show(lost[0])}")
            raise PlanChangedError

    def _good_files(self) -> list[ImageFile]:
        """The files that are images as far as is known, with their splits."""
        good = [file for file in self.listing.files if file.name in self._headers]
        for split, fraction in self._fractions().items():
            good = draw_split(good, self.listing.again, split, fraction=fraction, seed=self._seed)
        return good

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def _announce(self) -> None:
        listing = self.listing
        self.display.say(f"{show(self.place)}: {_files(len(listing.files))} in {len(listing.classes)} classes")
        for note in listing.notes:
            self.display.say(note)
        fractions, options = self._fractions(), self.options
        given = {"--test-fraction": options.test_fraction, "--val-fraction": options.val_fraction}
        for split, flag in (("test", "--test-fraction"), ("validation", "--val-fraction")):
            if given[flag] is not None and split not in fractions:
                self.display.say(f"the {self.kind} has its own {split} split: {flag} is not used")
        if options.split_seed is not None and not fractions:
            self.display.say(f"the {self.kind} has its own splits: --split-seed is not used")

    def _scan(self) -> None:
        """Find out the size of every image, and the files that are none."""
        assert self._pool is not None
        self._bad.extend((name, "in no class folder") for name in self.listing.stray)
        names = [file.name for file in self.listing.files]
        batches = [names[i : i + _SCAN_FILES] for i in range(0, len(names), _SCAN_FILES)]
        jobs = ([self._path(name) for name in batch] for batch in batches)
        results = self._pool.map(scan, jobs, say=self.display.say)
        sizes = set[tuple[int, int]]()
        with self.display.progress("sizes", len(names)) as advance:
            for batch, headers in zip(batches, results, strict=True):
                for name, header in zip(batch, headers, strict=True):
                    if isinstance(header, str):
                        self._bad.append((name, header))
                    else:
                        self._headers[name] = header
                        sizes.add((header.height, header.width))
                if sizes and self.options.size is None and not _are_pixels(sizes):
                    # Now, and not after a long scan.
                    self.encoding.check((), ragged=True)
                advance(len(batch))

    def _sizes(self) -> Counter[tuple[int, int]]:
        return Counter((header.height, header.width) for header in self._headers.values())

    def _choose_shape(self) -> tuple[int, int] | RaggedShapes:
        """(height, width) of the stored images, or what there is to know where each keeps its own."""
        size, sizes = self.options.size, self._sizes()
        if size is not None:
            return size, size
        if _are_pixels(sizes):
            only = next(iter(sizes))
            self._check_pixels_flags(only)
            return only
        stored = Counter[tuple[int, int]]()
        for (height, width), count in sizes.items():
            stored[self._keeping.stored_shape(height, width)] += count
        sides = Counter[int]()
        for shape, count in stored.items():
            sides[min(shape)] += count
        return RaggedShapes(
            height=max(height for height, _ in stored),
            width=max(width for _, width in stored),
            pixels=max(height * width for height, width in stored),
            side=median_low(sides.elements()),
        )

    def _check_pixels_flags(self, shape: tuple[int, int]) -> None:
        for flag, value in (("--shorter-side", self.options.shorter_side), ("--store", self.options.store)):
            if value is not None:
                raise PreparedSetError(
                    f"{flag} means nothing here: all images are {_by(shape)}, which are stored as pixels; leave it out"
                )

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
        if isinstance(self._shape, RaggedShapes):
            self._announce_shapes(sizes)
        elif resized := len(self._headers) - sizes[self._shape]:
            say(f"resizing {resized:,} of {len(self._headers):,} images, {_span(sizes)}, to {_by(self._shape)}")
            self._announce_fit(sizes, self._shape)
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

    def _announce_shapes(self, sizes: Counter[tuple[int, int]]) -> None:
        keeping = self._keeping
        scaled = sum(count for shape, count in sizes.items() if keeping.stored_shape(*shape) != shape)
        # What is longer than that once its shorter side is as asked.
        ratio = LONGEST_SIDE / keeping.shorter_side
        long = sum(count for shape, count in sizes.items() if max(shape) > max(ratio * min(shape), LONGEST_SIDE))
        how = f"; {scaled:,} are scaled down to {keeping.shorter_side} px on the shorter side" if scaled else ""
        how += f", {long:,} of them to {LONGEST_SIDE:,} on the longer" if long else ""
        flags = "--shorter-side N chooses another, " if scaled else ""
        self.display.say(
            f"{_images(len(self._headers))} of {_span(sizes)} keep their shapes{how} ({flags}--size N makes squares)"
        )

    def _announce_fit(self, sizes: Counter[tuple[int, int]], shape: tuple[int, int]) -> None:
        height, width = shape
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
        if self._copied:
            say(f"{self._copied:,} JPEG file{'' if self._copied == 1 else 's'} stored byte for byte")
        if self._transparent:
            ground = ",".join(map(str, self._background))
            say(f"{_images(self._transparent)} with transparent parts, laid on {ground} (--background chooses another)")
        if self._one_colour:
            say(f"{_images(len(self._one_colour))} of one single colour, such as {show(self._one_colour[0])}")

    def _batches(self, split: str, most: int) -> Iterator[Files]:
        """The files of each job, of which one has at most so many."""
        batch: list[ImageFile] = []
        pixels = 0
        for file in self._files:
            if file.split != split:
                continue
            header = self._headers[file.name]
            size = header.height * header.width
            if batch and (len(batch) >= min(_JOB_FILES, most) or pixels + size > _JOB_PIXELS):
                yield self._job(batch)
                batch, pixels = [], 0
            batch.append(file)
            pixels += size
        if batch:
            yield self._job(batch)

    def _job(self, files: list[ImageFile]) -> Files:
        names = [file.name for file in files]
        return Files(list(map(self._path, names)), names, [self._label_of[file.class_name] for file in files])

    def _path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def _refuse(self) -> None:
        total = len(self.listing.files) + len(self.listing.stray)
        name, reason = self._bad[0]
        raise BadFilesError(
            f"{len(self._bad):,} of {_files(total)} in {show(self.place)} can't be read as images, the first is "
            f"{show(name)} ({reason}); remove them, or leave them out with --skip-bad",
            self._bad,
        )


def _are_pixels(sizes: Collection[tuple[int, int]]) -> bool:
    """Whether images of these sizes are stored as pixels, rather than keep their shapes."""
    return len(sizes) == 1 and max(next(iter(sizes))) <= _LARGEST_PIXELS_SIDE


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


def _span(sizes: Counter[tuple[int, int]]) -> str:
    """From the smallest to the largest."""
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    low, high = ordered[0], ordered[-1]
    return _by(low) if low == high else f"{_by(low)} to {_by(high)}"


def _choice(flag: str, value: str | None, choices: tuple[str, ...]) -> str:
    """The value, or the first choice where there is none; PreparedSetError for what is no choice."""
    chosen = choices[0] if value is None else value
    if chosen not in choices:
        raise PreparedSetError(f"{flag} {show(chosen)} is not known; choose from {', '.join(choices)}")
    return chosen
