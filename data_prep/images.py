"""One image file to RGB bytes. Runs in worker processes: imports only NumPy and Pillow."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from fast_train.common.text import one_line

_EXIF_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_SIXTEEN_BIT = {"I;16", "I;16B", "I;16L", "I;16N", "I"}
_WITH_ALPHA = {"RGBA", "LA", "PA", "RGBa", "La"}
_EXIF_OF_PNG = {"exif", "Raw profile type exif"}
_USUAL_FORMATS = ("PNG", "JPEG", "WEBP")
# Pillow hands EPS to Ghostscript: a program to be run on files from anywhere. Photographs come in other formats.
_REFUSED_FORMATS = {"EPS"}


class BadImageError(ValueError):
    """The file is not an image that can be read; the message is the reason alone."""


def read_size(path: str) -> tuple[int, int]:
    """(height, width) of an image as its header has it, the EXIF orientation applied. Raises BadImageError."""
    with _open(path) as image:
        width, height = image.size
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            # Of a turned one, Pillow tells the sides that one sees, not those that the file has.
            width, height = int(image.tag_v2[_TIFF_WIDTH]), int(image.tag_v2[_TIFF_HEIGHT])
        # Pillow decodes a whole PNG to look for EXIF data after its pixels; `read_rgb` fits such an image.
        known = image.format != "PNG" or not _EXIF_OF_PNG.isdisjoint(image.info)
        turned = known and _orientation(image) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def read_rgb(path: str, shape: tuple[int, int] | None = None) -> tuple[NDArray[np.uint8], bool]:
    """Decode an image file to uint8 [H, W, 3]; also whether it was resized.

    EXIF orientation is applied; of an animation the first frame is taken; transparency is composited on black;
    16-bit greyscale is scaled to 8 bits (rounded, white stays white). An image of another ``shape`` (height, width) is
    scaled, antialiased, to cover it and cropped at the centre. Raises BadImageError, for a truncated file too.
    """
    with _open(path) as image:
        if shape is not None:
            # A JPEG decodes to a fraction of its size in a fraction of the time; twice the target loses nothing.
            image.draft(None, (2 * shape[1], 2 * shape[0]))
        image.load()
        upright = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
        rgb = _to_rgb(upright)
    resized = shape is not None and rgb.size != (shape[1], shape[0])
    if shape is not None and resized:
        rgb = ImageOps.fit(rgb, (shape[1], shape[0]), method=Image.Resampling.LANCZOS)
    return np.asarray(rgb), resized


@contextmanager
def _open(path: str) -> Iterator[Image.Image]:
    """The image in a file, its pixels not read yet; whatever goes wrong with it in the block is a BadImageError."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BadImageError("not a regular file")
        # A file that Pillow opens itself it may map into memory, and then reads the rows of a turned TIFF wrongly.
        with open(path, "rb") as file, Image.open(file, formats=_formats()) as image:
            _check(image)
            yield image
    except (BadImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        empty = os.path.getsize(path) == 0
        raise BadImageError("empty file" if empty else "not an image that Pillow can read") from error
    except Exception as error:
        raise BadImageError(_reason(error)) from error


def _check(image: Image.Image) -> None:
    width, height = image.size
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise BadImageError(f"{width}x{height} pixels, {_too_many()}")
    # 32 bits; Pillow 10 has 16-bit PNG in this mode too.
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise BadImageError("its pixels are numbers of no known range; store it with 8 or 16 bits, unsigned")


def _too_many() -> str:
    return f"more than the {Image.MAX_IMAGE_PIXELS:,} that are read; make it smaller"


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return (*_USUAL_FORMATS, *(name for name in Image.ID if name not in _REFUSED_FORMATS.union(_USUAL_FORMATS)))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:
        # Pillow raises a dozen types on EXIF data that is garbage; the pixels may be fine.
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    transparent = image.mode in _WITH_ALPHA or "transparency" in image.info
    if image.mode == "RGB" and not transparent:
        return image
    if image.mode in _SIXTEEN_BIT:
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if transparent:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, rgba).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"its pixels are {_too_many()}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)[:100]


@dataclass(frozen=True)
class DecodeJob:
    """Files to decode to one shape (height, width), with their labels and the names to report them by."""

    paths: list[str]
    names: list[str]
    labels: list[int]
    shape: tuple[int, int]


@dataclass(frozen=True)
class Decoded:
    """images uint8 [n, H, W, 3] and labels int64 [n] of the files that are images; the others with their reasons."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    resized: int
    bad: list[tuple[str, str]]


def decode(job: DecodeJob) -> Decoded:
    """Decode the files of one job, in order; one that is not an image is left out and reported."""
    images = np.empty((len(job.paths), *job.shape, 3), dtype=np.uint8)
    labels: list[int] = []
    bad: list[tuple[str, str]] = []
    resized = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path, name, label in zip(job.paths, job.names, job.labels, strict=True):
            try:
                images[len(labels)], was_resized = read_rgb(path, job.shape)
            except BadImageError as error:
                bad.append((name, str(error)))
                continue
            labels.append(label)
            resized += was_resized
    return Decoded(images[: len(labels)], np.array(labels, dtype=np.int64), resized, bad)


def scan(paths: list[str]) -> list[tuple[int, int] | str]:
    """For each file its (height, width), or the reason why it is not an image."""
    results: list[tuple[int, int] | str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in paths:
            try:
                results.append(read_size(path))
            except BadImageError as error:
                results.append(str(error))
    return results
