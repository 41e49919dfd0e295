"""Builds the networks that `pipeline.config.architectures` names."""

from __future__ import annotations

from typing import Any, get_args

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from fast_train.pipeline.config.architectures import ARCHITECTURES, SPEEDNETS, Block, Fusion
from fast_train.pipeline.config.settings import ModelConfig
from fast_train.pipeline.errors import check_name
from fast_train.pipeline.models.blocks import PlainBlock, PreActBasicBlock, PreActBottleneck
from fast_train.pipeline.models.fused import FUSED
from fast_train.pipeline.models.fused_conv import FUSED_CONV, FUSED_CUDNN
from fast_train.pipeline.models.resnet import PreActResNet, ResNet
from fast_train.pipeline.models.speednet import SpeedNet

__all__ = ["FUSIONS", "ResNet", "SpeedNet", "build_model", "initialise_from_data", "starts_from_data"]

#: The network and the block of each name of a block.
_BLOCKS: dict[Block, tuple[type[ResNet], type[BasicBlock | Bottleneck]]] = {
    "basic": (ResNet, BasicBlock),
    "bottleneck": (ResNet, Bottleneck),
    "plain": (ResNet, PlainBlock),
    "preact-basic": (PreActResNet, PreActBasicBlock),
    "preact-bottleneck": (PreActResNet, PreActBottleneck),
}
#: The networks and blocks of each way to fuse, by the plain ones.
FUSIONS: dict[Fusion, dict[type[nn.Module], Any]] = {
    "none": {},
    "norm": FUSED,
    "conv": FUSED_CONV,
    "cudnn": FUSED_CUDNN,
}


def build_model(config: ModelConfig, *, fuse: Fusion = "none") -> ResNet | SpeedNet:
    """A new network on the CPU, initialised from PyTorch's default generator. See `starts_from_data`.

    fuse: one of `FUSIONS`: ``norm`` for BatchNorm, addition and ReLU in one kernel (`pipeline.models.fused`), ``conv``
    for BatchNorm's sums inside of the convolutions too (`pipeline.models.fused_conv`), ``cudnn`` for the same by cuDNN,
    where that can be (`kernels.convolution_cudnn.why_not`); weights, names and results are the same. Raises ValueError
    for another activation than ReLU, and for a network that has no such twin.
    """
    check_name("fusion", fuse, get_args(Fusion))
    if config.arch in SPEEDNETS:
        if fuse != "none":
            raise ValueError(f"--fuse {fuse} goes with ReLU alone, and {config.arch} has GELU; leave it out")
        return SpeedNet(SPEEDNETS[config.arch], num_classes=config.num_classes, in_channels=config.in_channels)
    architecture = ARCHITECTURES[config.arch]
    network, block = _BLOCKS[architecture.block]
    if fuse != "none":
        if config.activation != "relu":
            raise ValueError(f"--fuse {fuse} goes with ReLU alone; leave it out, or --activation {config.activation}")
        twins = FUSIONS[fuse]
        if network not in twins:
            raise ValueError(f"--fuse {fuse} has no pre-activation network such as {config.arch}; take --fuse norm")
        network, block = twins[network], twins[block]
    return network(
        block,
        architecture.layers,
        architecture.widths,
        num_classes=config.num_classes,
        in_channels=config.in_channels,
        stem=config.first_layers,
        shortcut=config.shortcut or architecture.shortcut,
        activation=config.activation,
        zero_init_residual=config.zero_init_residual,
    )


def starts_from_data(model: nn.Module) -> bool:
    """Whether the model's first weights come from training images; `initialise_from_data` sets them."""
    return isinstance(model, SpeedNet)


def initialise_from_data(model: nn.Module, images: Tensor) -> None:
    """Set the weights that come from data, of a model that has such; others stay as they are.

    images: the first ones of the training split, normalised and not augmented, float32 [N, C, H, W].
    """
    if isinstance(model, SpeedNet):
        model.initialise_from_data(images)
