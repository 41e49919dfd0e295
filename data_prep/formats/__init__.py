"""Every file format by its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fast_train.data_prep.formats.beton import BetonWriter
from fast_train.data_prep.formats.options import FormatOptions
from fast_train.data_prep.formats.packed import PackedWriter
from fast_train.data_prep.formats.tfrecord import TFRecordWriter

__all__ = ["WRITERS", "FormatOptions", "Writer"]


class Writer(Protocol):
    """Writes one split of a set in one format, as the images come.

    Built from the folder to write into, the split's name, the greatest number of images that will come, their shape
    (H, W, C), and how to store them. Fewer may come: files that turn out not to be images are left out.
    """

    def __init__(
        self, folder: Path, split: str, count: int, image_shape: Sequence[int], options: FormatOptions
    ) -> None: ...

    @staticmethod
    def encoding(options: FormatOptions) -> dict[str, Any]:
        """What the manifest says of how the images are stored; ``mode`` is ``raw`` where it is as they came."""
        ...

    @staticmethod
    def estimate_bytes(count: int, image_shape: Sequence[int], options: FormatOptions) -> int:
        """Bytes on the disk that ``count`` images will take, at most."""
        ...

    def write(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        """Append images uint8 [n, H, W, C] with labels int64 [n]."""
        ...

    def close(self) -> tuple[str, ...]:
        """Finish, with everything flushed to the disk; the names of the files in the folder, the main one first."""
        ...

    def abort(self) -> None:
        """Release files, processes and threads without finishing."""
        ...


WRITERS: dict[str, type[Writer]] = {
    "packed": PackedWriter,
    "ffcv": BetonWriter,
    "dali": TFRecordWriter,
}
