"""Train image classifiers fast. What is public stands here; importing it imports no torch.

The commands, in Python: `prepare` a set, `train`, `evaluate`, `load_model` and predict, `export`. Its pieces for a loop
of your own: `open_set`, `make_loader`, `Augmenter` and `CropAugmenter`, `build_model`. Each is shown in
docs/library.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fast_train.common.version import VERSION as __version__

if TYPE_CHECKING:
    from fast_train.kernels.spec import AugmentSpec as AugmentSpec
    from fast_train.kernels.spec import CropSpec as CropSpec
    from fast_train.pipeline.api import build_model as build_model
    from fast_train.pipeline.api import evaluate as evaluate
    from fast_train.pipeline.api import export as export
    from fast_train.pipeline.api import load_model as load_model
    from fast_train.pipeline.api import make_loader as make_loader
    from fast_train.pipeline.api import open_set as open_set
    from fast_train.pipeline.api import prepare as prepare
    from fast_train.pipeline.api import train as train
    from fast_train.pipeline.engine.augmentation import Augmenter as Augmenter
    from fast_train.pipeline.engine.augmentation import CropAugmenter as CropAugmenter
    from fast_train.pipeline.engine.listener import Listener as Listener

_HOMES = {
    "AugmentSpec": "kernels.spec",
    "Augmenter": "pipeline.engine.augmentation",
    "CropAugmenter": "pipeline.engine.augmentation",
    "CropSpec": "kernels.spec",
    "Listener": "pipeline.engine.listener",
    "build_model": "pipeline.api",
    "evaluate": "pipeline.api",
    "export": "pipeline.api",
    "load_model": "pipeline.api",
    "make_loader": "pipeline.api",
    "open_set": "pipeline.api",
    "prepare": "pipeline.api",
    "train": "pipeline.api",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fast_train' has no attribute '{name}'")
    return getattr(importlib.import_module(f"fast_train.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
