"""Every loader by its name."""

from __future__ import annotations

import torch

from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.config.settings import ResidentMemory
from fast_train.pipeline.errors import check_name
from fast_train.pipeline.loaders.base import Loader, LoaderOptions, Progress
from fast_train.pipeline.loaders.batch import AnyBatch, Batch, OwnBatch, RaggedBatch, RaggedView, SplitView
from fast_train.pipeline.loaders.dali_loader import DaliLoader
from fast_train.pipeline.loaders.ffcv_loader import FfcvLoader
from fast_train.pipeline.loaders.native import NativeAugment, NativeCrop
from fast_train.pipeline.loaders.resident import ResidentLoader
from fast_train.pipeline.loaders.torch_loader import TorchLoader

#: The names are those of `LoaderName` in `pipeline.config.settings`.
LOADERS: dict[str, type[Loader]] = {
    "resident": ResidentLoader,
    "ffcv": FfcvLoader,
    "dali": DaliLoader,
    "torch": TorchLoader,
}

__all__ = [
    "LOADERS",
    "AnyBatch",
    "Batch",
    "Loader",
    "OwnBatch",
    "Progress",
    "RaggedBatch",
    "RaggedView",
    "SplitView",
    "build_loader",
]


def build_loader(
    name: str,
    prepared: PreparedSet,
    split: str,
    *,
    batch_size: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    train: bool = True,
    workers: int | None = None,
    native: NativeAugment | NativeCrop | None = None,
    resident_memory: ResidentMemory = "auto",
    progress: Progress | None = None,
    rank: int = 0,
    ranks: int = 1,
    shard: bool = False,
) -> Loader:
    """The loader ``name`` over a split; see `LoaderOptions`. native: what a `DaliLoader` is to augment by itself.

    ValueError for an unknown name, for a loader whose library is not here, and for options that it does not take.
    """
    check_name("loader", name, LOADERS)
    lacks = LOADERS[name].missing()
    if lacks is not None:
        raise ValueError(f"--loader {name} can't run here: {lacks}")
    options = LoaderOptions(
        batch_size=batch_size,
        seed=seed,
        device=torch.device(device),
        train=train,
        workers=workers,
        resident_memory=resident_memory,
        progress=progress,
        rank=rank,
        ranks=ranks,
        shard=shard,
    )
    if native is None:
        return LOADERS[name](prepared, split, options)
    if LOADERS[name] is not DaliLoader:
        raise ValueError(f"loader {name} augments nothing by itself; take dali, or leave out native")
    return DaliLoader(prepared, split, options, native=native)
