"""Evaluation: every image of a split exactly once, one transfer to the host at the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast_train.pipeline.config.settings import TestTimeAugmentation
from fast_train.pipeline.engine.augmentation import Augmentation
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.loaders import Loader

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


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Loader,
    augmenter: Augmentation,
    *,
    amp: torch.dtype | None = None,
    tta: TestTimeAugmentation = "none",
) -> Evaluation:
    """Evaluate ``model`` on a loader built with ``train=False``; the model's mode is put back afterwards.

    tta: ``flip`` averages the logits of each image and of its mirror image. ``multicrop`` (Jordan 2024, arXiv
    2404.00498, section 3.5) averages six: image and mirror image weigh 1/4 each, and both of them moved by one pixel
    up and left, and down and right, 1/8 each; what comes in at the border is its reflection.
    Raises ConfigError where the images are too small for that, and ValueError where the loader did not deliver each
    image once.
    """
    classes, device = len(loader.prepared.manifest.classes), loader.device
    loss = torch.zeros((), dtype=torch.float64, device=device)
    labels = torch.zeros(loader.count, dtype=torch.int64, device=device)
    predictions, confidences = torch.zeros_like(labels), torch.zeros(loader.count, device=device)
    delivered = [torch.empty_like(labels[:0])]
    was_training = model.training
    model.eval()
    try:
        for batch in loader.feed():
            truth = batch.targets()
            log_probabilities = _predict(model, augmenter(batch), amp, tta)
            loss += F.nll_loss(log_probabilities, truth, reduction="sum")
            confidence, prediction = log_probabilities.max(dim=1)
            labels[batch.indices], predictions[batch.indices] = truth, prediction
            confidences[batch.indices] = confidence.exp()
            # A copy: a loader may overwrite its batch.
            delivered.append(batch.indices.clone())
    finally:
        model.train(was_training)
    _check_delivered(torch.cat(delivered), loader)
    confusion = torch.bincount(labels * classes + predictions, minlength=classes**2).view(classes, classes)
    correct = int(confusion.diagonal().sum())
    return Evaluation(
        split=loader.split,
        loss=float(loss) / loader.count,
        accuracy=correct / loader.count,
        confusion=confusion.cpu().numpy(),
        labels=labels.cpu().numpy(),
        predictions=predictions.cpu().numpy(),
        confidences=confidences.cpu().numpy(),
    )


def _check_delivered(indices: Tensor, loader: Loader) -> None:
    """indices: int64 [N], of all images that came."""
    times = torch.bincount(indices, minlength=loader.count)
    missing, again = int((times == 0).sum()), int((times > 1).sum())
    if missing or again:
        raise ValueError(
            f"of the {loader.count:,} images of split '{loader.split}' the loader left out {missing:,} and gave "
            f"{again:,} more than once, so there is no accuracy; give another --loader, and report this one"
        )


def _predict(model: nn.Module, images: Tensor, amp: torch.dtype | None, tta: TestTimeAugmentation) -> Tensor:
    """images: [N, C, H, W]. Log-probabilities, float32 [N, K]."""
    check_tta(tta, *images.shape[2:])
    views = [(1.0, images)]
    if tta == "multicrop":
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        views = [(0.5, images), (0.25, padded[:, :, 2:, 2:]), (0.25, padded[:, :, :-2, :-2])]
    if tta != "none":
        views = [(weight / 2, image) for weight, view in views for image in (view, view.flip(3))]
    with torch.autocast(images.device.type, dtype=amp, enabled=amp is not None):
        logits = [weight * model(view).float() for weight, view in views]
    return F.log_softmax(torch.stack(logits).sum(dim=0), dim=1)
