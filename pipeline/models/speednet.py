"""Nets for the shortest training: those of Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv
2404.00498, section 3 and appendix A."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast_train.pipeline.config.architectures import SpeedNetShape

_PATCH = 2
# Logits are multiplied by it: their spread at the start is then small next to the loss's own scale.
_LOGIT_SCALE = 1 / 9
# Added to the eigenvalues of the patches, so that directions of almost no variance are not blown up.
_WHITENING_EPSILON = 5e-4
# Images whose patches are taken at a time: 9 MB in float64 at 32 x 32, which caches hold.
_IMAGES_AT_ONCE = 100


class Whitening(nn.Conv2d):
    """A 2x2 convolution without padding whose outputs, over the patches of natural images, are uncorrelated.

    [N, C, H, W] to [N, 8C, H-1, W-1]: the 4C eigenvectors of the patches' second moments, each over the root of its
    eigenvalue, and their negatives (section 3.2). Its weights stay as `fit` left them; its bias is trained.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 2 * channels * _PATCH**2, kernel_size=_PATCH)
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def fit(self, images: Tensor, *, at_once: int = _IMAGES_AT_ONCE) -> None:
        """Take the weights from the patches of ``images``, normalised [N, C, H, W], ``at_once`` images at a time. In
        float64 on the CPU, so that the same images give the same weights whatever trains on them."""
        size = self.weight[0].numel()
        moments, patches = torch.zeros(size, size, dtype=torch.float64), 0
        for chunk in torch.split(images.cpu(), at_once):
            columns = F.unfold(chunk.double(), _PATCH)
            moments += torch.bmm(columns, columns.mT).sum(dim=0)
            patches += columns.shape[0] * columns.shape[2]
        eigenvalues, eigenvectors = torch.linalg.eigh(moments / patches)
        filters = (eigenvectors / (eigenvalues + _WHITENING_EPSILON).sqrt()).T.view(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat([filters, -filters]))


class BiasNorm(nn.BatchNorm2d):
    """BatchNorm whose scale stays 1: the convolution after it can scale as well."""

    def __init__(self, channels: int, momentum: float) -> None:
        super().__init__(channels, eps=1e-12, momentum=momentum)
        self.weight.requires_grad_(False)


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """3x3; its first filters pass their channel on as it is (section 3.3), the rest are PyTorch's random ones."""
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(convolution.weight[:inputs])
    return convolution


class Stage(nn.Module):
    """[N, inputs, H, W] to [N, outputs, H // 2, W // 2]: two or three convolutions, a max-pool after the first, each
    followed by `BiasNorm` and GELU. With three, a shortcut leads around the last two."""

    def __init__(self, inputs: int, outputs: int, convolutions: int, momentum: float) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(inputs, outputs), BiasNorm(outputs, momentum)
        self.conv2, self.bn2 = _convolution(outputs, outputs), BiasNorm(outputs, momentum)
        self.conv3: nn.Module | None = None
        if convolutions == 3:
            self.conv3, self.bn3 = _convolution(outputs, outputs), BiasNorm(outputs, momentum)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.bn1(F.max_pool2d(self.conv1(x), 2)))
        if self.conv3 is None:
            return F.gelu(self.bn2(self.conv2(x)))
        out = F.gelu(self.bn2(self.conv2(x)))
        return F.gelu(self.bn3(self.conv3(out)) + x)


class SpeedNet(nn.Module):
    """[N, in_channels, H, W], a side of 9 pixels or more, to logits [N, num_classes].

    A new one is not ready to train: `initialise_from_data` gives the whitening layer its weights.
    """

    def __init__(self, shape: SpeedNetShape, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        first, second, third = shape.widths
        self.whiten = Whitening(in_channels)
        self.layer1 = Stage(self.whiten.out_channels, first, shape.convolutions, shape.bn_momentum)
        self.layer2 = Stage(first, second, shape.convolutions, shape.bn_momentum)
        self.layer3 = Stage(second, third, shape.convolutions, shape.bn_momentum)
        self.fc = nn.Linear(third, num_classes, bias=False)

    def initialise_from_data(self, images: Tensor) -> None:
        """images: some of the training split's, normalised, [N, in_channels, H, W]; section 3.2 takes 5,000."""
        self.whiten.fit(images)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.whiten(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.max_pool2d(x, tuple(x.shape[2:])).flatten(1)
        return self.fc(x) * _LOGIT_SCALE
