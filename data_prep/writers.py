"""Every file format by its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_prep.packed import PackedWriter


class Writer(Protocol):
    """Writes one split of a set in one format, as the images come.

    Built from the folder to write into, the split's name, the greatest number of images that will come, and their
    shape (H, W, C). Fewer may come: files that turn out to be no images are left out.
    """

    def __init__(self, folder: Path, split: str, count: int, image_shape: Sequence[int]) -> None: ...

    @staticmethod
    def estimate_bytes(count: int, image_shape: Sequence[int]) -> int:
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
}
