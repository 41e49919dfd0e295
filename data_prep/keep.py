"""One image file to the JPEG or PNG file that a set of images of any shapes keeps. Runs in worker processes."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.formats.base import Encoded, most_bytes
from fast_train.data_prep.formats.decode import decode_rgb
from fast_train.data_prep.formats.headers import is_plain_jpeg
from fast_train.data_prep.formats.ragged import LONGEST_SIDE
from fast_train.data_prep.images import Files, Found, Header, Reading, open_image, read_upright
from fast_train.data_prep.stats import ChannelHistogram, pixel_digest

#: What images that are no JPEG files are stored as: without loss, or as JPEG files too.
STORES = ("png", "jpeg")
#: Colours as fine as brightness: halved again after scaling they would lose more, and decoders differ in how they
#: spread halved ones. A sixth more bytes than 4:2:0.
_SUBSAMPLING = 0
# A tenth more bytes than zlib's own choice, in a quarter of the time; decoded as fast.
_PNG_LEVEL = 1


@dataclass(frozen=True)
class Keeping:
    """How images keep their shapes. shorter_side: in pixels, of what is scaled down. store: one of `STORES`. quality:
    of JPEG files that are encoded."""

    shorter_side: int = 256
    store: str = STORES[0]
    quality: int = 95

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Keeping:
        """As a checkpoint has it, or a manifest's source with its encoding; what is not there has its default.
        ValueError for what is none."""
        known = {name: record.get(name) for name in ("shorter_side", "store", "quality")}
        keeping = cls(**{name: value for name, value in known.items() if value is not None})
        numbers = isinstance(keeping.shorter_side, int) and isinstance(keeping.quality, int)
        if not numbers or not 1 <= keeping.shorter_side <= LONGEST_SIDE or keeping.store not in STORES:
            raise ValueError("how images were scaled and stored for the training is not usable; train anew")
        return keeping

    def stored_shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the stored image: never larger, with the other side rounded."""
        low, high = sorted((height, width))
        if low <= self.shorter_side and high <= LONGEST_SIDE:
            return height, width
        shorter, longer = self.shorter_side, (2 * high * self.shorter_side + low) // (2 * low)
        if low <= self.shorter_side or longer > LONGEST_SIDE:
            shorter, longer = max((2 * low * LONGEST_SIDE + high) // (2 * high), 1), LONGEST_SIDE
        return (shorter, longer) if height <= width else (longer, shorter)

    def stored_bytes(self, header: Header) -> int:
        """About how many bytes an image will take: a JPEG file that is copied its own, others not more than so."""
        shape = self.stored_shape(header.height, header.width)
        pixels = shape[0] * shape[1]
        if header.jpeg and shape == (header.height, header.width):
            return min(header.size, most_bytes(pixels))
        # Of photographs, JPEG files of quality 95 have about half a byte for each pixel.
        return pixels if header.jpeg or self.store == "jpeg" else 3 * pixels


@dataclass(kw_only=True)
class Kept(Found):
    """images: the files to store. pixels: `pixel_digest` of each; histogram: of all. copied: how many are stored as
    they came."""

    images: list[Encoded] = field(default_factory=list)
    pixels: list[bytes] = field(default_factory=list)
    histogram: ChannelHistogram = field(default_factory=lambda: ChannelHistogram(3))
    copied: int = 0


def keep(job: Files, keeping: Keeping, reading: Reading) -> Kept:
    """Bring the files of one job to what is stored."""
    kept = Kept()
    for stored in kept.each(job, lambda path: _keep_one(path, keeping, reading)):
        kept.images.append(stored.image)
        kept.pixels.append(pixel_digest(stored.pixels))
        kept.histogram.update(stored.pixels)
        kept.copied += stored.copied
    return kept


def kept_pixels(path: str, keeping: Keeping, reading: Reading) -> NDArray[np.uint8]:
    """The pixels uint8 [H, W, 3] of what is stored of an image file. Raises BadImageError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _keep_one(path, keeping, reading).pixels


class _Stored(NamedTuple):
    """The pixels of what is stored, and what `Picture` says of them; the file to store, and whether it came so."""

    pixels: NDArray[np.uint8]
    resized: bool
    transparent: bool
    image: Encoded
    copied: bool


def _keep_one(path: str, keeping: Keeping, reading: Reading) -> _Stored:
    """What is stored of an image file. Raises BadImageError."""
    with open_image(path) as (image, orientation):
        turned, is_jpeg = orientation >= 5, image.format == "JPEG"
        width, height = image.size
        shape = keeping.stored_shape(*((width, height) if turned else (height, width)))
        scaled = sorted(shape) != sorted((height, width))
        if is_jpeg and orientation == 1 and not scaled and (copy := _copy(path, *shape)):
            return copy
        rgb, transparent = read_upright(image, orientation, shape if scaled else None, reading)
        if scaled:
            rgb = rgb.resize((shape[1], shape[0]), Image.Resampling.LANCZOS)
        # Pillow would write profiles and comments along.
        rgb.info.clear()
        file = io.BytesIO()
        if is_jpeg or keeping.store == "jpeg":
            rgb.save(file, "JPEG", quality=keeping.quality, subsampling=_SUBSAMPLING)
        else:
            rgb.save(file, "PNG", compress_level=_PNG_LEVEL)
        encoded = Encoded(file.getvalue(), *shape)
        return _Stored(decode_rgb(*encoded), scaled, transparent, encoded, copied=False)


def _copy(path: str, height: int, width: int) -> _Stored | None:
    """The file as it is; None where not every decoder would make the same of it, or where it carries
    far more than its pixels."""
    if os.path.getsize(path) > most_bytes(height * width):
        return None
    with open(path, "rb") as file:
        content = file.read()
    if not is_plain_jpeg(content, height, width):
        return None
    try:
        pixels = decode_rgb(content, height, width)
    except PreparedSetError:
        return None
    return _Stored(pixels, False, False, Encoded(content, height, width), copied=True)
