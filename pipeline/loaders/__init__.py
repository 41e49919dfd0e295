"""Every loader by its name."""

from __future__ import annotations

from typing import Any

from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.errors import check_name
from fast_train.pipeline.loaders.base import Batch, Loader
from fast_train.pipeline.loaders.dali_loader import DaliLoader
from fast_train.pipeline.loaders.ffcv_loader import FfcvLoader
from fast_train.pipeline.loaders.resident import ResidentLoader
from fast_train.pipeline.loaders.torch_loader import TorchLoader

LOADERS: dict[str, type[Loader]] = {
    "resident": ResidentLoader,
    "ffcv": FfcvLoader,
    "dali": DaliLoader,
    "torch": TorchLoader,
}

__all__ = ["LOADERS", "Batch", "Loader", "build_loader"]


def build_loader(name: str, prepared: PreparedSet, split: str, **options: Any) -> Loader:
    """The loader ``name`` over a split; the options are its constructor's.

    ValueError for an unknown name, and for a loader whose library is not here.
    """
    check_name("loader", name, LOADERS)
    lacks = LOADERS[name].missing()
    if lacks is not None:
        raise ValueError(f"--loader {name} can't run here: {lacks}")
    return LOADERS[name](prepared, split, **options)
