"""What the pictures tell apart, and what can be read off them; figures are made up."""

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fast_train.benchmarks.instrument.records import CopyDetails, ProductDetails
from fast_train.benchmarks.instrument.result import Result, Row
from fast_train.benchmarks.present.picture import DARK, LIGHT
from fast_train.benchmarks.studies import STUDIES
from fast_train.benchmarks.studies.base import CurvePlot, Panel
from fast_train.benchmarks.studies.report import Findings, curve_picture
from fast_train.benchmarks.studies.train import DONE, FLOAT32, Run
from fast_train.benchmarks.throughput import plots
from fast_train.benchmarks.throughput.records import AugmentationDetails, EndToEndDetails, LoaderDetails, RungDetails
from fast_train.benchmarks.throughput.suites import augmentation, end_to_end, ladder, loaders

OURS = ("resident", "ffcv", "dali", "torch", "dali, native")
OTHERS = ("baseline DataLoader", "tuned DataLoader", "FFCV's example", "DALI's reader")


def _row(suite, name, value, details, unit="images/s"):
    return Row(suite=suite, name=name, unit=unit, repeats=(value,), details=details)


def _loader_row(entry, batch, value):
    details = LoaderDetails(
        entry=entry,
        kind=loaders.AUGMENTED,
        batch_size=batch,
        workers=2,
        fixed=False,
        augmentation="crop",
        source="here",
    )
    return _row(loaders.SUITE, f"{entry}, {batch}", value, details)


def _end_to_end_row(entry, step):
    details = EndToEndDetails(
        entry=entry,
        step=step,
        batch_size=512,
        workers=2,
        step_alone_row="step alone",
        loader_alone_row="loader alone",
        step_alone=900.0,
        wait_share=0.1,
    )
    return _row(end_to_end.SUITE, f"{entry}, {step}", 800.0, details)


def _roofline_rows():
    rung = RungDetails(
        rung=0, change="float32, eager", batch_size=128, kind="float32", flops_per_image=1e9, bytes_per_image=5e7
    )
    traffic = AugmentationDetails(batch=512, bytes_per_image=9216, spec={}, bytes_per_second=1e9)
    return [
        _row("roofline", "copy", 2e10, CopyDetails(bytes=1), "bytes/s"),
        _row("roofline", "matrix product, float32", 3e11, ProductDetails(side=1, kind="float32"), "FLOP/s"),
        _row(ladder.SUITE, "1. float32, eager", 100.0, rung),
        _row(augmentation.SUITE, "batch 512", 1e5, traffic),
        _row(augmentation.SUITE, "batch 1,024", 1e5, traffic),
    ]


@pytest.fixture
def result():
    rows = [
        _loader_row(entry, batch, 2000.0 * place + batch)
        for place, entry in enumerate(OURS + OTHERS, 1)
        for batch in (128, 512)
    ]
    rows += [_end_to_end_row(entry, step) for step in ("our step", "the baseline's step") for entry in OURS + OTHERS]
    return Result(
        settings={"workers": 2},
        config={"data": {"batch_size": 512}},
        data={"image_shape": [32, 32, 3]},
        machine={},
        rows=rows + _roofline_rows(),
    )


def _drawn(picture, theme=LIGHT):
    with matplotlib.rc_context(theme.rc()):
        figure = Figure(figsize=picture.size, layout="constrained")
        picture.draw(figure, theme)
        FigureCanvasAgg(figure).draw()
    return figure


def _texts(legend):
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_no_two_loaders_have_the_same_line_and_others_are_dashed(result, theme):
    figure = _drawn(plots.scaling(result), theme)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert set(lines) == {*OURS, *OTHERS}
    looks = {(line.get_color(), line.get_linestyle()) for line in lines.values()}
    assert len(looks) == len(lines)
    assert len({line.get_marker() for line in lines.values()}) == len(lines)
    assert {lines[name].get_linestyle() for name in OURS} == {"-"}
    assert {lines[name].get_linestyle() for name in OTHERS} == {"--"}
    assert _texts(figure.legends[0]) == ["this project:", *OURS, "others' recipes:", *OTHERS]


@pytest.mark.parametrize(("factor", "labels"), [(1, {"5k", "10k", "20k"}), (1e4, {"3k", "10k", "30k", "300k", "3M"})])
def test_values_between_powers_of_ten_can_be_read(result, factor, labels):
    result.rows.append(_loader_row("fast", 512, 2000 * factor))
    axes = _drawn(plots.loaders_alone(result)).axes[0]
    assert labels <= {text.get_text() for text in axes.get_xticklabels()}


def test_bars_show_whose_loader_it_is(result):
    figure = _drawn(plots.end_to_end_bars(result))
    for axes in figure.axes:
        names = [text.get_text() for text in axes.get_yticklabels()]
        hatched = {name for name, bar in zip(names, axes.patches, strict=True) if bar.get_hatch()}
        assert hatched == set(OTHERS)
        assert axes.get_xlabel() == "training images/s"
    assert _texts(figure.legends[0]) == ["this project", "others' recipes", "the step alone"]


def test_each_mark_of_the_roofline_has_a_key_of_its_own(result):
    figure = _drawn(plots.roofline(result))
    (axes,) = figure.axes
    looks = {
        line.get_label(): (line.get_color(), line.get_linestyle(), line.get_marker(), line.get_fillstyle())
        for line in axes.lines
    }
    assert len(set(looks.values())) == len(looks)
    assert _texts(figure.legends[0]) == list(looks)
    assert "copy: 20.0 GB/s" in looks
    assert "0.1" in {text.get_text() for text in axes.get_xticklabels()}


@pytest.mark.parametrize("errors", [("train", "test"), ("train",), ("test",)])
def test_a_study_says_which_lines_are_training_errors(errors):
    history = tuple({"epoch": epoch, "step": epoch, "train_error": 0.5, "test_error": 0.6} for epoch in (1, 2))
    runs = [
        Run(variant=name, arch=name, option="", seed=0, parameters=1, dtype=FLOAT32, status=DONE, history=history)
        for name in ("plain-20", "plain-56")
    ]
    findings = Findings(study=STUDIES["degradation"], runs=runs, wanted=2, data={}, machine={}, settings={})
    plot = CurvePlot("curves", "Curves", [Panel("nets", ("plain-20", "plain-56"), errors)])
    (axes,) = _drawn(curve_picture(plot, findings)).axes
    both = ["training error"] if len(errors) == 2 else []
    assert _texts(axes.get_legend()) == ["plain-20", "plain-56", *both]
    if both:
        (key,) = axes.get_legend().get_lines()[2:]
        thin = {(line.get_linestyle(), line.get_linewidth()) for line in axes.lines if line.get_label()[0] == "_"}
        assert thin == {(key.get_linestyle(), key.get_linewidth())}
