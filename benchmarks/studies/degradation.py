"""Degradation: deeper plain nets get worse, deeper residual nets do not (He et al. 2015, figures 1, 4 and 6)."""

from __future__ import annotations

from fast_train.benchmarks.studies.base import Comparison, CurvePlot, Panel, Reported, Study, Variant

_TABLE_6 = {20: 0.0875, 32: 0.0751, 44: 0.0717, 56: 0.0697}
_DEPTHS = tuple(_TABLE_6)
# Zero-padding shortcuts, as in the paper's figure 4: the residual nets have the parameters of their plain twins.
_OPTION_A = {"model": {"shortcut": "A"}}
_BOTH = ("train", "test")

DEGRADATION = Study(
    name="degradation",
    title="Degradation: depth with and without shortcuts",
    question=(
        "Does a deeper plain net end with a higher training error than a shallower one, and does the same net with "
        "identity shortcuts not? That is the degradation problem of He et al. 2015: since the training error rises, "
        "overfitting is not the reason."
    ),
    variants=(
        *(Variant(name=f"plain-{depth}", arch=f"plain-{depth}") for depth in _DEPTHS),
        *(Variant(name=f"resnet{d}", arch=f"resnet{d}", settings=_OPTION_A, paper_error=_TABLE_6[d]) for d in _DEPTHS),
        *(Variant(name=f"plain-{depth}", arch=f"plain-{depth}") for depth in (18, 34)),
        *(Variant(name=f"resnet{depth}", arch=f"resnet{depth}", settings=_OPTION_A) for depth in (18, 34)),
    ),
    comparisons=(
        Comparison("plain-20", "plain-56", _BOTH),
        Comparison("resnet20", "resnet56", _BOTH),
        Comparison("resnet20", "plain-20", _BOTH),
        Comparison("resnet56", "plain-56", _BOTH),
        Comparison("plain-18", "plain-34", _BOTH),
        Comparison("resnet18", "resnet34", _BOTH),
        Comparison("resnet34", "plain-34", _BOTH),
    ),
    plots=(
        CurvePlot(
            "plain-depth",
            "Plain nets of two depths",
            (
                Panel("training error", ("plain-20", "plain-56"), ("train",)),
                Panel("test error", ("plain-20", "plain-56"), ("test",)),
            ),
            "figure 1",
        ),
        CurvePlot(
            "plain-and-residual",
            "Plain and residual nets of 16-32-64 channels",
            (
                Panel("plain nets", tuple(f"plain-{depth}" for depth in _DEPTHS)),
                Panel("residual nets", tuple(f"resnet{depth}" for depth in _DEPTHS)),
            ),
            "figure 6",
        ),
        CurvePlot(
            "plain-and-residual-wide",
            "Plain and residual nets of 64-512 channels",
            (
                Panel("plain nets", ("plain-18", "plain-34")),
                Panel("residual nets", ("resnet18", "resnet34")),
            ),
            "figure 4",
        ),
    ),
    reported=(
        *(
            Reported(f"ResNet-{depth}", f"{error:.2%}", "CIFAR-10, test error", "table 6")
            for depth, error in _TABLE_6.items()
        ),
        Reported("plain-20 to plain-56", "only as curves: error rises with depth", "CIFAR-10", "figures 1 and 6"),
        Reported("plain-18", "27.94%", "ImageNet, top-1 error, 10 crops", "table 2"),
        Reported("plain-34", "28.54%", "ImageNet, top-1 error, 10 crops", "table 2"),
        Reported("ResNet-18, option A", "27.88%", "ImageNet, top-1 error, 10 crops", "table 2"),
        Reported("ResNet-34, option A", "25.03%", "ImageNet, top-1 error, 10 crops", "table 2"),
    ),
    differences=(
        "The paper trains the nets of 18 and 34 layers on ImageNet; here they have a stem for small images (a 3x3 "
        "convolution, no pooling) and the data and training of section 4.2, so only the direction can be compared.",
    ),
    cpu_variants=("plain-20", "plain-56", "resnet20", "resnet56"),
    cpu_epochs=5,
)
