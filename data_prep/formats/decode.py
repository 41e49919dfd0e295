"""The pixels of stored JPEG and PNG files, by Pillow, which releases Python's lock meanwhile."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fast_train.common.text import one_line
from fast_train.data_prep.errors import ANEW, PreparedSetError

FORMATS = ("JPEG", "PNG")


def is_jpeg(file: NDArray[np.uint8] | bytes) -> bool:
    """Whether a stored file's bytes are a JPEG file, and no PNG file."""
    return bytes(file[:2]) == b"\xff\xd8"


def decode_rgb(file: NDArray[np.uint8] | bytes, height: int, width: int) -> NDArray[np.uint8]:
    """The pixels uint8 [H, W, 3] of a file's bytes, as they are stored: metadata turn nothing.

    Raises PreparedSetError, which does not know the file's name, where they are not an image of that shape.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(np.frombuffer(file, dtype=np.uint8).data), formats=FORMATS) as image:
                if image.size != (width, height) or image.mode not in ("RGB", "L"):
                    raise ValueError(f"it is {image.width}x{image.height}, {image.mode}, not {width}x{height}, RGB")
                return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PreparedSetError(f"holds an image that can't be decoded: {one_line(error)[:100]}; {ANEW}") from error
