"""Evaluation: every image of a split exactly once, one transfer to the host at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.augmentation import Augmenter
from pipeline.loaders import Loader


@dataclass(frozen=True)
class Evaluation:
    """loss: mean cross-entropy. confusion: int64 [K, K], rows the true class. predictions: int64 [N] and
    confidences: float32 [N] (the predicted class's probability), both in the order of the split's file."""

    loss: float
    accuracy: float
    confusion: np.ndarray
    predictions: np.ndarray
    confidences: np.ndarray

    def per_class(self) -> np.ndarray:
        """Accuracy within each true class, float64 [K]; NaN for a class without images."""
        images = self.confusion.sum(axis=1)
        return np.where(images > 0, np.diag(self.confusion) / np.maximum(images, 1), np.nan)


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Loader, augmenter: Augmenter, *, amp: torch.dtype | None = None, tta: str = "none"
) -> Evaluation:
    """Evaluate ``model`` on a loader built with ``train=False``; the model's mode is put back afterwards.

    tta: ``flip`` averages the class probabilities of each image and of its mirror image.
    """
    classes, device = len(loader.prepared.manifest.classes), loader.device
    loss = torch.zeros((), dtype=torch.float64, device=device)
    labels = torch.zeros(loader.count, dtype=torch.int64, device=device)
    predictions, confidences = torch.zeros_like(labels), torch.zeros(loader.count, device=device)
    was_training = model.training
    model.eval()
    try:
        for batch in loader.feed():
            images = augmenter(batch, gather=loader.gathers)
            truth = batch.labels[batch.indices] if loader.gathers else batch.labels
            log_probabilities = _predict(model, images, amp, tta)
            loss += F.nll_loss(log_probabilities, truth, reduction="sum")
            confidence, prediction = log_probabilities.max(dim=1)
            labels[batch.indices], predictions[batch.indices] = truth, prediction
            confidences[batch.indices] = confidence.exp()
    finally:
        model.train(was_training)
    confusion = torch.bincount(labels * classes + predictions, minlength=classes**2).view(classes, classes)
    correct = int(confusion.diagonal().sum())
    return Evaluation(
        loss=float(loss) / loader.count,
        accuracy=correct / loader.count,
        confusion=confusion.cpu().numpy(),
        predictions=predictions.cpu().numpy(),
        confidences=confidences.cpu().numpy(),
    )


def _predict(model: nn.Module, images: Tensor, amp: torch.dtype | None, tta: str) -> Tensor:
    """Log-probabilities, float32 [N, K]."""
    views = [images, images.flip(3)] if tta == "flip" else [images]
    with torch.autocast(images.device.type, dtype=amp, enabled=amp is not None):
        logits = [model(view) for view in views]
    logs = torch.stack([F.log_softmax(value.float(), dim=1) for value in logits])
    return torch.logsumexp(logs, dim=0) - math.log(len(views))
