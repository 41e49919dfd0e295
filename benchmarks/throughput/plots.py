"""The pictures of a throughput report. Each function takes the figures, of which some are what it shows, and returns a
`Picture`; None where they are too few for one."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from fast_train.benchmarks.instrument.feeds import library_entries
from fast_train.benchmarks.instrument.records import Details, ProductDetails
from fast_train.benchmarks.instrument.result import D, Result, Row
from fast_train.benchmarks.instrument.roofline import copy_bandwidth, peak_flops
from fast_train.benchmarks.present.picture import LINES, MARKERS, Picture, Theme
from fast_train.benchmarks.present.tables import number, percent
from fast_train.benchmarks.throughput.records import (
    AccuracyDetails,
    AugmentationDetails,
    DecodeDetails,
    EndToEndDetails,
    LoaderDetails,
    RungDetails,
)
from fast_train.benchmarks.throughput.suites.loaders import AUGMENTED, RAW
from fast_train.pipeline.report.plots import short_text

_WIDTH = 9.0
_ROW = 0.36
_OURS, _OTHERS = "this project", "others' recipes"
_HATCH = "///"


def is_ragged(result: Result) -> bool:
    """Whether the images keep their own shapes, and are decoded and cropped."""
    return result.data.get("shapes") is not None


def crop_size(result: Result) -> int | None:
    """The side of the crops; None where images are taken whole."""
    size: int | None = result.config.get("crop", {}).get("size")
    return size


def decoders(result: Result) -> Picture:
    """Images a second of each decoder, on one thread and on all."""
    rows = sorted(result.about(DecodeDetails), key=lambda row: (row.details.threads, -row.value))
    megapixels = rows[0].details.pixels_per_image / 1e6

    def text(row: Row[DecodeDetails]) -> str:
        return f"{number(row.value)}, {number(row.value * megapixels)} MP/s"

    return _bar_chart(
        rows,
        text,
        name="decode",
        title="Decoding alone",
        caption="JPEG files in memory to pixels, images a second with 95 % intervals, and millions of pixels a second "
        "behind the bars. `resident` is what this project's loaders `resident` and `torch` decode with.",
    )


def loaders_alone(result: Result) -> Picture | None:
    """Bytes and augmented images a second of each loader, at the recipe's batch size."""
    rows = _side_by_side(result)
    names = sorted({row.details.entry for row in rows}, key=lambda n: max(_values(rows, n).values()))
    if not names:
        return None

    what = "decoded pixels" if is_ragged(result) else "bytes"

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        _lollipops(axes, theme, rows, names, what)
        axes.set_xlabel("images/s (logarithmic)")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)

    batch, workers = result.config["data"]["batch_size"], result.settings["workers"]
    counted = f"{workers} worker{'s'[: workers != 1]}"
    return Picture(
        name="loaders",
        title="Loaders alone",
        caption=f"Images a second that each loader puts on the device, in batches of {batch:,}, with {counted} "
        f"where their number is open. Circles: {what}; squares: augmented and normalised. Lines through the marks: "
        "95 % intervals of the median, often narrower than the mark.",
        size=(_WIDTH, 1.5 + _ROW * len(names)),
        draw=draw,
    )


def judged(result: Result) -> list[Row[EndToEndDetails]]:
    """The rows of loader and step together where the step alone was measured too."""
    return [row for row in result.about(EndToEndDetails) if row.details.wait_share is not None]


def _side_by_side(result: Result) -> list[Row[LoaderDetails]]:
    batch, workers = result.config["data"]["batch_size"], result.settings["workers"]
    return [
        row
        for row in result.about(LoaderDetails)
        if row.details.batch_size == batch and (row.details.workers == workers or row.details.fixed)
    ]


def _values(rows: Sequence[Row[LoaderDetails]], entry: str) -> dict[str, float]:
    return {row.details.kind: row.value for row in rows if row.details.entry == entry}


def _lollipops(axes: Axes, theme: Theme, rows: Sequence[Row[LoaderDetails]], names: Sequence[str], raw: str) -> None:
    """raw: what images are called that are not augmented."""
    styles = {RAW: ("o", theme.series[0], raw), AUGMENTED: ("s", theme.series[1], "augmented")}
    for kind, (marker, colour, label) in styles.items():
        chosen = [row for row in rows if row.details.kind == kind]
        if not chosen:
            continue
        places = [names.index(row.details.entry) for row in chosen]
        values = [row.value for row in chosen]
        axes.errorbar(
            values, places, xerr=_whiskers(chosen), fmt=marker, color=colour, label=label, capsize=3, zorder=3
        )
    axes.set_xscale("log")
    _label_log(axes.xaxis)
    axes.grid(axis="x")
    axes.hlines(range(len(names)), *axes.get_xlim(), color=theme.grid, linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(names)), [short_text(name, 28) for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    for place, name in enumerate(names):
        found = _values(rows, name)
        text = " / ".join(number(found.get(kind)) for kind in styles)
        axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.text(1.02, 1.02, f"{raw} / augmented", transform=axes.transAxes, fontsize=9, color=theme.muted, va="bottom")


def _label_log(axis: Axis) -> None:
    """Labels at 1, 2 and 5 of each decade, on a long axis at 1 and 3: between powers of ten nobody can read a value."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 3000 * low else (1, 3)))
    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_formatter(NullFormatter())


def _whiskers(rows: Sequence[Row[Details]]) -> np.ndarray:
    """Distances of the intervals' ends from the values: float64 [2, n], 0 where there is no interval."""
    return np.array([[row.value - row.ends[0] for row in rows], [row.ends[1] - row.value for row in rows]])


def scaling(result: Result) -> Picture | None:
    """Augmented images a second over batch sizes and over worker counts."""
    rows = [row for row in result.about(LoaderDetails) if row.details.kind == AUGMENTED]
    main, workers = result.config["data"]["batch_size"], result.settings["workers"]
    by_batch = _curves(
        [r for r in rows if r.details.workers == workers or r.details.fixed], lambda details: details.batch_size
    )
    by_workers = _curves(
        [r for r in rows if r.details.batch_size == main and not r.details.fixed], lambda details: details.workers
    )
    panels = [("batch size", by_batch), (f"workers, at batch {main:,}", by_workers)]
    panels = [(label, curves) for label, curves in panels if any(len(c) > 1 for c in curves.values())]
    if not panels:
        return None
    names = list(dict.fromkeys(name for _, curves in panels for name in curves))
    ours = _ours()
    # Ours first: what is counted on goes to colours that they leave.
    names.sort(key=lambda name: name not in ours)

    def draw(figure: Figure, theme: Theme) -> None:
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (label, curves) in zip(all_axes, panels, strict=True):
            for name, curve in curves.items():
                line = "-" if name in ours else "--"
                style = {**_style(theme, names.index(name)), "linestyle": line}
                axes.plot(*zip(*sorted(curve.items()), strict=True), label=name, **style)
            ticks = sorted({x for curve in curves.values() for x in curve})
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            axes.minorticks_off()
            axes.set_yscale("log")
            _label_log(axes.yaxis)
            axes.set_xlabel(label)
            axes.grid(True)
        all_axes[0].set_ylabel("augmented images/s (logarithmic)")
        _legend_by_origin(figure, all_axes, ours)

    return Picture(
        name="scaling",
        title="Loaders over batch sizes and workers",
        caption="Augmented images a second of each loader alone, those of this project solid, others' recipes dashed. "
        "Where a line is flat, more of it doesn't help.",
        size=(_WIDTH + 1, 4.2),
        draw=draw,
    )


def _curves(rows: Sequence[Row[LoaderDetails]], x: Callable[[LoaderDetails], int]) -> dict[str, dict[int, float]]:
    curves: dict[str, dict[int, float]] = {}
    for row in rows:
        curves.setdefault(row.details.entry, {})[x(row.details)] = row.value
    return curves


def _style(theme: Theme, number: int) -> dict[str, Any]:
    count = len(theme.series)
    line = LINES[(number + number // count) % len(LINES)]
    return {"color": theme.series[number % count], "linestyle": line, "marker": MARKERS[number % len(MARKERS)]}


def _ours() -> set[str]:
    return {entry.name for entry in library_entries()}


def _legend_by_origin(figure: Figure, all_axes: Sequence[Axes], ours: Collection[str]) -> None:
    """One legend of all lines at the right, this project's below their heading, the others' below theirs."""
    found: dict[str, Any] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    shown: list[tuple[str, Any]] = []
    for heading, mine in ((f"{_OURS}:", True), (f"{_OTHERS}:", False)):
        group = [(label, handle) for label, handle in found.items() if (label in ours) == mine]
        shown += [(heading, Line2D([], [], linestyle="none")), *group] if group else []
    labels, handles = zip(*shown, strict=True)
    # Long enough for a dashed line to show that it is one.
    figure.legend(handles, labels, loc="outside right center", handlelength=3.2)


def step_ladder(result: Result) -> Picture:
    rows = result.about(RungDetails)
    first = rows[0].value

    def text(row: Row[RungDetails]) -> str:
        share = row.details.share_of_peak
        of_peak = "" if share is None else f", {percent(share)} of peak"
        return f"{number(row.value)} ({row.value / first:.2f} times{of_peak})"

    return _bar_chart(
        rows,
        text,
        name="ladder",
        title="The step alone, one change a rung",
        caption="Training images a second on one batch that lies on the device. Each rung keeps what the rungs above "
        "it changed. Peak: of this device's own matrix product in the rung's type.",
    )


def _bar_chart(
    rows: Sequence[Row[D]], text: Callable[[Row[D]], str], *, name: str, title: str, caption: str
) -> Picture:
    """A bar a row: images a second, and ``text`` behind it."""

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        _bars(axes, theme, rows, [row.name for row in rows], text)
        axes.set_xlabel("images/s")

    return Picture(name=name, title=title, caption=caption, size=(_WIDTH, 1.2 + 0.42 * len(rows)), draw=draw)


def _bars(
    axes: Axes, theme: Theme, rows: Sequence[Row[D]], names: Sequence[str], text: Callable[[Row[D]], str]
) -> None:
    """Bars from above to below, their intervals, and a text after each, outside of the axes."""
    places = range(len(rows))
    axes.barh(places, [row.value for row in rows], color=theme.series[0], height=0.64)
    axes.errorbar(
        [row.value for row in rows],
        places,
        xerr=_whiskers(rows),
        fmt="none",
        ecolor=theme.text,
        capsize=3,
        linewidth=1.2,
    )
    axes.set_yticks(places, [short_text(name, 34) for name in names])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x")
    for place, row in zip(places, rows, strict=True):
        axes.text(1.02, place, text(row), transform=axes.get_yaxis_transform(), va="center", fontsize=9)


def end_to_end_bars(result: Result) -> Picture:
    """Each loader with each step, beside the step alone."""
    rows = judged(result)
    steps = list(dict.fromkeys(row.details.step for row in rows))
    groups = [sorted((r for r in rows if r.details.step == step), key=lambda r: -r.value) for step in steps]
    ours = _ours()

    def text(row: Row[EndToEndDetails]) -> str:
        return f"{number(row.value)}, waits {percent(row.details.wait_share, 0)}"

    def draw(figure: Figure, theme: Theme) -> None:
        heights = [len(group) + 1.2 for group in groups]
        mark: dict[str, Any] = {"color": theme.highlight, "markersize": 15, "mew": 2.5}
        all_axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, step, group in zip(all_axes, steps, groups, strict=True):
            _bars(axes, theme, group, [row.details.entry for row in group], text)
            for bar, row in zip(axes.patches, group, strict=True):
                bar.set_hatch(None if row.details.entry in ours else _HATCH)
            alone = [row.details.step_alone or 0.0 for row in group]
            axes.plot(alone, range(len(group)), "|", label="the step alone", **mark)
            axes.set_title(f"with {step}", loc="left")
            axes.set_xlim(0, 1.05 * max(*alone, *(row.ends[1] for row in group)))
            axes.set_xlabel("training images/s")
        bars = [Patch(facecolor=theme.series[0], label=_OURS)]
        if any(row.details.entry not in ours for row in rows):
            bars.append(Patch(facecolor=theme.series[0], hatch=_HATCH, label=_OTHERS))
        figure.legend(handles=[*bars, all_axes[0].lines[-1]], loc="outside upper center", ncols=3)

    return Picture(
        name="end-to-end",
        title="End to end",
        caption="Training images a second of each loader with each step (bars, with 95 % intervals; others' recipes "
        "hatched), and of the same step alone on one batch (upright marks). What lies between the two is time in which "
        "the step waits. Each is measured with noise of its own: where the step does not wait, a bar may end somewhat "
        "beyond its mark.",
        size=(_WIDTH, 1.2 + 0.36 * sum(len(group) + 1.8 for group in groups)),
        draw=draw,
    )


def roofline(result: Result) -> Picture | None:
    """Operations a second over operations a byte: the device's limits, the rungs, the augmentation."""
    bandwidth = copy_bandwidth(result)
    rungs = result.about(RungDetails)
    kinds = list(dict.fromkeys(row.details.kind for row in result.about(ProductDetails)))
    if bandwidth is None or not kinds:
        return None
    augmented = result.about(AugmentationDetails)

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        _roofs(axes, theme, result, kinds, bandwidth)
        for place, row in enumerate(rungs):
            x = row.details.flops_per_image / row.details.bytes_per_image
            y = row.value * row.details.flops_per_image
            marker = MARKERS[place % len(MARKERS)]
            # Hollow: rungs of nearly the same rate lie on one another.
            look: dict[str, Any] = {"color": theme.highlight, "markersize": 9, "fillstyle": "none", "mew": 1.6}
            axes.plot(x, y, marker, label=f"step {row.name}", zorder=4, **look)
        crop = crop_size(result)
        values = 3 * crop**2 if crop else math.prod(result.data["image_shape"])
        for place, ends in enumerate(augmented[:1] + augmented[-1:] if len(augmented) > 1 else augmented):
            x, y = values / ends.details.bytes_per_image, ends.value * values
            # One full, one hollow: where they fall together both can be seen.
            look = {"color": theme.series[2], "markersize": 12 + 3 * place, "fillstyle": ("full", "none")[place]}
            axes.plot(x, y, "*", label=f"augmentation, {ends.name}", zorder=4, **look)
        axes.set_xlabel("operations per byte (logarithmic)")
        axes.set_ylabel("operations/s (logarithmic)")
        figure.legend(loc="outside right center", fontsize=9)

    return Picture(
        name="roofline",
        title="Roofline",
        caption="The slanted line is the copy bandwidth, the level ones the matrix products' rates, all measured here. "
        "A step stands at the operations that torch counts over the bytes that its operations would move one by one; "
        "fused ones move less. The augmentation stands at one look-up a value. The nearer to a line from below, the "
        "less is left to gain.",
        size=(_WIDTH + 1, 4.8),
        draw=draw,
    )


def _roofs(axes: Axes, theme: Theme, result: Result, kinds: Sequence[str], bandwidth: float) -> None:
    peaks = {kind: peak_flops(result, kind) or 0.0 for kind in kinds}
    ridge = max(peaks.values()) / bandwidth
    left, right = 0.05, max(30 * ridge, 1e3)
    label = f"copy: {EngFormatter(places=1)(bandwidth)}B/s"
    axes.plot([left, ridge], [bandwidth * left, bandwidth * ridge], color=theme.text, label=label)
    for place, (kind, peak) in enumerate(peaks.items()):
        label = f"{kind}: {EngFormatter(places=1)(peak)}FLOP/s"
        axes.plot([peak / bandwidth, right], [peak, peak], LINES[place], color=theme.series[0], label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(EngFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(True)


def accuracy_over_time(details: AccuracyDetails) -> Picture:
    runs, target = details.runs, details.target

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        for place, run in enumerate(runs):
            tested = [(epoch.seconds, epoch.accuracy) for epoch in run.epochs if epoch.accuracy is not None]
            axes.plot(*zip(*tested, strict=True), label=f"seed {run.seed}", **_style(theme, place))
        if target is not None:
            axes.axhline(target, color=theme.highlight, linestyle="--", linewidth=1.4, label=f"target, {target:.1%}")
        axes.set_xlim(left=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("seconds since the first step began, evaluations included")
        axes.set_ylabel("test accuracy")
        axes.grid(True)
        figure.legend(loc="outside right center")

    return Picture(
        name="accuracy",
        title="Accuracy over time",
        caption="Test accuracy after each epoch. Start-up and compilation come before second 0; the table has them.",
        size=(_WIDTH, 4.0),
        draw=draw,
    )
