"""CIFAR's splits as parquet files of PNG images, as Hugging Face's hub holds them."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fast_train.common.cores import usable_cores
from fast_train.common.text import show
from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.sources.base import Chunk
from fast_train.data_prep.sources.cifar_files import Hub


def check_pyarrow() -> None:
    """PreparedSetError where pyarrow, which alone reads parquet files here, is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise PreparedSetError("parquet files need pyarrow: pip install 'fast-train[parquet]'") from error


def read_parquet(folder: Path, hub: Hub) -> dict[str, list[Chunk]]:
    """Each split in the archive's order. PreparedSetError names what is missing or another file."""
    check_pyarrow()
    for known in hub.files.values():
        fault = known.fault(folder / known.name)
        if fault:
            raise PreparedSetError(f"{known.name} in {show(folder)} {fault}; get it again from {hub.folder}")
    return {split: _read(folder / known.name, hub, split) for split, known in hub.files.items()}


def _read(path: Path, hub: Hub, split: str) -> list[Chunk]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path, columns=["img", hub.label])
    # Pillow releases the GIL while it decodes.
    with ThreadPoolExecutor(usable_cores()) as pool:
        images = np.stack(list(pool.map(_decode, table["img"].combine_chunks().field("bytes").to_pylist())))
    labels = table[hub.label].to_numpy().astype(np.int64)
    order = hub.blocks if split == "train" else (0,)
    chunks = list(map(Chunk, np.split(images, len(order)), np.split(labels, len(order))))
    return [chunks[block] for block in order]


def _decode(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        return np.asarray(image.convert("RGB"))
