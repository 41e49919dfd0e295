"""The augmentation of one split: the kernel with everything bound that a run does not change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from fast_train.data_prep.manifest import Manifest
from fast_train.kernels.augment import augment, normalisation_table
from fast_train.kernels.spec import AugmentSpec, check_reflection
from fast_train.pipeline.errors import ConfigError, check_name
from fast_train.pipeline.loaders import AnyBatch, SplitView


def normalisation(
    mean: Sequence[float], std: Sequence[float], how: Literal["set", "half"]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel by which images are normalised, in units where byte 255 is 1.

    mean, std: those of the training split, for ``set``. Raises ConfigError where a channel does not vary, so that
    nothing can be divided by its deviation.
    """
    check_name("normalisation", how, ("set", "half"))
    if how == "half":
        return (0.5,) * len(mean), (0.5,) * len(mean)
    constant = [str(channel) for channel, deviation in enumerate(std) if deviation == 0]
    if constant:
        raise ConfigError(
            f"all training images have one and the same value in channel {', '.join(constant)}, so they can't be "
            "normalised by its deviation of 0; are they the right images? If so, give --set data.normalise=half"
        )
    return tuple(mean), tuple(std)


class Augmentation(Protocol):
    """What turns a loader's batches into what the model sees."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose random draws come next."""

    def __call__(self, batch: AnyBatch, /) -> Tensor:
        """Images [N, C, H, W] of a floating-point type."""


class Augmenter:
    """Batches of bytes in, normalised [N, C, H, W] out, in channels_last memory or, for a model that is not, plain.

    ``epoch`` is a 0-D int64 tensor on the device, so that a captured graph follows `set_epoch`. Raises ValueError if
    the images have fewer pixels than ``spec`` reflects.
    """

    def __init__(
        self,
        manifest: Manifest,
        spec: AugmentSpec,
        *,
        normalise: Literal["set", "half"],
        dtype: torch.dtype,
        device: torch.device,
        seed: int = 0,
        channels_last: bool = True,
    ) -> None:
        check_reflection(spec, *manifest.image_shape[:2])
        self.spec, self.seed, self._channels_last = spec, seed, channels_last
        self.mean, self.std = normalisation(manifest.mean, manifest.std, normalise)
        self.table = normalisation_table(self.mean, self.std, dtype, device)
        self.epoch = torch.zeros((), dtype=torch.int64, device=device)

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __call__(self, batch: AnyBatch) -> Tensor:
        """Images [N, C, H, W] of ``dtype``; those of a `SplitView` are gathered in the same kernel."""
        images = augment(
            batch.images,
            batch.indices,
            self.table,
            spec=self.spec,
            seed=self.seed,
            epoch=self.epoch,
            gather=isinstance(batch, SplitView),
        )
        return images if self._channels_last else images.contiguous()


class NativeAugmenter(Augmenter):
    """For a loader that augments by itself (see `pipeline.loaders.native`): what is left is the type and the format."""

    def __call__(self, batch: AnyBatch) -> Tensor:
        """batch: its images are [N, C, H, W], normalised, in channels_last memory."""
        if isinstance(batch, SplitView):
            raise ValueError("a view of the whole split is not augmented yet; build the plain Augmenter")
        images = batch.images.to(self.table.dtype)
        return images if self._channels_last else images.contiguous()
