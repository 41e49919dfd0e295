"""The architectures, by name, and the configuration that builds one.

| name | what | depths |
| --- | --- | --- |
| ``resnetN`` | 64-512 channels in four stages, torchvision's | 18, 34, 50, 101, 152 |
| ``resnetN`` | 16-32-64 channels in three stages, He et al. 2015, section 4.2 | 8, 14, 20, 32, 44, 56, 110 |
| ``quick-resnet8`` | 16 channels at full size, then a block each of 32, 64, 128 at a half, a quarter, an eighth | 8 |
| ``plain-N`` | the same without shortcuts, where blocks are basic | 8, 14, 18, 20, 32, 34, 44, 56, 110 |
| ``preact-resnetN`` | the same in the order of He et al. 2016 | all |
| ``speednetN`` | a frozen whitening layer and three wide stages, for the shortest training | 8, 11 |
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from pipeline.errors import check_name
from pipeline.models.blocks import PlainBlock, PreActBasicBlock, PreActBottleneck
from pipeline.models.fused import FUSED_BLOCKS, FUSED_NETWORKS
from pipeline.models.fused_conv import FUSED_CONV_BLOCKS, FUSED_CONV_NETWORKS
from pipeline.models.resnet import ACTIVATIONS, PreActResNet, ResNet
from pipeline.models.speednet import SMALLEST_IMAGE, SPEEDNETS, SpeedNet

__all__ = [
    "ACTIVATIONS",
    "ARCHITECTURES",
    "FUSIONS",
    "SHORTCUTS",
    "STEMS",
    "Architecture",
    "ModelConfig",
    "ResNet",
    "SpeedNet",
    "architecture_names",
    "build_model",
    "initialise_from_data",
    "starts_from_data",
]

STEMS = ("auto", "cifar", "imagenet")
SHORTCUTS = ("A", "B", "C")
#: The networks and blocks of each way to fuse, by the plain ones.
FUSIONS: dict[
    str, tuple[dict[type[ResNet], type[ResNet]], dict[type[BasicBlock | Bottleneck], type[BasicBlock | Bottleneck]]]
] = {
    "none": ({}, {}),
    "norm": (FUSED_NETWORKS, FUSED_BLOCKS),
    "conv": (FUSED_CONV_NETWORKS, FUSED_CONV_BLOCKS),
}
LARGEST_CIFAR_STEM = 64  # pixels; above, the stem "auto" is ImageNet's


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a ResNet's name stands for: blocks and channels of each stage (a first stage of no blocks leaves only the
    stem at full size), and the option of the shortcuts if none is asked for (None: the net has no shortcuts)."""

    network: type[ResNet]
    block: type[BasicBlock | Bottleneck]
    layers: tuple[int, ...]
    widths: tuple[int, ...]
    shortcut: str | None


def _architectures() -> dict[str, Architecture]:
    four, three = (64, 128, 256, 512), (16, 32, 64)
    sizes: list[tuple[int, bool, tuple[int, ...], tuple[int, ...]]] = [
        (18, False, (2, 2, 2, 2), four),
        (34, False, (3, 4, 6, 3), four),
        (50, True, (3, 4, 6, 3), four),
        (101, True, (3, 4, 23, 3), four),
        (152, True, (3, 8, 36, 3), four),
    ]
    # 6n + 2 weighted layers: the stem, 2n convolutions in each of three stages, the classifier.
    sizes += [(6 * n + 2, False, (n, n, n), three) for n in (1, 2, 3, 5, 7, 9, 18)]
    found = {}
    for depth, bottleneck, layers, widths in sizes:
        shortcut = "B" if widths == four else "A"
        found[f"resnet{depth}"] = Architecture(
            network=ResNet,
            block=Bottleneck if bottleneck else BasicBlock,
            layers=layers,
            widths=widths,
            shortcut=shortcut,
        )
        found[f"preact-resnet{depth}"] = Architecture(
            network=PreActResNet,
            block=PreActBottleneck if bottleneck else PreActBasicBlock,
            layers=layers,
            widths=widths,
            shortcut=shortcut,
        )
        if not bottleneck:
            found[f"plain-{depth}"] = Architecture(
                network=ResNet, block=PlainBlock, layers=layers, widths=widths, shortcut=None
            )
    # Most of a small net's time goes into full-size layers: this one has only the stem there, and twice the channels
    # of resnet8 after it, for less time.
    found["quick-resnet8"] = Architecture(
        network=ResNet, block=BasicBlock, layers=(0, 1, 1, 1), widths=(16, 32, 64, 128), shortcut="B"
    )
    return found


ARCHITECTURES = _architectures()


def architecture_names() -> list[str]:
    """All names, by family and then by depth."""

    def key(name: str) -> tuple[str, int]:
        family = name.rstrip("0123456789")
        return family, int(name[len(family) :])

    return sorted([*ARCHITECTURES, *SPEEDNETS], key=key)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """An architecture and its variations; raises ValueError on one that does not exist.

    arch: a name from `architecture_names`. image_size: side in pixels; it only decides the stem ``auto``, which
    is ``cifar`` (3x3 convolution) up to 64 pixels and ``imagenet`` (7x7 of stride 2, max-pool) above.
    shortcut: option A, B or C of He et al. 2015, section 4.1; None for the architecture's own, B in torchvision's
    nets and A in the 16-32-64 nets. zero_init_residual: start every block as its shortcut. A speednet has none of
    these variations, and GELU.
    """

    arch: str = "resnet18"
    num_classes: int = 10
    image_size: int = 32
    in_channels: int = 3
    stem: str = "auto"
    shortcut: str | None = None
    activation: str = "relu"
    zero_init_residual: bool = False

    def __post_init__(self) -> None:
        check_name("architecture", self.arch, architecture_names())
        check_name("stem", self.stem, STEMS)
        check_name("activation", self.activation, ACTIVATIONS)
        for name in ("num_classes", "image_size", "in_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; give 1 or more")
        if self.shortcut is not None:
            check_name("shortcut", self.shortcut, SHORTCUTS)
        if self.arch in SPEEDNETS:
            self._check_speednet()
        elif ARCHITECTURES[self.arch].shortcut is None and (self.shortcut or self.zero_init_residual):
            setting = "shortcut" if self.shortcut else "zero_init_residual"
            twin = self.arch.replace("plain-", "resnet")
            raise ValueError(f"{self.arch} has no shortcuts; leave out model.{setting}, or take {twin}")

    def _check_speednet(self) -> None:
        for name in ("stem", "shortcut", "activation", "zero_init_residual"):
            if getattr(self, name) != ModelConfig.__dataclass_fields__[name].default:
                raise ValueError(f"{self.arch} has no choice of model.{name}; leave it out, or take another --arch")
        if self.image_size < SMALLEST_IMAGE:
            raise ValueError(
                f"{self.arch} needs images of {SMALLEST_IMAGE} pixels or more a side, not {self.image_size}; take "
                "another --arch"
            )


def build_model(config: ModelConfig, *, fuse: str = "none") -> ResNet | SpeedNet:
    """A new network on the CPU, initialised from PyTorch's default generator. See `starts_from_data`.

    fuse: one of `FUSIONS`: ``norm`` for BatchNorm, addition and ReLU in one kernel (`pipeline.models.fused`), ``conv``
    for BatchNorm's sums inside of the convolutions too (`pipeline.models.fused_conv`); weights, names and results are
    the same. Raises ValueError for another activation than ReLU, and for a network that has no such twin.
    """
    if config.arch in SPEEDNETS:
        if fuse != "none":
            raise ValueError(f"--fuse {fuse} goes with ReLU alone, and {config.arch} has GELU; leave it out")
        return SpeedNet(SPEEDNETS[config.arch], num_classes=config.num_classes, in_channels=config.in_channels)
    architecture = ARCHITECTURES[config.arch]
    network, block = architecture.network, architecture.block
    if fuse != "none":
        if config.activation != "relu":
            raise ValueError(f"--fuse {fuse} goes with ReLU alone; leave it out, or --activation {config.activation}")
        networks, blocks = FUSIONS[fuse]
        if network not in networks:
            raise ValueError(f"--fuse {fuse} has no pre-activation network such as {config.arch}; take --fuse norm")
        network, block = networks[network], blocks[block]
    stem = config.stem
    if stem == "auto":
        stem = "cifar" if config.image_size <= LARGEST_CIFAR_STEM else "imagenet"
    return network(
        block,
        architecture.layers,
        architecture.widths,
        num_classes=config.num_classes,
        in_channels=config.in_channels,
        stem=stem,
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
