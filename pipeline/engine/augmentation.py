"""The augmentation of one split: the kernel with everything bound that a run does not change."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fast_train.common.files import cache_folder
from fast_train.data_prep.manifest import Manifest
from fast_train.kernels.augment import augment, normalisation_table
from fast_train.kernels.resized_crop import Ragged, resampling, resized_crop
from fast_train.kernels.spec import AugmentSpec, CropSpec, check_croppable, check_reflection
from fast_train.pipeline.config.settings import Normalise
from fast_train.pipeline.device import data_device
from fast_train.pipeline.errors import ConfigError, check_name
from fast_train.pipeline.loaders.batch import AnyBatch, Batch, RaggedBatch, RaggedView, SplitView

# Mean and deviation of red, green and blue that torchvision's weights are for.
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalisation(
    mean: Sequence[float], std: Sequence[float], how: Normalise
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel by which images are normalised, in units where byte 255 is 1.

    mean, std: those of the training split, for ``set``. Raises ConfigError where a channel does not vary, so that
    nothing can be divided by its deviation.
    """
    check_name("normalisation", how, get_args(Normalise))
    if how == "half":
        return (0.5,) * len(mean), (0.5,) * len(mean)
    if how == "imagenet":
        if len(mean) != 3:
            raise ConfigError(f"data.normalise=imagenet is for 3 channels, and these images have {len(mean)}; give set")
        return _IMAGENET
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


class _Normaliser:
    """What the augmentations of a run share: the table of values, the memory format, seed and epoch.

    device: the model's; batches lie on its `data_device`, and so does ``epoch``, a 0-D int64 tensor, so that a captured
    graph follows `set_epoch`. sizes: the sides in pixels that images may come out with, in the order in which training
    takes them; `set_size` chooses, and before it is called they have the last one.
    """

    def __init__(
        self,
        manifest: Manifest,
        sizes: Sequence[int],
        *,
        normalise: Normalise,
        dtype: torch.dtype,
        device: torch.device | str,
        seed: int = 0,
        channels_last: bool = True,
    ) -> None:
        self.sizes, self.size = tuple(sizes), sizes[-1]
        self.seed, self._channels_last = seed, channels_last
        self.mean, self.std = normalisation(manifest.mean, manifest.std, normalise)
        self.device = torch.device(device)
        self.table = normalisation_table(self.mean, self.std, dtype, data_device(self.device))
        self.epoch = torch.zeros((), dtype=torch.int64, device=self.table.device)

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def set_size(self, size: int) -> None:
        """Choose one of ``sizes`` for the batches that come next; a captured graph keeps its own."""
        self.size = size

    def _formatted(self, images: Tensor) -> Tensor:
        return (images if self._channels_last else images.contiguous()).to(self.device)


class Augmenter(_Normaliser):
    """Batches of bytes in, normalised [N, C, H, W] out, in channels_last memory or, for a model that is not, plain.

    Raises ValueError if the images have fewer pixels than ``spec`` reflects.
    """

    def __init__(
        self,
        manifest: Manifest,
        spec: AugmentSpec,
        *,
        normalise: Normalise,
        dtype: torch.dtype,
        device: torch.device | str,
        seed: int = 0,
        channels_last: bool = True,
    ) -> None:
        sides = manifest.image_shape[:2]
        check_reflection(spec, *sides)
        super().__init__(
            manifest,
            (min(sides),),
            normalise=normalise,
            dtype=dtype,
            device=device,
            seed=seed,
            channels_last=channels_last,
        )
        self.spec = spec

    def __call__(self, batch: AnyBatch) -> Tensor:
        """Images [N, C, H, W] of ``dtype``; those of a `SplitView` are gathered in the same kernel."""
        images = augment(
            _of_one_shape(batch).images,
            batch.indices,
            self.table,
            spec=self.spec,
            seed=self.seed,
            epoch=self.epoch,
            gather=isinstance(batch, SplitView),
        )
        return self._formatted(images)


class NativeAugmenter(_Normaliser):
    """For a loader that augments by itself (see `pipeline.loaders.native`): what is left is the type and the format."""

    def __call__(self, batch: AnyBatch) -> Tensor:
        """batch: its images are [N, C, H, W], normalised, in channels_last memory."""
        if not isinstance(batch, Batch):
            raise ValueError(f"a {type(batch).__name__} is not augmented yet; build the plain Augmenter")
        return self._formatted(batch.images.to(self.table.dtype))


class CropAugmenter(_Normaliser):
    """Batches of images of any shapes in, normalised crops [N, C, S, S] out, in memory as `Augmenter`'s.

    spec: what is done to an image; sizes: in place of its size, where there are several (see `set_size`). Images of one
    shape may come too. Raises ConfigError for colours that images of one channel lack, and ValueError for images that
    are too large to be cropped.
    """

    def __init__(
        self,
        manifest: Manifest,
        spec: CropSpec,
        *,
        normalise: Normalise,
        dtype: torch.dtype,
        device: torch.device | str,
        sizes: Sequence[int] = (),
        seed: int = 0,
        channels_last: bool = True,
    ) -> None:
        super().__init__(
            manifest,
            sizes or (spec.size,),
            normalise=normalise,
            dtype=dtype,
            device=device,
            seed=seed,
            channels_last=channels_last,
        )
        if spec.colour and manifest.channels != 3:
            raise ConfigError(
                f"images of {manifest.channels} channel{'s'[: manifest.channels != 1]} have no colours to change; "
                "leave out crop.brightness, crop.contrast and crop.saturation"
            )
        shapes = manifest.ragged
        height, width = (shapes.height, shapes.width) if shapes else manifest.image_shape[:2]
        check_croppable(shapes.pixels if shapes else height * width)
        keep_compiled(self.table.device)
        specs = (dataclasses.replace(spec, size=size) for size in self.sizes)
        self._crops = {spec.size: (spec, resampling(spec, max(height, width)).to(self.table.device)) for spec in specs}
        self._views: dict[torch.Size, Ragged] = {}

    def __call__(self, batch: AnyBatch) -> Tensor:
        """Images [N, C, S, S] of ``dtype``; those of a view of the split are gathered in the same kernel."""
        spec, tables = self._crops[self.size]
        images = resized_crop(
            batch.pixels() if isinstance(batch, RaggedBatch | RaggedView) else self._as_ragged(batch.images),
            batch.indices,
            self.table,
            tables,
            spec=spec,
            seed=self.seed,
            epoch=self.epoch,
            gather=isinstance(batch, SplitView | RaggedView),
        )
        return self._formatted(images)

    def _as_ragged(self, images: Tensor) -> Ragged:
        """images: uint8 [M, H, W, C]. Where they lie is made once for each shape, outside of a captured graph."""
        if images.shape not in self._views:
            self._views[images.shape] = as_ragged(images)
        return self._views[images.shape]._replace(data=images.reshape(-1))


def as_ragged(images: Tensor) -> Ragged:
    """Images of one shape, uint8 [M, H, W, C] and contiguous, as those of any shapes; ``data`` is a view."""
    count, height, width, channels = images.shape
    offsets = torch.arange(count, device=images.device) * (height * width * channels)
    heights, widths = (torch.full((count,), n, dtype=torch.int32, device=images.device) for n in (height, width))
    return Ragged(images.reshape(-1), offsets, heights, widths)


def crop_pixels(images: Sequence[NDArray[np.uint8]], spec: CropSpec, table: Tensor) -> Tensor:
    """Crops of images that lie in memory by themselves, as evaluation sees them where ``spec`` is its own.

    images: uint8 [H, W, C] each. table: [256, C], as of `normalisation_table`. Returns [N, C, S, S] on its device, in
    channels_last memory.
    """
    keep_compiled(table.device)
    data = torch.from_numpy(np.concatenate([image.reshape(-1) for image in images]))
    sizes = torch.tensor([image.size for image in images])
    heights, widths = torch.tensor([image.shape[:2] for image in images], dtype=torch.int32).unbind(1)
    parts = (data, sizes.cumsum(0) - sizes, heights.contiguous(), widths.contiguous())
    tables = resampling(spec, max(max(image.shape[:2]) for image in images)).to(table.device)
    indices = torch.arange(len(images), device=table.device)
    ragged = Ragged(*(part.to(table.device) for part in parts))
    return resized_crop(ragged, indices, table, tables, spec=spec, seed=0, epoch=0)


def keep_compiled(device: torch.device) -> None:
    """Have Numba, which compiles the crop for a CPU, keep its code in this user's cache: the package's own folder may
    be another's. It reads this when it is imported."""
    if device.type == "cpu":
        with suppress(OSError):
            os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_folder() / "numba"))


#: What makes a run's images.
AnyAugmenter: TypeAlias = Augmenter | CropAugmenter | NativeAugmenter


def _of_one_shape(batch: AnyBatch) -> Batch | SplitView:
    if isinstance(batch, RaggedBatch | RaggedView):
        raise ValueError("images that keep their own shapes are cropped; build a CropAugmenter")
    return batch
