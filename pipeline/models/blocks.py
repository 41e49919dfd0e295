"""Building blocks: shortcuts, and the blocks that torchvision does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1

from fast_train.pipeline.config.architectures import Shortcut


class ZeroPadShortcut(nn.Module):
    """Option A of He et al. 2015, section 4.1: the identity, subsampled, with zeros for the new channels.

    [N, C, H, W] to [N, channels, ceil(H / stride), ceil(W / stride)], in the memory format of its input. It has
    no parameters.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        new = self.channels - x.shape[1]
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, new))

    def extra_repr(self) -> str:
        return f"channels={self.channels}, stride={self.stride}"


def build_shortcut(
    option: Shortcut | None,
    inputs: int,
    outputs: int,
    stride: int,
    *,
    norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
) -> nn.Module | None:
    """What a block of ``inputs`` to ``outputs`` channels does to its input before adding it: None for nothing.

    option: A, B or C of He et al. 2015, section 4.1 (zero padding, projection where shapes differ, projection
    everywhere), or None where there is no shortcut. norm: the normalisation after a projection, None for none.
    """
    same_shape = stride == 1 and inputs == outputs
    if option is None or (same_shape and option != "C"):
        return None
    if option == "A":
        return ZeroPadShortcut(outputs, stride)
    projection = conv1x1(inputs, outputs, stride)
    return nn.Sequential(projection, norm(outputs)) if norm else nn.Sequential(projection)


class PlainBlock(BasicBlock):
    """Two 3x3 convolutions without a shortcut: the plain nets of He et al. 2015, section 3.3."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)))


class PreActBasicBlock(BasicBlock):
    """BatchNorm, activation, convolution, twice: the full pre-activation of He et al. 2016, figure 4(e).

    shares_activation: the shortcut starts after the first activation rather than before it (see `PreActResNet`).
    """

    shares_activation = False

    def __init__(self, inplanes: int, *arguments: Any, **options: Any) -> None:
        super().__init__(inplanes, *arguments, **options)
        self.bn1 = type(self.bn2)(inplanes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(x))
        identity = out if self.shares_activation else x
        if self.downsample is not None:
            identity = self.downsample(identity)
        out = self.conv1(out)
        out = self.conv2(self.relu(self.bn2(out)))
        out += identity
        return out


class PreActBottleneck(Bottleneck):
    """The bottleneck in the order of `PreActBasicBlock`."""

    shares_activation = False

    def __init__(self, inplanes: int, *arguments: Any, **options: Any) -> None:
        super().__init__(inplanes, *arguments, **options)
        self.bn1 = type(self.bn2)(inplanes)
        self.bn3 = type(self.bn2)(self.conv2.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(x))
        identity = out if self.shares_activation else x
        if self.downsample is not None:
            identity = self.downsample(identity)
        out = self.conv1(out)
        out = self.conv2(self.relu(self.bn2(out)))
        out = self.conv3(self.relu(self.bn3(out)))
        out += identity
        return out


def zero_residual_branch(block: nn.Module) -> None:
    """Make the block's residual branch start at zero, so that the block starts as its shortcut.

    By the last BatchNorm's scale as in torchvision (Goyal et al. 2017, section 5.1). Pre-activation blocks end in
    a convolution, and their last BatchNorm feeds a ReLU whose gradient at zero is zero, so there it is the
    convolution's weight.
    """
    if isinstance(block, (BasicBlock, Bottleneck)):
        layer = "conv" if isinstance(block, (PreActBasicBlock, PreActBottleneck)) else "bn"
        number = 3 if isinstance(block, Bottleneck) else 2
        nn.init.zeros_(getattr(block, f"{layer}{number}").weight)
