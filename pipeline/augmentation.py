"""The augmentation of one split: the kernel with everything bound that a run does not change."""

from __future__ import annotations

import torch
from torch import Tensor

from data_prep.manifest import Manifest
from kernels.augment import AugmentSpec, augment, normalisation_table
from pipeline.loaders import Batch


class Augmenter:
    """Batches of bytes in, normalised [N, C, H, W] out, in channels_last memory or, for a model that is not, plain.

    ``epoch`` is a 0-D int64 tensor on the device, so that a captured graph follows `set_epoch`.
    """

    def __init__(
        self,
        manifest: Manifest,
        spec: AugmentSpec,
        *,
        normalise: str,
        dtype: torch.dtype,
        device: torch.device,
        seed: int = 0,
        channels_last: bool = True,
    ) -> None:
        channels = manifest.image_shape[2]
        mean, std = (manifest.mean, manifest.std) if normalise == "set" else ([0.5] * channels,) * 2
        self.spec, self.seed, self._channels_last = spec, seed, channels_last
        self.mean, self.std = tuple(mean), tuple(std)
        self.table = normalisation_table(mean, std, dtype, device)
        self.epoch = torch.zeros((), dtype=torch.int64, device=device)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose crops, flips and cutouts come next."""
        self.epoch.fill_(epoch)

    def __call__(self, batch: Batch, *, gather: bool) -> Tensor:
        """``gather``: the batch holds the whole split (see `Loader.gathers`)."""
        images = augment(
            batch.images,
            batch.indices,
            self.table,
            spec=self.spec,
            seed=self.seed,
            epoch=self.epoch,
            gather=gather,
        )
        return images if self._channels_last else images.contiguous()
