"""Shortcuts: options A, B and C where the shape changes and where it does not (He et al. 2015, section 4.1)."""

from __future__ import annotations

from fast_train.benchmarks.studies.base import Comparison, CurvePlot, Panel, Reported, Study, Variant

_ARCHS = ("resnet20", "resnet32", "resnet18")
_OPTIONS = ("A", "B", "C")
# Option A is the paper's own for its CIFAR nets, so these are its errors.
_TABLE_6 = {"resnet20": 0.0875, "resnet32": 0.0751}
_IMAGENET = "ImageNet, top-1 error, 10 crops"

SHORTCUTS = Study(
    name="shortcuts",
    title="Shortcuts: zero padding or projection",
    question=(
        "Does it matter what a shortcut does? A pads with zeros where the shape changes and has no parameters, B "
        "projects (1x1 convolution) where the shape changes, C projects everywhere."
    ),
    variants=tuple(
        Variant(
            name=f"{arch}-{option}",
            arch=arch,
            option=option,
            settings={"model": {"shortcut": option}},
            paper_error=_TABLE_6.get(arch) if option == "A" else None,
        )
        for arch in _ARCHS
        for option in _OPTIONS
    ),
    comparisons=tuple(
        Comparison(f"{arch}-{one}", f"{arch}-{other}", ("train", "test"))
        for arch in _ARCHS
        for one, other in (("A", "B"), ("B", "C"), ("A", "C"))
    ),
    plots=tuple(
        CurvePlot(
            f"shortcuts-{arch}",
            f"{arch} with shortcuts of option A, B and C",
            (Panel(arch, tuple(f"{arch}-{option}" for option in _OPTIONS)),),
        )
        for arch in _ARCHS
    ),
    reported=(
        Reported("plain-34", "28.54%", _IMAGENET, "table 3"),
        Reported("ResNet-34 A", "25.03%", _IMAGENET, "table 3"),
        Reported("ResNet-34 B", "24.52%", _IMAGENET, "table 3"),
        Reported("ResNet-34 C", "24.19%", _IMAGENET, "table 3"),
        Reported("ResNet-20 (option A)", "8.75%", "CIFAR-10, test error", "table 6"),
        Reported("ResNet-32 (option A)", "7.51%", "CIFAR-10, test error", "table 6"),
    ),
    differences=(
        "The paper compares the options on ImageNet with ResNet-34 (section 4.1, table 3) and takes option A alone on "
        "CIFAR-10 (section 4.2). Here all three train on the images given, in the setting of section 4.2.",
        "B and C have more parameters than A (see the table), so a difference is not one of the shortcut's form alone.",
    ),
    cpu_variants=tuple(f"resnet20-{option}" for option in _OPTIONS),
    cpu_epochs=5,
)
