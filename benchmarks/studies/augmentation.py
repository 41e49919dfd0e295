"""Augmentation: what flip, crop and cutout each are worth (He et al. 2015, section 4.2; DeVries and Taylor 2017)."""

from __future__ import annotations

from fast_train.benchmarks.studies.base import Comparison, CurvePlot, Panel, Reported, Study, Variant

_ARCHS = ("resnet20", "resnet18")
_OPTIONS = {
    "none": {"pad": 0, "flip": False, "cutout": 0},
    "flip": {"pad": 0, "flip": True, "cutout": 0},
    "crop": {"pad": 4, "flip": False, "cutout": 0},
    "crop+flip": {"pad": 4, "flip": True, "cutout": 0},
    "crop+flip+cutout": {"pad": 4, "flip": True, "cutout": 16},
}
_STEPS = (
    ("none", "flip"),
    ("none", "crop"),
    ("none", "crop+flip"),
    ("crop+flip", "crop+flip+cutout"),
)
_CUTOUT = "CIFAR-10, test error, mean of 5 runs, 200 epochs"
_PLACE = "DeVries and Taylor 2017, table 1"

AUGMENTATION = Study(
    name="augmentation",
    title="Augmentation: none, flip, crop, cutout",
    question=(
        "How much test error does each augmentation save: mirroring, a random crop of the image padded by 4 pixels, "
        "both, and both with a square of 16 pixels cut out?"
    ),
    variants=tuple(
        Variant(
            name=f"{arch}-{option}",
            arch=arch,
            option=option,
            settings={"augment": settings},
            paper_error=0.0875 if (arch, option) == ("resnet20", "crop+flip") else None,
        )
        for arch in _ARCHS
        for option, settings in _OPTIONS.items()
    ),
    # Only test errors are compared: training errors are of augmented images, which get harder from variant to variant.
    comparisons=tuple(Comparison(f"{arch}-{first}", f"{arch}-{second}") for arch in _ARCHS for first, second in _STEPS),
    plots=tuple(
        CurvePlot(
            f"augmentation-{arch}",
            f"{arch} by augmentation",
            (Panel(arch, tuple(f"{arch}-{option}" for option in _OPTIONS)),),
        )
        for arch in _ARCHS
    ),
    reported=(
        Reported("ResNet-20, crop and flip", "8.75%", "CIFAR-10, test error", "table 6"),
        Reported("ResNet-18, no augmentation", "10.63%", _CUTOUT, _PLACE),
        Reported("ResNet-18, cutout alone", "9.31%", _CUTOUT, _PLACE),
        Reported("ResNet-18, crop and flip", "4.72%", _CUTOUT, _PLACE),
        Reported("ResNet-18, crop, flip and cutout", "3.99%", _CUTOUT, _PLACE),
    ),
    differences=(
        "He et al. 2015 vary no augmentation: crop and flip are their setting. DeVries and Taylor train for 200 epochs "
        "with Nesterov momentum, weight decay 5e-4 and rate drops by 5; here all variants train as in He et al.",
        "The training error of a variant is that of its own augmented images: compare test errors between variants.",
    ),
    cpu_variants=tuple(f"resnet20-{option}" for option in _OPTIONS),
    cpu_epochs=5,
)
