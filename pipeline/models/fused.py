"""The networks with BatchNorm, addition and ReLU in one kernel: the same parameters, names and results.

Every class has a twin in `pipeline.models.blocks`, `pipeline.models.resnet` or torchvision, whose parameters it has;
only the forward pass differs, and it goes with ReLU alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from fast_train.kernels.batchnorm import batch_norm, batch_norm_twice
from fast_train.kernels.batchnorm_reference import Unnormalised
from fast_train.kernels.switches import SWITCHES
from fast_train.pipeline.models.blocks import PlainBlock, PreActBasicBlock, PreActBottleneck
from fast_train.pipeline.models.resnet import PreActResNet, ResNet


class Twice(NamedTuple):
    """One activation under two names, whose gradients the kernel before it adds (see `batch_norm_twice`)."""

    branch: Tensor
    shortcut: Tensor


class FusedNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d, then ``+ residual`` if there is one, then ReLU if ``relu``; ``twice`` returns a `Twice`.

    While training, `kernels.batchnorm` does all in one, and ``later`` leaves it to the norm that gets the result as its
    residual. Evaluating, PyTorch does it.
    """

    def next_statistics(self) -> tuple[Tensor, Tensor]:
        """Running mean and variance, for a kernel to move by one more batch, which is counted. ValueError where the
        norm is frozen."""
        if not self.training:
            raise ValueError("a BatchNorm is frozen; --fuse conv and cudnn take each batch's sums; use --fuse norm")
        cast(Tensor, self.num_batches_tracked).add_(1)
        return cast(Tensor, self.running_mean), cast(Tensor, self.running_var)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | Unnormalised | None = None,
        *,
        relu: bool = False,
        twice: bool = False,
        later: bool = False,
    ) -> Any:
        if self.training:
            arguments = (x, self.weight, self.bias, *self.next_statistics())
            momentum = cast(float, self.momentum)
            if later:
                return Unnormalised(*arguments, momentum, self.eps)
            if twice:
                both = batch_norm_twice(*arguments, residual=residual, relu=relu, momentum=momentum, eps=self.eps)
                return Twice(*both)
            return batch_norm(*arguments, residual=residual, relu=relu, momentum=momentum, eps=self.eps)
        y = super().forward(x)
        if residual is not None:
            y += cast(Tensor, residual)
        if relu:
            y = y.relu_()
        return Twice(y, y) if twice else y


def shortcut_of(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    """What a block adds to its branch, from its input."""
    return x if block.downsample is None else block.downsample(x)


def _residual_of(block: BasicBlock | Bottleneck, x: Tensor, last: nn.Module) -> Tensor | Unnormalised:
    """`shortcut_of` a block whose ``last`` norm, while training, applies a projection's norm too."""
    if isinstance(block.downsample, nn.Sequential) and last.training and SWITCHES.joined_shortcut:
        projection, norm = block.downsample
        return cast(Tensor | Unnormalised, norm(projection(x), later=True))
    return shortcut_of(block, x)


def _twice(x: Tensor | Twice) -> Twice:
    return x if isinstance(x, Twice) else Twice(x, x)


class FusedBasicBlock(BasicBlock):
    """`BasicBlock`. last: no block comes after it, so that its result needs no second name."""

    last = False

    def forward(self, x: Tensor | Twice) -> Tensor | Twice:
        branch, shortcut = _twice(x)
        out = self.bn1(self.conv1(branch), relu=True)
        return self.bn2(self.conv2(out), _residual_of(self, shortcut, self.bn2), relu=True, twice=not self.last)


class FusedBottleneck(Bottleneck):
    """`Bottleneck`. last: as in `FusedBasicBlock`."""

    last = False

    def forward(self, x: Tensor | Twice) -> Tensor | Twice:
        branch, shortcut = _twice(x)
        out = self.bn1(self.conv1(branch), relu=True)
        out = self.bn2(self.conv2(out), relu=True)
        return self.bn3(self.conv3(out), _residual_of(self, shortcut, self.bn3), relu=True, twice=not self.last)


class FusedPlainBlock(PlainBlock):
    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x), relu=True)
        return self.bn2(self.conv2(out), relu=True)


def _activate(block: PreActBasicBlock | PreActBottleneck, x: Tensor) -> Twice:
    """The first BatchNorm and ReLU of a pre-activation block, and where its shortcut starts."""
    if block.shares_activation:
        return block.bn1(x, relu=True, twice=True)
    return Twice(block.bn1(x, relu=True), x)


class FusedPreActBasicBlock(PreActBasicBlock):
    """`PreActBasicBlock`. The addition at its end stays PyTorch's: a convolution comes before it."""

    def forward(self, x: Tensor) -> Tensor:
        first = _activate(self, x)
        identity = shortcut_of(self, first.shortcut)
        out = self.conv2(self.bn2(self.conv1(first.branch), relu=True))
        out += identity
        return out


class FusedPreActBottleneck(PreActBottleneck):
    """`PreActBottleneck`. The addition at its end stays PyTorch's."""

    def forward(self, x: Tensor) -> Tensor:
        first = _activate(self, x)
        identity = shortcut_of(self, first.shortcut)
        out = self.bn2(self.conv1(first.branch), relu=True)
        out = self.conv3(self.bn3(self.conv2(out), relu=True))
        out += identity
        return out


class FusedResNet(ResNet):
    norm_layer = FusedNorm

    def _finish(self) -> None:
        blocks = [m for m in self.modules() if isinstance(m, (FusedBasicBlock, FusedBottleneck))]
        for block in blocks[-1:]:
            block.last = True
        # A pool between stem and blocks has but one input.
        self._stem_twice = bool(blocks) and isinstance(self.maxpool, nn.Identity)

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(x), relu=True, twice=self._stem_twice))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class FusedPreActResNet(PreActResNet):
    norm_layer = FusedNorm

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.bn_final(x, relu=True)
        return self.fc(torch.flatten(self.avgpool(x), 1))


#: The twin of each network and of each block, of ``--fuse norm``.
FUSED: dict[type[nn.Module], Any] = {
    ResNet: FusedResNet,
    PreActResNet: FusedPreActResNet,
    BasicBlock: FusedBasicBlock,
    Bottleneck: FusedBottleneck,
    PlainBlock: FusedPlainBlock,
    PreActBasicBlock: FusedPreActBasicBlock,
    PreActBottleneck: FusedPreActBottleneck,
}
