"""One image file to RGB bytes. Runs in worker processes: imports only NumPy and Pillow."""

from __future__ import annotations

import hashlib
import os
import resource
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fast_train.common.text import one_line
from fast_train.data_prep.bare import orientation_of, strip

# Of Pillow's formats those that it decodes itself, without a program that it starts or a file that it finds inside.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "DIB", "ICO", "TGA")
_MOST_FILE_BYTES = 1 << 30
#: How an image of another shape is brought to the set's: `Reading`.
FITS = ("crop", "pad", "stretch")
# Four copies of the most pixels that are read take less, and so do the libraries.
_MOST_WORKER_BYTES = 4 << 30
_SIXTEEN_BIT = {"I;16", "I;16B", "I;16L", "I;16N", "I"}
_WITH_ALPHA = {"RGBA", "LA", "PA", "RGBa", "La"}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

P = TypeVar("P", bound=tuple[Any, ...])


class BadImageError(ValueError):
    """The file is not an image that can be read; the message is the reason alone."""


@dataclass(frozen=True)
class Reading:
    """How to read what the stored images can't hold. background: the red, green and blue (0 to 255) that show where an
    image is transparent, and beside one that is padded. bits: how many of 16 bits a grey image uses; 2**bits - 1
    becomes 255. fit: an image of another shape is scaled to cover the stored one and cropped at the centre (crop),
    scaled to lie within it (pad), or scaled in each direction by itself (stretch)."""

    background: tuple[int, int, int] = (0, 0, 0)
    bits: int = 16
    fit: str = "crop"

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Reading:
        """As a manifest or a checkpoint has it; ValueError for what is none. Older ones say nothing: the defaults."""
        background, bits = tuple(record.get("background", cls.background)), record.get("bits", cls.bits)
        numbers, fit = (*background, bits), record.get("fit", cls.fit)
        levels = len(numbers) == 4 and all(isinstance(n, int) and 0 <= n <= 255 for n in numbers)
        if not levels or not 8 <= bits <= 16 or fit not in FITS:
            raise ValueError("the background, bits and fit that images were read with are not usable; train anew")
        return cls((background[0], background[1], background[2]), bits, fit)


class Header(NamedTuple):
    """What there is to know of an image before it is read. height, width: as it is shown. grey_bits, colour_bits: of an
    image of 16 bits a channel, how many of them it uses; 0 for any other. jpeg: whether the file is one; size: its
    bytes."""

    height: int
    width: int
    grey_bits: int
    colour_bits: int
    jpeg: bool
    size: int


class Picture(NamedTuple):
    """pixels: uint8 [H, W, 3]. resized: whether it had another size. transparent: whether the background shows."""

    pixels: NDArray[np.uint8]
    resized: bool
    transparent: bool


def read_header(path: str) -> Header:
    """Size and depth of an image. Raises BadImageError."""
    with open_image(path, pixels=False) as (image, orientation):
        tiles = getattr(image, "tile", None)
        header = Header(*_shown(image, orientation), 0, 0, image.format == "JPEG", os.path.getsize(path))
        if image.mode not in _SIXTEEN_BIT and not (tiles and ";16" in str(tiles[0][3])):
            return header
    # Its pixels tell how many of 16 bits it uses.
    with open_image(path) as (image, _):
        if image.mode in _SIXTEEN_BIT:
            return header._replace(grey_bits=int(np.asarray(image).max()).bit_length())
        # Of colours Pillow gives the upper 8 bits.
        most = int(np.asarray(image.convert("RGB")).max())
        return header._replace(colour_bits=8 + most.bit_length())


def read_rgb(path: str, shape: tuple[int, int] | None = None, reading: Reading | None = None) -> Picture:
    """Decode an image file.

    EXIF orientation is applied; of an animation the first frame is taken; ``reading`` says what becomes of transparency
    and of 16-bit greyscale (default: black, and all bits), and how an image of another ``shape`` (height, width) is
    brought to it (default: cropped), antialiased. Raises BadImageError, for a truncated file too.
    """
    reading = reading or Reading()
    with open_image(path) as (image, orientation):
        rgb, transparent = read_upright(image, orientation, shape, reading)
    size = rgb.size if shape is None else (shape[1], shape[0])
    if rgb.size == size:
        return Picture(np.asarray(rgb), False, transparent)
    return Picture(np.asarray(_fitted(rgb, size, reading)), True, transparent)


def read_upright(
    image: Image.Image, orientation: int, shape: tuple[int, int] | None, reading: Reading
) -> tuple[Image.Image, bool]:
    """The pixels of an open image in mode RGB, upright, and whether the background shows. They may have a smaller size
    than the image, of twice the ``shape`` (height, width) or more."""
    if shape is not None:
        # A JPEG decodes to a fraction of its size in a fraction of the time; twice the target loses nothing.
        image.draft(None, (2 * shape[1], 2 * shape[0]))
    image.load()
    upright = image.transpose(_UPRIGHT[orientation]) if orientation != 1 else image
    return _to_rgb(upright, reading)


def _fitted(rgb: Image.Image, size: tuple[int, int], reading: Reading) -> Image.Image:
    """The image at another size (width, height)."""
    if reading.fit == "crop":
        return ImageOps.fit(rgb, size, method=Image.Resampling.LANCZOS)
    if reading.fit == "stretch":
        return rgb.resize(size, Image.Resampling.LANCZOS)
    # As ImageOps.pad does it, which fails where a strip would be less than half a pixel thick.
    width, height = size
    if rgb.width * height > rgb.height * width:
        height = max(round(rgb.height / rgb.width * width), 1)
    else:
        width = max(round(rgb.width / rgb.height * height), 1)
    padded = Image.new("RGB", size, reading.background)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    padded.paste(rgb.resize((width, height), Image.Resampling.LANCZOS), (left, top))
    return padded


def limit_worker() -> None:
    """For a process that decodes: Pillow starts no program and no thread, and no image takes more than 4 GiB."""
    from PIL import EpsImagePlugin

    EpsImagePlugin.gs_binary = False
    try:
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    except ImportError:
        pass
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY or soft > _MOST_WORKER_BYTES:
        # macOS refuses a limit below what every process there has mapped.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (_MOST_WORKER_BYTES, hard))


@contextmanager
def open_image(path: str, *, pixels: bool = True) -> Iterator[tuple[Image.Image, int]]:
    """The image in a file, its pixels not read yet, and its orientation; whatever goes wrong with it in the block is a
    BadImageError."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise BadImageError("not a regular file")
        if status.st_size > _MOST_FILE_BYTES:
            raise BadImageError(f"a file of more than {_MOST_FILE_BYTES >> 30} GiB")
        # A file that Pillow opens itself it may map into memory, and then reads the rows of a turned TIFF wrongly.
        with open(path, "rb") as file:
            bare, orientation = strip(file, pixels=pixels)
            with Image.open(bare, formats=_formats()) as image:
                _check(image)
                if orientation is None:
                    orientation = orientation_of(image.info.get("exif", b""), image.info.get("xmp", b""))
                yield image, orientation
    except BadImageError:
        raise
    except MemoryError as error:
        raise BadImageError("takes more memory than a process may use") from error
    except UnidentifiedImageError as error:
        empty = os.path.getsize(path) == 0
        raise BadImageError("empty file" if empty else "not an image of a known format") from error
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
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _shown(image: Image.Image, orientation: int) -> tuple[int, int]:
    """(height, width) once it is upright."""
    width, height = image.size
    return (width, height) if orientation >= 5 else (height, width)


def _to_rgb(image: Image.Image, reading: Reading) -> tuple[Image.Image, bool]:
    """The image in mode RGB, and whether the background shows."""
    transparent = image.mode in _WITH_ALPHA or "transparency" in image.info
    if image.mode == "RGB" and not transparent:
        return image, False
    if image.mode in _SIXTEEN_BIT:
        top = (1 << reading.bits) - 1
        wide = np.clip(np.asarray(image), 0, top).astype(np.uint32)
        # Rounded; white stays white.
        return Image.fromarray(((wide * 510 + top) // (2 * top)).astype(np.uint8)).convert("RGB"), False
    if transparent:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema()[0] != 255:
            ground = Image.new("RGBA", rgba.size, (*reading.background, 255))
            return Image.alpha_composite(ground, rgba).convert("RGB"), True
        image = rgba
    return image.convert("RGB"), False


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"its pixels are {_too_many()}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)[:100]


class Files(NamedTuple):
    """The files of one job, with the names to report them by and their labels."""

    paths: list[str]
    names: list[str]
    labels: list[int]


@dataclass
class Found:
    """The files of one job that are images, in order, and the others (bad) with their reasons.

    files: `file_digest` of each image. resized, transparent: how many are of another size than they were, show the
    background. one_colour: the names of images whose pixels are all the same.
    """

    labels: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    resized: int = 0
    transparent: int = 0
    one_colour: list[str] = field(default_factory=list)

    def each(self, job: Files, read: Callable[[str], P]) -> Iterator[P]:
        """What ``read`` gives of each image, a `Picture` and what else it knows; a file that is none is left out and
        reported."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for path, name, label in zip(*job, strict=True):
                try:
                    picture, digest = read(path), file_digest(path)
                except BadImageError as error:
                    self.bad.append((name, str(error)))
                    continue
                self.labels.append(label)
                self.names.append(name)
                self.files.append(digest)
                pixels, resized, transparent = picture[:3]
                self.resized += resized
                self.transparent += transparent
                if is_one_colour(pixels):
                    self.one_colour.append(name)
                yield picture


@dataclass(kw_only=True)
class Decoded(Found):
    """images: uint8 [n, H, W, 3]."""

    images: NDArray[np.uint8]


def decode(job: Files, shape: tuple[int, int], reading: Reading) -> Decoded:
    """Decode the files of one job to one shape (height, width)."""
    decoded = Decoded(images=np.empty((len(job.paths), *shape, 3), dtype=np.uint8))
    for place, picture in enumerate(decoded.each(job, lambda path: read_rgb(path, shape, reading))):
        decoded.images[place] = picture.pixels
    decoded.images = decoded.images[: len(decoded.labels)]
    return decoded


def is_one_colour(pixels: NDArray[np.uint8]) -> bool:
    # Few images need a look at more than the first row.
    return bool((pixels[0] == pixels[0, 0]).all() and (pixels == pixels[0, 0]).all())


def file_digest(path: str) -> int:
    """64 bits that tell files of other content apart. Raises BadImageError."""
    digest = hashlib.blake2b(digest_size=8)
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise BadImageError(_reason(error)) from error
    return int.from_bytes(digest.digest(), "little")


def scan(paths: list[str]) -> list[Header | str]:
    """For each file its header, or the reason why it is not an image."""
    results: list[Header | str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in paths:
            try:
                results.append(read_header(path))
            except BadImageError as error:
                results.append(str(error))
    return results
