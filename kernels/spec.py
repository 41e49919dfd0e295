"""What the kernels are asked to do, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

MAX_PAD = 8
MAX_SEED = 2**63 - 1
PadMode = Literal["zero", "reflect"]
FlipMode = Literal["random", "alternating"]
#: The byte that `AugmentSpec.contrast` leaves as it is.
MID_GREY = 128


def _check_numbers(spec: AugmentSpec | CropChanges, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(spec, name), Real):
            raise ValueError(f"{name} is {getattr(spec, name)!r}; it must be a number")


def _check_parts(section: str, spec: AugmentSpec | CropChanges, *names: str) -> None:
    _check_numbers(spec, *names)
    for name in names:
        if not 0 <= getattr(spec, name) <= 1:
            raise ValueError(f"{section}.{name} {getattr(spec, name)} is out of range; give a number from 0 to 1")


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
    brightness: float = 0.0
    """Multiply by a factor uniform in 1 - x to 1 + x; 0 to 1. First brightness, then contrast."""
    contrast: float = 0.0
    """Multiply the distance from mid-grey, the byte 128, by a factor uniform in 1 - x to 1 + x; 0 to 1."""

    def __post_init__(self) -> None:
        _check_numbers(self, "pad", "cutout")
        if not 0 <= self.pad <= MAX_PAD:
            raise ValueError(f"pad {self.pad} is out of range; give 0 to {MAX_PAD} pixels")
        for what, mode, modes in (("pad", self.pad_mode, PadMode), ("flip", self.flip_mode, FlipMode)):
            if mode not in get_args(modes):
                raise ValueError(f"unknown {what} mode '{mode}'; choose from {', '.join(get_args(modes))}")
        if self.cutout < 0:
            raise ValueError(f"cutout {self.cutout} is negative; give the side of the square in pixels, 0 for none")
        _check_parts("augment", self, "brightness", "contrast")

    @property
    def colour(self) -> bool:
        """Whether brightness or contrast change."""
        return bool(self.brightness or self.contrast)


NO_AUGMENT = AugmentSpec()

#: Fractions and factors of `CropSpec` are used in units of 1 / UNIT, so that every device computes with whole numbers.
UNIT = 1 << 16
MAX_PIXELS = 1 << 26
MAX_OUTPUT = 1024


@dataclass(frozen=True, kw_only=True)
class CropChanges:
    """What is cropped out of each image, and how it is changed, whatever the size of the result.

    ValueError on values out of range.
    """

    scale: tuple[float, float] | None = None
    """A random crop: the part of the image's area that it covers, uniform between the two, as in torchvision's
    RandomResizedCrop (Szegedy et al. 2015, section 6: 0.08 and 1). None for the square in the centre."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a random crop, log-uniform between the two, in 4,096 steps."""
    centre: float = 1.0
    """Side of the square in the centre, as a part of the image's shorter side: 0.875 is a resize to 256 pixels followed
    by a crop of 224."""
    flip: bool = False
    """Mirror left-right with probability 1/2."""
    brightness: float = 0.0
    """Multiply by a factor uniform in 1 - x to 1 + x; 0 to 1. First brightness, then contrast, then saturation."""
    contrast: float = 0.0
    """Multiply the distance from the mean grey of the crop by a factor uniform in 1 - x to 1 + x; 0 to 1."""
    saturation: float = 0.0
    """Multiply the distance from each pixel's grey by a factor uniform in 1 - x to 1 + x; 0 to 1."""
    erase: float = 0.0
    """Probability of erasing a rectangle, to the mean colour, of 2 to 33 % of the area and a ratio of 0.3 to 3.3 (Zhong
    et al. 2017, section 3; torchvision's RandomErasing)."""

    def __post_init__(self) -> None:
        if self.scale is not None and not _is_range(self.scale, 1 / UNIT, 1):
            raise ValueError(f"crop scale {self.scale} is no range of parts of an area; give two numbers up to 1")
        if not _is_range(self.ratio, 1 / 64, 64):
            raise ValueError(f"crop ratio {self.ratio} is no range of 1/64 to 64; give two numbers")
        _check_numbers(self, "centre")
        if not 1 / UNIT <= self.centre <= 1:
            raise ValueError(f"centre {self.centre} is no part of a side; give a number above 0, up to 1")
        _check_parts("crop", self, "brightness", "contrast", "saturation", "erase")

    @property
    def colour(self) -> bool:
        """Whether colours change."""
        return bool(self.brightness or self.contrast or self.saturation)


@dataclass(frozen=True, kw_only=True)
class CropSpec(CropChanges):
    """How to make a square of each image of any shape: a crop, resized; then flip, colour and erasing.

    ValueError on values out of range.
    """

    size: int
    """Side of the result in pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_numbers(self, "size")
        if not 1 <= self.size <= MAX_OUTPUT:
            raise ValueError(f"crop size {self.size} is out of range; give 1 to {MAX_OUTPUT} pixels")


def _is_range(values: Sequence[float], least: float, most: float) -> bool:
    return len(values) == 2 and least <= values[0] <= values[1] <= most


def check_croppable(pixels: int) -> None:
    """ValueError where an image has too many pixels to be cropped: its area is drawn in whole numbers."""
    if pixels > MAX_PIXELS:
        raise ValueError(f"images of {pixels:,} pixels are too large to be cropped; {MAX_PIXELS:,} are the most")


def check_reflection(spec: AugmentSpec, height: int, width: int) -> None:
    """ValueError where images have fewer pixels than ``spec`` reflects."""
    if spec.pad_mode == "reflect" and spec.pad >= min(height, width):
        raise ValueError(
            f"images of {height}x{width} pixels are too small for a border of {spec.pad} reflected ones; "
            f"set augment.pad={min(height, width) - 1}, or augment.pad_mode=zero"
        )


def check_seed(seed: int) -> None:
    """Raise ValueError unless ``0 <= seed < 2**63``."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed {seed} is out of range; give a whole number from 0 to 2**63 - 1")
