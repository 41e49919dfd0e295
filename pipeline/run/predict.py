"""A trained network that takes images as they are and names what it sees."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fast_train.common.cores import usable_cores
from fast_train.common.text import show
from fast_train.data_prep.images import BadImageError, Reading, read_rgb
from fast_train.data_prep.keep import Keeping, kept_pixels
from fast_train.kernels.augment import augment, normalisation_table
from fast_train.kernels.spec import NO_AUGMENT
from fast_train.pipeline.config.settings import RunConfig, TestTimeAugmentation
from fast_train.pipeline.device import data_device
from fast_train.pipeline.engine.augmentation import crop_pixels, normalisation
from fast_train.pipeline.engine.build import build_network
from fast_train.pipeline.engine.evaluate import evaluation_batch, log_probabilities
from fast_train.pipeline.engine.runtime import resolve_runtime
from fast_train.pipeline.errors import check_name
from fast_train.pipeline.run.record import Saved, fitting

_MANY = 1 << 30
Pixels: TypeAlias = NDArray[np.uint8] | Tensor
Images: TypeAlias = Iterable[Path | str | Pixels] | Pixels


@dataclass(frozen=True)
class Prediction:
    """label: the most probable class. confidence: its probability. probabilities: float32 [K], in the order of the
    classes."""

    label: str
    confidence: float
    probabilities: NDArray[np.float32]


class TrainedModel:
    """``module``: the network in evaluation mode, [N, C, H, W] to logits [N, K]. ``classes``: their names. ``config``:
    what it was trained by. ``run``: how it is run here."""

    def __init__(self, saved: Saved, *, device: str) -> None:
        self.config, self.classes = saved.config, tuple(saved.state["classes"])
        trained = saved.config.run
        self.run = RunConfig(
            device=device, amp=trained.amp, tf32=trained.tf32, channels_last=trained.channels_last, compile=False
        )
        self._runtime = resolve_runtime(self.run)
        self.module = build_network(saved.config, self._runtime)
        with fitting(saved.path):
            self.module.load_state_dict(saved.weights)
            mean, std = normalisation(saved.state["mean"], saved.state["std"], saved.config.data.normalise)
        self.module.eval()
        self._reading = Reading.from_dict(saved.state.get("reading", {}))
        self._keeping = Keeping.from_dict(saved.state.get("keeping", {}))
        self._stored_shape = stored_shape(saved)
        self._table = normalisation_table(mean, std, self._runtime.image_dtype, data_device(self._runtime.device))

    def predict(
        self, images: Images, *, tta: TestTimeAugmentation | None = None, batch_size: int | None = None
    ) -> list[Prediction]:
        """Predict the class of each image.

        images: paths of image files, which are brought to what the network was trained on as those of its prepared set
        were (`prep-data --fit`, or `--shorter-side` and then the crop of the evaluation); or bytes uint8 [N, H, W, C],
        or images uint8 [H, W, C], of any size where the network was trained on crops and else of its own. tta:
        test-time augmentation, ``none``, ``flip`` or ``multicrop``; None for what the run was evaluated with.
        batch_size: images at once; None for as many as in an evaluation.
        Raises ValueError for an image that can't be read or does not fit.
        """
        if isinstance(images, (str, Path)):
            raise ValueError(f"predict takes several images; give a list: [{str(images)!r}]")
        if not isinstance(images, (Iterable, Tensor)):
            raise ValueError(f"predict takes images as a list or an array, not {type(images).__name__}")
        if tta is not None:
            check_name("test-time augmentation", tta, get_args(TestTimeAugmentation))
        if batch_size is not None and not (isinstance(batch_size, Integral) and batch_size >= 1):
            raise ValueError(f"batch_size is {batch_size!r}; give 1 or more")
        if isinstance(images, (np.ndarray, Tensor)):
            pixels, size = self._checked(images, "an array", dims=4), batch_size or self._batch
            parts = [pixels[start : start + size] for start in range(0, len(pixels), size)]
            return [prediction for part in parts for prediction in self._predictions(part, tta)]
        predictions = []
        for found in self.each(images, tta=tta, batch_size=batch_size):
            if isinstance(found, ValueError):
                raise found
            predictions.append(found)
        return predictions

    def each(
        self,
        images: Iterable[Path | str | Pixels],
        *,
        tta: TestTimeAugmentation | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Prediction | ValueError]:
        """What `predict` gives of each image, in order, or why there is no prediction for it; a batch at a time, whose
        files are decoded by a thread for each core."""
        # On a CPU the threads of the network wait for each other: beside others that decode they take much longer.
        ahead = int(self._runtime.device.type != "cpu")
        waiting: deque[list[Future[NDArray[np.uint8]]]] = deque()
        left, size = iter(images), batch_size or self._batch
        pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="decode")
        # Decoders set what is done with warnings for the process, one thread in another's way.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                while batch := list(islice(left, size)):
                    waiting.append([pool.submit(self._pixels, image) for image in batch])
                    if len(waiting) > ahead:
                        yield from self._of_batch(waiting.popleft(), tta)
                while waiting:
                    yield from self._of_batch(waiting.popleft(), tta)
            finally:
                pool.shutdown(cancel_futures=True)

    def _of_batch(
        self, read: Sequence[Future[NDArray[np.uint8]]], tta: TestTimeAugmentation | None
    ) -> Iterator[Prediction | ValueError]:
        results = [_result(pixels) for pixels in read]
        good = [pixels for pixels in results if not isinstance(pixels, ValueError)]
        predictions = iter(self._predictions(good, tta) if good else [])
        for result in results:
            yield result if isinstance(result, ValueError) else next(predictions)

    @torch.no_grad()
    def _predictions(
        self, images: NDArray[np.uint8] | list[NDArray[np.uint8]], tta: TestTimeAugmentation | None
    ) -> list[Prediction]:
        """images: uint8 [H, W, C] of each, or [n, H, W, C]."""
        inputs = self._inputs(images).to(self._runtime.device)
        inputs = inputs if self._runtime.channels_last else inputs.contiguous()
        tta = self.config.run.tta if tta is None else tta
        rows = log_probabilities(self.module, inputs, self._runtime.amp, tta).exp().cpu().numpy()
        return [Prediction(self.classes[row.argmax()], float(row.max()), row) for row in rows]

    @property
    def _batch(self) -> int:
        """How many images an evaluation takes at once."""
        crop = self.config.evaluated_crop
        side = self.config.model.image_size if crop is None else crop.size
        return evaluation_batch(_MANY, side, side)

    def _inputs(self, images: NDArray[np.uint8] | list[NDArray[np.uint8]]) -> Tensor:
        """[n, C, H, W], as evaluation gives them to the network, where the table is."""
        crop, device = self.config.evaluated_crop, self._table.device
        if crop is not None:
            return crop_pixels([np.ascontiguousarray(image) for image in images], crop, self._table)
        # A copy: a mapped file must not back a tensor.
        pixels = torch.tensor(np.stack(images) if isinstance(images, list) else np.ascontiguousarray(images))
        indices = torch.arange(len(pixels), device=device)
        return augment(pixels.to(device), indices, self._table, spec=NO_AUGMENT, seed=0, epoch=0)

    def _pixels(self, image: Path | str | Pixels) -> NDArray[np.uint8]:
        """uint8 [H, W, C]"""
        return self._checked(image, "a list", dims=3) if isinstance(image, (np.ndarray, Tensor)) else self._read(image)

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


def _result(pixels: Future[NDArray[np.uint8]]) -> NDArray[np.uint8] | ValueError:
    try:
        return pixels.result()
    except ValueError as error:
        return error


def stored_shape(saved: Saved) -> tuple[int, int] | None:
    """Height and width of all images of the set that the network was trained on; None where they keep their own."""
    shape = saved.state.get("data", {}).get("image_shape")
    if isinstance(shape, list):
        return shape[0], shape[1]
    # A checkpoint of 0.1.0 does not say, and knows one side.
    size = saved.config.model.image_size
    return None if saved.config.evaluated_crop is not None else (size, size)
