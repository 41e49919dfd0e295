"""The networks by name, as plain data; `pipeline.models` builds them.

| name | what | depths |
| --- | --- | --- |
| ``resnetN`` | 64-512 channels in four stages, torchvision's | 18, 34, 50, 101, 152 |
| ``resnetN`` | 16-32-64 channels in three stages, He et al. 2015, section 4.2 | 8, 14, 20, 32, 44, 56, 110 |
| ``quick-resnet8`` | 16 channels at full size, then a block each of 32, 64, 128 at a half, a quarter, an eighth | 8 |
| ``plain-N`` | the same without shortcuts, where blocks are basic | 8, 14, 18, 20, 32, 34, 44, 56, 110 |
| ``preact-resnetN`` | the same in the order of He et al. 2016 | all |
| ``speednetN`` | a frozen whitening layer and three wide stages, for the shortest training | 8, 11 |
| ``small-speednet8`` | the same with narrow stages, which chooses what others train on | 8 |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stem = Literal["auto", "cifar", "imagenet"]
Shortcut = Literal["A", "B", "C"]
Activation = Literal["relu", "leaky_relu", "elu"]
Fusion = Literal["none", "norm", "conv", "cudnn"]
Block = Literal["basic", "bottleneck", "plain", "preact-basic", "preact-bottleneck"]

#: The largest side in pixels for which the stem ``auto`` is CIFAR's; above, it is ImageNet's.
LARGEST_CIFAR_STEM = 64
#: The smallest side in pixels that the three halvings of a speednet leave something of.
SMALLEST_SPEEDNET_IMAGE = 9


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a ResNet's name stands for: blocks and channels of each stage (a first stage of no blocks leaves only the
    stem at full size), and the option of the shortcuts if none is asked for (None: the net has no shortcuts)."""

    block: Block
    layers: tuple[int, ...]
    widths: tuple[int, ...]
    shortcut: Shortcut | None


@dataclass(frozen=True, kw_only=True)
class SpeedNetShape:
    """widths: channels of the three stages. convolutions: of each stage. bn_momentum: the share of a batch's
    statistics in the running ones."""

    widths: tuple[int, int, int]
    convolutions: int
    bn_momentum: float


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
        shortcut: Shortcut = "B" if widths == four else "A"
        blocks: dict[str, Block] = {
            f"resnet{depth}": "bottleneck" if bottleneck else "basic",
            f"preact-resnet{depth}": "preact-bottleneck" if bottleneck else "preact-basic",
        }
        for name, block in blocks.items():
            found[name] = Architecture(block=block, layers=layers, widths=widths, shortcut=shortcut)
        if not bottleneck:
            found[f"plain-{depth}"] = Architecture(block="plain", layers=layers, widths=widths, shortcut=None)
    # Most of a small net's time goes into full-size layers: this one has only the stem there, and twice the channels
    # of resnet8 after it, for less time.
    found["quick-resnet8"] = Architecture(block="basic", layers=(0, 1, 1, 1), widths=(16, 32, 64, 128), shortcut="B")
    return found


ARCHITECTURES = _architectures()
#: The number counts weighted layers, the whitening and the classifier among them.
SPEEDNETS = {
    "speednet8": SpeedNetShape(widths=(64, 256, 256), convolutions=2, bn_momentum=0.4),
    "small-speednet8": SpeedNetShape(widths=(32, 64, 64), convolutions=2, bn_momentum=0.1),
    "speednet11": SpeedNetShape(widths=(128, 512, 512), convolutions=3, bn_momentum=0.1),
}


def architecture_names() -> list[str]:
    """All names, by family and then by depth."""

    def key(name: str) -> tuple[str, int]:
        family = name.rstrip("0123456789")
        return family, int(name[len(family) :])

    return sorted([*ARCHITECTURES, *SPEEDNETS], key=key)
