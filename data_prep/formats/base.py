"""What every format is: a writer of one split, and how images are stored where there is a choice."""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fast_train.common.cores import usable_cores
from fast_train.common.files import naming, sync
from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.formats.decode import is_jpeg

FFCV_MODES = ("raw", "jpg", "proportion")
DALI_MODES = ("raw", "jpg")
#: In the manifest, the mode of images that keep their own shapes: JPEG and PNG files.
ENCODED = "encoded"
_JPEG_TABLES = 1024


@dataclass(frozen=True, kw_only=True)
class FormatOptions:
    """Modes: ``raw`` keeps the bytes as they are; ``jpg`` encodes them, with loss; ``proportion`` encodes a part.

    ``jpeg_quality``: 1 to 100; None: 90, and of images that keep their own shapes 95. ``jpeg_share``: the part of the
    images that ``proportion`` encodes, 0 to 1.

    Images that keep their shapes are encoded before any writer gets them: the same bytes go to every format.
    """

    ffcv_mode: str = "raw"
    dali_mode: str = "raw"
    jpeg_quality: int | None = None
    jpeg_share: float = 0.5

    def __post_init__(self) -> None:
        for flag, mode, modes in (
            ("--ffcv-mode", self.ffcv_mode, FFCV_MODES),
            ("--dali-mode", self.dali_mode, DALI_MODES),
        ):
            if mode not in modes:
                raise PreparedSetError(f"{flag} {mode} is not known; choose from {', '.join(modes)}")
        if not 1 <= self.quality <= 100:
            raise PreparedSetError(f"--jpeg-quality {self.jpeg_quality} is out of range; give 1 to 100")
        if not 0 <= self.jpeg_share <= 1:
            raise PreparedSetError(f"--jpeg-share {self.jpeg_share} is out of range; give 0 to 1")

    @property
    def quality(self) -> int:
        return 90 if self.jpeg_quality is None else self.jpeg_quality

    @property
    def ragged_quality(self) -> int:
        return 95 if self.jpeg_quality is None else self.jpeg_quality

    def check(self, formats: Sequence[str], *, ragged: bool | None) -> None:
        """PreparedSetError for a flag that makes no difference to files of these formats. ragged: whether the images
        keep their own shapes; None where that is not known yet."""
        modes = {"ffcv": self.ffcv_mode, "dali": self.dali_mode}
        used = {mode for name, mode in modes.items() if name in formats}
        makes_a_difference = {
            "ffcv_mode": "ffcv" in formats and not ragged,
            "dali_mode": "dali" in formats and not ragged,
            "jpeg_quality": not used <= {"raw"} or ragged is not False,
            "jpeg_share": "proportion" in used and not ragged,
        }
        what = "images that keep their shapes" if ragged else f"--formats {','.join(formats)}"
        for name, matters in makes_a_difference.items():
            if not matters and getattr(self, name) != getattr(FormatOptions, name):
                raise PreparedSetError(f"--{name.replace('_', '-')} means nothing to {what}; leave it out")

    def encoding(self, mode: str) -> dict[str, Any]:
        """What the manifest says of files written in a mode: the mode and what else it depends on."""
        if mode == "raw":
            return {"mode": mode}
        if mode == "jpg":
            return {"mode": mode, "quality": self.quality}
        return {"mode": mode, "quality": self.quality, "share": self.jpeg_share}

    def ragged_encoding(self) -> dict[str, Any]:
        """What the manifest says of files that hold images which keep their shapes. quality: of those that were
        encoded."""
        return {"mode": ENCODED, "quality": self.ragged_quality}

    def stored_bytes(self, mode: str, image_shape: Sequence[int]) -> int:
        """Bytes of one stored image of shape (H, W, C), at most: as JPEG hardly more than raw, and its tables."""
        return math.prod(image_shape) + (0 if mode == "raw" else _JPEG_TABLES)


class SplitFile(ABC):
    """The files of one split in one format while they are written."""

    @abstractmethod
    def finish(self) -> tuple[str, ...]:
        """Have all of it on the disk; the names of the files in the folder, the main one first."""

    @abstractmethod
    def close(self) -> None:
        """Release them, finished or not; doing so twice is fine."""


class SplitWriter(ABC):
    """Writes one split of a set in one format, as the images come.

    folder: to write into. count: the greatest number of images that will come; fewer may, since files that turn out
    not to be images are left out.
    """

    _file: SplitFile

    def __init__(self, folder: Path, split: str, count: int) -> None:
        self._folder, self._split, self._count = folder, split, count
        self._written = 0
        # None is started before there is work for it.
        self._threads = ThreadPoolExecutor(usable_cores(), thread_name_prefix="images")

    @abstractmethod
    def write(self, images: Any, labels: NDArray[np.int64]) -> None:
        """Append images with their labels int64 [n]; ValueError for what does not fit."""

    def close(self) -> tuple[str, ...]:
        """`SplitFile.finish`; ValueError where nothing was written."""
        if not self._written:
            raise ValueError(f"the {self._split} split would hold no image")
        names = self._file.finish()
        self.abort()
        return names

    def abort(self) -> None:
        """Release files and threads without finishing."""
        self._file.close()
        self._threads.shutdown(cancel_futures=True)


class Writer(SplitWriter):
    """Writes images of one shape, image_shape: (H, W, C)."""

    def __init__(
        self, folder: Path, split: str, count: int, image_shape: Sequence[int], options: FormatOptions
    ) -> None:
        super().__init__(folder, split, count)
        self._shape = tuple(image_shape)

    @staticmethod
    @abstractmethod
    def encoding(options: FormatOptions) -> dict[str, Any]:
        """What the manifest says of how the images are stored; ``mode`` is ``raw`` where it is as they came."""

    @staticmethod
    @abstractmethod
    def estimate_bytes(count: int, image_shape: Sequence[int], options: FormatOptions) -> int:
        """Bytes on the disk that ``count`` images will take, at most."""

    def write(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        """Append images uint8 [n, H, W, C] and labels int64 [n]; ValueError for other shapes or more than fit."""
        end = self._written + len(labels)
        if images.dtype != np.uint8 or images.shape != (len(labels), *self._shape) or end > self._count:
            raise ValueError(
                f"the {self._split} split takes uint8 images of shape {self._shape}, {self._count} in all; got "
                f"{len(labels)} labels and {images.dtype} {images.shape} at number {self._written}"
            )
        self._append(images, labels)
        self._written = end

    @abstractmethod
    def _append(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        """`write` what fits."""


class Encoded(NamedTuple):
    """An image as it is stored: a JPEG or PNG file of three channels (a JPEG file may be grey), upright, and its shape
    in pixels."""

    data: bytes
    height: int
    width: int

    @property
    def is_jpeg(self) -> bool:
        return is_jpeg(self.data)


class RaggedWriter(SplitWriter):
    """Writes images that keep their own shapes, the largest of ``pixels`` pixels."""

    def __init__(self, folder: Path, split: str, count: int, pixels: int) -> None:
        super().__init__(folder, split, count)
        self._pixels = pixels

    @staticmethod
    @abstractmethod
    def estimate_bytes(count: int, content: int, pixels: int) -> int:
        """Bytes on the disk that ``count`` images will take, of which the files have ``content`` bytes in all and the
        largest ``pixels`` pixels."""

    def write(self, images: Sequence[Encoded], labels: NDArray[np.int64]) -> None:
        """Append images with their labels int64 [n]; ValueError for one that is too large, or more than fit."""
        end = self._written + len(labels)
        fits = all(0 < image.height * image.width <= self._pixels and _has_room(image) for image in images)
        if len(images) != len(labels) or end > self._count or not fits:
            raise ValueError(
                f"the {self._split} split takes {self._count} images of up to {self._pixels} pixels; got "
                f"{len(labels)} labels and {len(images)} images at number {self._written}"
            )
        self._append(images, labels)
        self._written = end

    @abstractmethod
    def _append(self, images: Sequence[Encoded], labels: NDArray[np.int64]) -> None:
        """`write` what fits."""


def most_bytes(pixels: int) -> int:
    """Of a stored file, by the number of its pixels: however badly it compresses, with tables and some metadata."""
    return max(6 * pixels, 1 << 16)


def _has_room(image: Encoded) -> bool:
    return len(image.data) <= most_bytes(image.height * image.width)


def flush(file: IO[Any]) -> None:
    """Have what was written to a file on the disk."""
    with naming(Path(file.name)):
        file.flush()
        sync(file.fileno())


def jpeg_of(image: NDArray[np.uint8], quality: int) -> bytes:
    """The JPEG file of an image uint8 [H, W, 1 or 3]. Pillow releases Python's lock meanwhile."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(file, "JPEG", quality=quality)
    return file.getvalue()
