"""What the kernels are asked to do, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

MAX_PAD = 8
MAX_SEED = 2**63 - 1
PadMode = Literal["zero", "reflect"]
FlipMode = Literal["random", "alternating"]


@dataclass(frozen=True, kw_only=True)
class AugmentSpec:
    """What to do to each image; the default does nothing but normalise. ValueError on values out of range."""

    pad: int = 0
    """Pixels, 0 to 8, by which each side is padded before a window of the image's own size is cut out at a uniformly
    random place (He et al. 2015, section 4.2: 4 pixels)."""
    pad_mode: PadMode = "zero"
    """`zero` pads with black, `reflect` mirrors without repeating the border."""
    flip: bool = False
    """Mirror left-right with probability 1/2."""
    flip_mode: FlipMode = "random"
    """`random` draws anew in each epoch. `alternating` draws once, for epoch 0, and mirrors in every other epoch from
    then on (Jordan 2024, arXiv 2404.00498, section 3.6), so that two epochs together show both sides of an image."""
    cutout: int = 0
    """Side in pixels of a square set to the mean colour, its centre uniform over the image and its edges clipped by
    the border (DeVries and Taylor 2017, section 3.2); 0 for none."""

    def __post_init__(self) -> None:
        if not 0 <= self.pad <= MAX_PAD:
            raise ValueError(f"pad {self.pad} is out of range; give 0 to {MAX_PAD} pixels")
        for what, mode, modes in (("pad", self.pad_mode, PadMode), ("flip", self.flip_mode, FlipMode)):
            if mode not in get_args(modes):
                raise ValueError(f"unknown {what} mode '{mode}'; choose from {', '.join(get_args(modes))}")
        if self.cutout < 0:
            raise ValueError(f"cutout {self.cutout} is negative; give the side of the square in pixels, 0 for none")


NO_AUGMENT = AugmentSpec()


def check_reflection(spec: AugmentSpec, height: int, width: int) -> None:
    """ValueError where images have fewer pixels than ``spec`` reflects."""
    if spec.pad_mode == "reflect" and spec.pad >= min(height, width):
        raise ValueError(f"reflect padding of {spec.pad} needs images larger than {(height, width)}")


def check_seed(seed: int) -> None:
    """Raise ValueError unless ``0 <= seed < 2**63``."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed {seed} is out of range; give a whole number from 0 to 2**63 - 1")
