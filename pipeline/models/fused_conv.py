"""The networks with BatchNorm's sums inside of the convolutions: the same parameters, names and results.

Between layers goes a `Pending`, a convolution's result whose norm waits for the next convolution to apply it. Every
class has a twin in `pipeline.models.fused`, which it is while evaluating. The convolutions are Triton's or cuDNN's.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from fast_train.kernels.convolution import norm_relu_convolution, normalise, with_statistics
from fast_train.kernels.convolution_reference import Raw
from fast_train.pipeline.models.blocks import PlainBlock
from fast_train.pipeline.models.fused import (
    FusedBasicBlock,
    FusedBottleneck,
    FusedNorm,
    FusedPlainBlock,
    FusedResNet,
    shortcut_of,
)
from fast_train.pipeline.models.resnet import ResNet


class CudnnNorm(FusedNorm):
    """A norm whose sums cuDNN takes, in the convolution before it."""


class Pending(NamedTuple):
    """What is to be normalised by ``norm``, added to ``residual`` if there is one, and put through ReLU."""

    raw: Raw
    norm: FusedNorm
    residual: Tensor | None = None


def _pending(conv: nn.Conv2d, x: Tensor, norm: FusedNorm) -> Pending:
    """Behind a convolution that PyTorch computes."""
    out = conv(x)
    return Pending(
        with_statistics(out, *norm.next_statistics(), momentum=cast(float, norm.momentum), eps=norm.eps), norm
    )


def _apply(x: Pending) -> Tensor:
    return normalise(x.raw, x.norm.weight, x.norm.bias, residual=x.residual, relu=True)


def _convolve(x: Pending, conv: nn.Conv2d, norm: FusedNorm, *, shared: bool = False) -> tuple[Pending, Tensor | None]:
    """(after ``conv`` and before ``norm``, what ``conv`` read if ``shared``)."""
    raw, read = norm_relu_convolution(
        x.raw,
        x.norm.weight,
        x.norm.bias,
        # As autocast would cast it.
        conv.weight.to(x.raw.x.dtype),
        *norm.next_statistics(),
        residual=x.residual,
        stride=conv.stride[0],
        shared=shared,
        cudnn=isinstance(norm, CudnnNorm),
        momentum=cast(float, norm.momentum),
        eps=norm.eps,
    )
    return Pending(raw, norm), read


def _enter(x: Pending | Tensor, conv: nn.Conv2d, norm: FusedNorm) -> tuple[Pending, Tensor]:
    """Behind a block's first convolution, and where its shortcut starts. A tensor comes from a pool."""
    if isinstance(x, Pending):
        return cast(tuple[Pending, Tensor], _convolve(x, conv, norm, shared=True))
    return _pending(conv, x, norm), x


# In training a block takes a `Pending` (the first one after a pool: a tensor) and returns one; evaluating, it takes
# and returns what its twin does.
class FusedConvBasicBlock(FusedBasicBlock):
    def forward(self, x: Any) -> Any:
        if not self.training:
            return super().forward(x)
        out, shortcut = _enter(x, self.conv1, self.bn1)
        out, _ = _convolve(out, self.conv2, self.bn2)
        return out._replace(residual=shortcut_of(self, shortcut))


class FusedConvBottleneck(FusedBottleneck):
    def forward(self, x: Any) -> Any:
        if not self.training:
            return super().forward(x)
        out, shortcut = _enter(x, self.conv1, self.bn1)
        out, _ = _convolve(out, self.conv2, self.bn2)
        out, _ = _convolve(out, self.conv3, self.bn3)
        return out._replace(residual=shortcut_of(self, shortcut))


class FusedConvPlainBlock(FusedPlainBlock):
    def forward(self, x: Any) -> Any:
        if not self.training:
            return super().forward(x)
        if isinstance(x, Pending):
            out, _ = _convolve(x, self.conv1, self.bn1)
        else:
            out = _pending(self.conv1, x, self.bn1)
        out, _ = _convolve(out, self.conv2, self.bn2)
        return out


class FusedConvResNet(FusedResNet):
    def _forward_impl(self, x: Tensor) -> Tensor:
        if not self.training:
            return super()._forward_impl(x)
        stem = _pending(self.conv1, x, cast(FusedNorm, self.bn1))
        out = stem if isinstance(self.maxpool, nn.Identity) else self.maxpool(_apply(stem))
        out = _apply(self.layer4(self.layer3(self.layer2(self.layer1(out)))))
        return self.fc(torch.flatten(self.avgpool(out), 1))


class FusedCudnnResNet(FusedConvResNet):
    norm_layer = CudnnNorm


#: The twin of each network and of each block, of ``--fuse conv``. A pre-activation network has none: its norms stand
#: before convolutions and, half of them, after additions.
FUSED_CONV: dict[type[nn.Module], Any] = {
    ResNet: FusedConvResNet,
    BasicBlock: FusedConvBasicBlock,
    Bottleneck: FusedConvBottleneck,
    PlainBlock: FusedConvPlainBlock,
}
#: The same of ``--fuse cudnn``.
FUSED_CUDNN = {**FUSED_CONV, ResNet: FusedCudnnResNet}
