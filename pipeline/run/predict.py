"""A trained network that takes images as they are and names what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fast_train.common.text import show
from fast_train.data_prep.images import BadImageError, Reading, read_rgb
from fast_train.data_prep.keep import Keeping, kept_pixels
from fast_train.kernels.augment import augment, normalisation_table
from fast_train.kernels.spec import NO_AUGMENT
from fast_train.pipeline.config.settings import RunConfig
from fast_train.pipeline.device import data_device
from fast_train.pipeline.engine.augmentation import crop_pixels, normalisation
from fast_train.pipeline.engine.build import build_network
from fast_train.pipeline.engine.runtime import resolve_runtime
from fast_train.pipeline.run.record import Saved, fitting

_BATCH = 256
Images: TypeAlias = Sequence[Path | str | NDArray[np.uint8] | Tensor] | NDArray[np.uint8] | Tensor


@dataclass(frozen=True)
class Prediction:
    """label: the most probable class. confidence: its probability. probabilities: float32 [K], in the order of the
    classes."""

    label: str
    confidence: float
    probabilities: NDArray[np.float32]


class TrainedModel:
    """``module``: the network in evaluation mode, [N, C, H, W] to logits [N, K]. ``classes``: their names. ``config``:
    what it was trained by."""

    def __init__(self, saved: Saved, *, device: str) -> None:
        self.config, self.classes = saved.config, tuple(saved.state["classes"])
        trained = saved.config.run
        self._runtime = resolve_runtime(
            RunConfig(
                device=device, amp=trained.amp, tf32=trained.tf32, channels_last=trained.channels_last, compile=False
            )
        )
        self.module = build_network(saved.config, self._runtime)
        with fitting(saved.path):
            self.module.load_state_dict(saved.weights)
            mean, std = normalisation(saved.state["mean"], saved.state["std"], saved.config.data.normalise)
        self.module.eval()
        self._reading = Reading.from_dict(saved.state.get("reading", {}))
        self._keeping = Keeping.from_dict(saved.state.get("keeping", {}))
        self._stored_shape = stored_shape(saved)
        self._table = normalisation_table(mean, std, self._runtime.image_dtype, data_device(self._runtime.device))

    @torch.no_grad()
    def predict(self, images: Images) -> list[Prediction]:
        """Predict the class of each image.

        images: paths of image files, which are brought to what the network was trained on as those of its prepared set
        were (`prep-data --fit`, or `--shorter-side` and then the crop of the evaluation); or bytes uint8 [N, H, W, C],
        or a list of images uint8 [H, W, C], of any size where the network was trained on crops and else of its own.
        Raises ValueError for an image that can't be read or does not fit.
        """
        if isinstance(images, (str, Path)):
            raise ValueError(f"predict takes several images; give a list: [{str(images)!r}]")
        found = []
        for start in range(0, len(images), _BATCH):
            inputs = self._inputs(images[start : start + _BATCH])
            for row in self._probabilities(inputs).cpu().numpy():
                best = int(row.argmax())
                found.append(Prediction(self.classes[best], float(row[best]), row))
        return found

    def _inputs(self, images: Images) -> Tensor:
        """[n, C, H, W], as evaluation gives them to the network, where the table is."""
        crop, device = self.config.evaluated_crop, self._table.device
        if crop is not None:
            each = [np.ascontiguousarray(image) for image in self._pixels(images)]
            return crop_pixels(each, crop, self._table)
        together = self._pixels(images)
        # A copy: a mapped file must not back a tensor.
        pixels = torch.tensor(np.stack(together) if isinstance(together, list) else np.ascontiguousarray(together))
        indices = torch.arange(len(pixels), device=device)
        return augment(pixels.to(device), indices, self._table, spec=NO_AUGMENT, seed=0, epoch=0)

    def _pixels(self, images: Images) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        """uint8 [H, W, C] of each."""
        if not isinstance(images, (np.ndarray, Tensor)):
            return [
                self._checked(image, "a list", dims=3) if isinstance(image, (np.ndarray, Tensor)) else self._read(image)
                for image in images
            ]
        return self._checked(images, "an array", dims=4)

    def _checked(self, images: NDArray[np.uint8] | Tensor, what: str, *, dims: int) -> NDArray[np.uint8]:
        """Images of one shape, or one of a list; ValueError where the network can't take them."""
        pixels, channels = np.asarray(images.cpu() if isinstance(images, Tensor) else images), self._channels
        if pixels.dtype != np.uint8 or pixels.ndim != dims or pixels.shape[-1] != channels:
            form = f"[{'N, ' * (dims == 4)}H, W, {channels}]"
            raise ValueError(f"images of {what} must be uint8 {form}, not {pixels.dtype} {pixels.shape}")
        height, width = pixels.shape[-3:-1]
        size = self.config.model.image_size
        fits = min(height, width) >= 1 if self.config.evaluated_crop is not None else min(height, width) == size
        if not fits:
            wanted = "at least a pixel" if self.config.evaluated_crop is not None else f"a shorter side of {size}"
            raise ValueError(f"images of {height}x{width} pixels do not fit the network, which takes {wanted}")
        return pixels

    @property
    def _channels(self) -> int:
        return self.config.model.in_channels

    def _read(self, path: Path | str) -> NDArray[np.uint8]:
        """uint8 [H, W, 3]"""
        if not isinstance(path, (str, Path)):
            raise ValueError(f"images of a list must be paths or arrays of uint8 [H, W, 3], not {type(path).__name__}")
        try:
            if self._stored_shape is None:
                return kept_pixels(str(path), self._keeping, self._reading)
            return read_rgb(str(path), self._stored_shape, self._reading).pixels
        except BadImageError as error:
            raise ValueError(f"{show(str(path))} can't be predicted: {error}") from error

    def _probabilities(self, inputs: Tensor) -> Tensor:
        """float32 [n, K]"""
        if not self._runtime.channels_last:
            inputs = inputs.contiguous()
        inputs = inputs.to(self._runtime.device)
        amp = self._runtime.amp
        with torch.autocast(inputs.device.type, dtype=amp, enabled=amp is not None):
            logits = self.module(inputs)
        return logits.float().softmax(dim=1)


def stored_shape(saved: Saved) -> tuple[int, int] | None:
    """Height and width of all images of the set that the network was trained on; None where they keep their own."""
    shape = saved.state.get("data", {}).get("image_shape")
    if isinstance(shape, list):
        return shape[0], shape[1]
    # A checkpoint of 0.1.0 does not say, and knows one side.
    size = saved.config.model.image_size
    return None if saved.config.evaluated_crop is not None else (size, size)
