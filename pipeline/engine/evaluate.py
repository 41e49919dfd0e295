"""Evaluation: every image of a split exactly once, one transfer to the host at the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast_train.common.phases import phase
from fast_train.pipeline.config.settings import TestTimeAugmentation
from fast_train.pipeline.engine.augmentation import Augmentation
from fast_train.pipeline.engine.stopping import BrokenOff
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.loaders import Loader
from fast_train.pipeline.ranks import current

# Images at once of CIFAR's size. A batch of larger ones has no more pixels than these, and so takes no more memory.
_BATCH, _PIXELS = 1000, 1000 * 32 * 32


def evaluation_batch(count: int, height: int, width: int) -> int:
    """How many of a split's ``count`` images to evaluate at once, at least 1. height, width: of what the network makes
    of an image first."""
    return max(min(_BATCH, _PIXELS // max(height * width, 1), count), 1)


def check_tta(tta: TestTimeAugmentation, height: int, width: int) -> None:
    """Raise ConfigError where images are too small for a kind of test-time augmentation."""
    if tta == "multicrop" and min(height, width) < 2:
        raise ConfigError(
            f"--tta multicrop moves images by a pixel, for which {height} x {width} pixels are too few; give --tta flip"
        )


@dataclass(frozen=True)
class Evaluation:
    """split: which was evaluated. loss: mean cross-entropy. confusion: int64 [K, K], rows the true class. labels: int64
    [N], the true classes; predictions: int64 [N] and confidences: float32 [N] (the predicted class's probability), all
    in the order of the split's file."""

    split: str
    loss: float
    accuracy: float
    confusion: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    confidences: np.ndarray

    def per_class(self) -> np.ndarray:
        """Accuracy within each true class, float64 [K]; NaN for a class without images."""
        images = self.confusion.sum(axis=1)
        return np.where(images > 0, np.diag(self.confusion) / np.maximum(images, 1), np.nan)


@phase("evaluation")
@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Loader,
    augmenter: Augmentation,
    *,
    amp: torch.dtype | None = None,
    tta: TestTimeAugmentation = "none",
    tta_share: float = 1.0,
    stopped: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Evaluate ``model`` on a loader built with ``train=False``; the model's mode is put back afterwards. Several ranks
    each evaluate their part, and all get the whole.

    tta: ``flip`` averages the logits of each image and of its mirror image. ``multicrop`` (Jordan 2024, arXiv
    2404.00498, section 3.5) averages six: image and mirror image weigh 1/4 each, and both of them moved by one pixel
    up and left, and down and right, 1/8 each; what comes in at the border is its reflection. tta_share: the part of
    each batch, rounded up, whose images get these views: those to which the network, shown the image as it is, gives
    its class the lowest probability. The others keep that prediction (as in Hiverge's cifar10-speedrun, 2025, which
    chooses from the whole split).
    stopped: asked after each batch whether to break off.
    Raises ConfigError where the images are too small for that, ValueError where the loader did not deliver each image
    once, and BrokenOff, on all ranks, where it was to break off on any.
    """
    found = _Found(loader.count, loader.device)
    was_training = model.training
    model.eval()
    try:
        for batch in loader.feed():
            found.put(batch.indices, batch.targets(), log_probabilities(model, augmenter(batch), amp, tta, tta_share))
            if stopped():
                break
    finally:
        model.train(was_training)
    if current().highest(1 if stopped() else None):
        raise BrokenOff
    found.gather()
    _check_delivered(found.times, loader)
    return found.evaluation(loader.split, classes=len(loader.prepared.manifest.classes))


class _Found:
    """What is known of each image of a split, [N], and zero where nothing is: so the sum over ranks, of which each has
    its own images, is exact. times: int64, how often each came."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.times, self.labels, self.predictions = torch.zeros(3, count, dtype=torch.int64, device=device)
        self.confidences, self.losses = torch.zeros(2, count, device=device)

    def put(self, indices: Tensor, labels: Tensor, log_probabilities: Tensor) -> None:
        """indices, labels: int64 [B]. log_probabilities: float32 [B, K], from wherever the model is."""
        log_probabilities = log_probabilities.to(labels.device)
        self.times.index_add_(0, indices, torch.ones_like(indices))
        self.losses[indices] = F.nll_loss(log_probabilities, labels, reduction="none")
        confidence, prediction = log_probabilities.max(dim=1)
        self.labels[indices], self.predictions[indices] = labels, prediction
        self.confidences[indices] = confidence.exp()

    def gather(self) -> None:
        """All of it, on every rank."""
        for name, values in list(vars(self).items()):
            setattr(self, name, current().sum(values))

    def evaluation(self, split: str, *, classes: int) -> Evaluation:
        pairs = torch.bincount(self.labels * classes + self.predictions, minlength=classes**2)
        confusion, count = pairs.view(classes, classes), len(self.labels)
        return Evaluation(
            split=split,
            loss=float(self.losses.double().sum()) / count,
            accuracy=int(confusion.diagonal().sum()) / count,
            confusion=confusion.cpu().numpy(),
            labels=self.labels.cpu().numpy(),
            predictions=self.predictions.cpu().numpy(),
            confidences=self.confidences.cpu().numpy(),
        )


def _check_delivered(times: Tensor, loader: Loader) -> None:
    """times: int64 [N], how often each image came."""
    missing, again = int((times == 0).sum()), int((times > 1).sum())
    if missing or again:
        raise ValueError(
            f"of the {loader.count:,} images of split '{loader.split}' the loader left out {missing:,} and gave "
            f"{again:,} more than once, so there is no accuracy; give another --loader, and report this one"
        )


def log_probabilities(
    model: nn.Module, images: Tensor, amp: torch.dtype | None, tta: TestTimeAugmentation, tta_share: float = 1.0
) -> Tensor:
    """Log-probabilities, float32 [N, K], of images [N, C, H, W]. amp, tta, tta_share: as of `evaluate`."""
    check_tta(tta, *images.shape[2:])

    def predict(view: Tensor) -> Tensor:
        with torch.autocast(images.device.type, dtype=amp, enabled=amp is not None):
            return model(view).float()

    logits = predict(images)
    count = math.ceil(tta_share * len(images))
    if tta != "none" and count:
        chosen = slice(None) if count == len(images) else _least_certain(logits, count)
        (weight, _), *others = _views(images[chosen], tta)
        shown = [weight * logits[chosen], *(weight * predict(view) for weight, view in others)]
        logits[chosen] = torch.stack(shown).sum(dim=0)
    return F.log_softmax(logits, dim=1)


def _least_certain(logits: Tensor, count: int) -> Tensor:
    """The ``count`` rows of the least certain predictions: int64 [count]."""
    return logits.softmax(dim=1).amax(dim=1).topk(count, largest=False).indices


def _views(images: Tensor, tta: TestTimeAugmentation) -> list[tuple[float, Tensor]]:
    """Weights and views [N, C, H, W]; the first shows the images as they are."""
    views = [(1.0, images)]
    if tta == "multicrop":
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        views = [(0.5, images), (0.25, padded[:, :, 2:, 2:]), (0.25, padded[:, :, :-2, :-2])]
    return [(weight / 2, image) for weight, view in views for image in (view, view.flip(3))]
