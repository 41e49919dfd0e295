"""ResNets of any widths, stem and shortcut, on torchvision's class and with its names of parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, conv3x3

from fast_train.pipeline.config.architectures import Activation, Shortcut
from fast_train.pipeline.models.blocks import PreActBasicBlock, PreActBottleneck, build_shortcut, zero_residual_branch

ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    # In place, as torchvision's: the backward pass of each needs its output only.
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.01, inplace=True),
    "elu": lambda: nn.ELU(inplace=True),
}


class ResNet(torchvision.models.ResNet):
    """[N, in_channels, H, W] to logits [N, num_classes].

    layers, widths: the number of blocks and the channels (before expansion) of each stage, of three or four; the
    image halves at each stage but the first, which may have no blocks. stem: ``cifar`` is a 3x3 convolution,
    ``imagenet`` a 7x7 one of stride 2 and a max-pool. shortcut: A, B, C or None, see `build_shortcut`.

    Convolutions start from torchvision's normal distribution (He et al. 2015a, fan-out, gain of ReLU) whatever
    the activation: BatchNorm follows each, so the scale is no matter, and PyTorch has no gain for ELU.
    """

    norm_layer: type[nn.BatchNorm2d] = nn.BatchNorm2d
    projection_norm = True
    _frozen: tuple[str, ...] = ()

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: Sequence[int],
        widths: Sequence[int],
        *,
        num_classes: int,
        in_channels: int = 3,
        stem: Literal["cifar", "imagenet"] = "cifar",
        shortcut: Shortcut | None = "B",
        activation: Activation = "relu",
        zero_init_residual: bool = False,
    ) -> None:
        # Not torchvision's own __init__, which builds other stages. Its _make_layer reads these five.
        nn.Module.__init__(self)
        self._norm_layer = self.norm_layer
        self.inplanes, self.dilation, self.groups, self.base_width = widths[0], 1, 1, 64
        self.shortcut = shortcut

        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, widths[0], kernel_size=7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = conv3x3(in_channels, widths[0])
        self.bn1: nn.Module = self.norm_layer(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        self.layer1 = self._make_layer(block, widths[0], layers[0])
        self.layer2 = self._make_layer(block, widths[1], layers[1], stride=2)
        self.layer3 = self._make_layer(block, widths[2], layers[2], stride=2)
        four = len(layers) == 4
        self.layer4 = self._make_layer(block, widths[3], layers[3], stride=2) if four else nn.Identity()
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(self.inplanes, num_classes)
        self._initialise(activation, zero_init_residual)
        self._finish()

    def _finish(self) -> None:
        """What a subclass changes in the network once it is built and initialised."""

    def freeze(self, part: str) -> None:
        """Keep the weights, and BatchNorm's statistics, up to and with ``part``: ``stem``, ``layer1`` to ``layer3``, or
        ``backbone``, which is all but the classifier."""
        names = [name for name, _ in self.named_children() if name != "fc"]
        last = {"stem": "maxpool", "backbone": names[-1]}.get(part, part)
        self._frozen = tuple(names[: names.index(last) + 1])
        for name in self._frozen:
            getattr(self, name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> ResNet:
        super().train(mode)
        for name in self._frozen:
            # Their BatchNorms go on by the statistics that they have.
            getattr(self, name).eval()
        return self

    def _make_layer(
        self, block: type[BasicBlock | Bottleneck], planes: int, blocks: int, stride: int = 1, dilate: bool = False
    ) -> nn.Sequential:
        if not blocks:
            return nn.Sequential()
        inputs, outputs = self.inplanes, planes * block.expansion
        stage = super()._make_layer(block, planes, blocks, stride, dilate)
        for unit in stage:
            norm = self.norm_layer if self.projection_norm else None
            unit.downsample = build_shortcut(self.shortcut, inputs, outputs, unit.stride, norm=norm)
            inputs = outputs
        return stage

    def _initialise(self, activation: Activation, zero_init_residual: bool) -> None:
        for module in list(self.modules()):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if hasattr(module, "relu"):
                module.relu = ACTIVATIONS[activation]()
        if zero_init_residual:
            self.apply(zero_residual_branch)


class PreActResNet(ResNet):
    """Pre-activation blocks (He et al. 2016): no BatchNorm after the stem, one more after the last block.

    The shortcut starts after the activation in the first block of all (their appendix: "we adopt the first
    activation right after conv1 and before splitting into two paths") and where it is a projection, which has no
    BatchNorm of its own (as in their code); elsewhere the way of the identity stays clear.
    """

    projection_norm = False

    def _finish(self) -> None:
        self.bn1 = nn.Identity()
        self.bn_final = self.norm_layer(self.inplanes)
        units = [m for m in self.modules() if isinstance(m, (PreActBasicBlock, PreActBottleneck))]
        for number, unit in enumerate(units):
            unit.shares_activation = number == 0 or isinstance(unit.downsample, nn.Sequential)

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.relu(self.bn_final(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))
