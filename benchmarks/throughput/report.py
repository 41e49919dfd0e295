"""The report that a person reads, from the figures: sections, tables, and one file for each picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fast_train.benchmarks.instrument import roofline as roofline_suite
from fast_train.benchmarks.instrument.records import Details
from fast_train.benchmarks.instrument.result import Result, Row, rows_about
from fast_train.benchmarks.instrument.statistics import CONFIDENCE
from fast_train.benchmarks.peers import BASELINES
from fast_train.benchmarks.present.page import Block, Document, Notice, write_document, write_files
from fast_train.benchmarks.present.tables import Table, device_of, interval, machine_table, number, percent
from fast_train.benchmarks.throughput import plots, records
from fast_train.benchmarks.throughput.compare import FORMAT, REPORT
from fast_train.benchmarks.throughput.suites import accuracy, startup
from fast_train.common.text import format_bytes

Blocks = Sequence[Block | None]
_WRITTEN = (
    "They make crops of the same size, areas and ratios as ours, and read the very files of the prepared set: from its "
    ".beton, or written out before, which is not counted, as class folders or shards."
)
_MEDIAN = ("median", f"{CONFIDENCE:.0%} interval", "spread")


def write_report(folder: Path, result: Result) -> list[str]:
    """Write report.json, which must not be lost with the rest, then report.md, the pictures and report.html; returns a
    line on each picture that can't be drawn."""
    write_files(folder, {REPORT: result.to_json(FORMAT)})
    return write_document(folder, build_document(result))


def build_document(result: Result) -> Document:
    measured: dict[str, tuple[Callable[[Result, Any], Blocks], Sequence[Row[Details]]]] = {
        "End to end": (_end_to_end, plots.judged(result)),
        "Loaders alone": (_loaders, result.about(records.LoaderDetails)),
        "Decoding alone": (_decoders, result.about(records.DecodeDetails)),
        "The step alone": (_ladder, result.about(records.RungDetails)),
        "Limits of the device": (_roofline, result.suite(roofline_suite.SUITE)),
        "Time to accuracy": (_accuracy, result.suite(accuracy.SUITE)),
        "Cold and warm start": (_starts, result.suite(startup.SUITE)),
        "Preparation": (_preparation, result.about(records.PreparationDetails)),
    }
    sections = {
        **{heading: blocks(result, rows) for heading, (blocks, rows) in measured.items() if rows},
        "Not measured": _skipped(result),
        "Machine and method": _machine(result),
    }
    title = f"Throughput of {result.config['model']['arch']} on {result.data['source']}"
    return Document(title, headline(result), sections, result.warnings)


def headline(result: Result) -> str:
    """What was found, in a sentence or two."""
    made_up = " The images are synthetic." if result.data["synthetic"] else ""
    stopped = "" if result.complete else " The run was interrupted: what follows is what had been measured by then."
    rows = plots.judged(result)
    where = device_of(result.machine)
    if not rows:
        return f"Measured on {where}.{made_up}{stopped}"
    best = max(rows, key=lambda row: row.value)
    crops = f" in crops of {crop} px" if (crop := plots.crop_size(result)) else ""
    text = f"{best.details.entry} with {best.details.step} trains {number(best.value)} images/s{crops}"
    baselines = [f"{entry}, the baseline's step" for entry in BASELINES]
    baseline = next((row for row in rows if row.name in baselines), None)
    if baseline is not None and baseline is not best:
        text += f", {best.value / baseline.value:.1f} times the baseline's {number(baseline.value)}"
    return f"{text}, on {where}.{_equals(best, rows)}{made_up}{stopped}"


def _equals(best: Row[records.EndToEndDetails], rows: Sequence[Row[records.EndToEndDetails]]) -> str:
    """A sentence on the loaders whose intervals overlap with the best one's, with the same step."""
    others = [row for row in rows if row is not best and row.details.step == best.details.step]
    close = [row.details.entry for row in others if row.ends[1] >= best.ends[0]]
    return f" Within the noise of it: {', '.join(close)}." if close else ""


def _statistics(row: Row[Details]) -> list[str]:
    low_high = row.interval
    return [number(row.value), interval(*low_high) if low_high else "one repeat", percent(row.spread)]


def _end_to_end(result: Result, rows: Sequence[Row[records.EndToEndDetails]]) -> Blocks:
    cells = [
        [
            row.details.entry,
            row.details.step,
            f"{row.details.batch_size:,}",
            *_statistics(row),
            number(row.details.step_alone),
            percent(row.details.wait_share, 0),
            row.details.bound,
        ]
        for row in rows
    ]
    best = max(range(len(rows)), key=lambda place: rows[place].value)
    columns = ["loader", "step", "batch", *_MEDIAN, "step alone", "waits", "bound by"]
    table = Table(columns, cells, caption="Training images/s", strong=[best], numeric=range(2, 8))
    return [plots.end_to_end_bars(result), table, Notice("note", [row.details.sentence for row in rows])]


def _loaders(result: Result, rows: Sequence[Row[records.LoaderDetails]]) -> Blocks:
    cells = [
        [
            row.details.entry,
            row.details.kind,
            f"{row.details.batch_size:,}",
            str(row.details.workers or ""),
            *_statistics(row),
            row.details.augmentation,
        ]
        for row in rows
    ]
    columns = ["loader", "what", "batch", "workers", *_MEDIAN, "augmentation"]
    table = Table(columns, cells, caption="Images/s on the device", numeric=range(2, 7))
    sources = {row.details.entry: row.details.source for row in rows}
    peers = [f"{name}: {source}" for name, source in sources.items() if source != "this project"]
    if peers and plots.is_ragged(result):
        peers.append(_WRITTEN)
    blocks: list[Block] = [Notice("note", ["Recipes that are not ours follow:", *peers])] if peers else []
    return [plots.loaders_alone(result), plots.scaling(result), table, *blocks]


def _decoders(result: Result, rows: Sequence[Row[records.DecodeDetails]]) -> Blocks:
    cells = [
        [
            row.details.decoder,
            str(row.details.threads),
            *_statistics(row),
            number(row.value / row.details.threads),
            number(row.value * row.details.pixels_per_image / 1e6),
        ]
        for row in rows
    ]
    first = rows[0].details
    text = (
        f"The JPEG files are of the training split; one has {first.pixels_per_image:,.0f} pixels and "
        f"{format_bytes(first.bytes_per_image)} in the mean."
    )
    columns = ["decoder", "threads", *_MEDIAN, "a thread", "megapixels/s"]
    return [plots.decoders(result), text, Table(columns, cells, caption="Images/s decoded")]


def _ladder(result: Result, rows: Sequence[Row[records.RungDetails]]) -> Blocks:
    cells = [
        [
            row.name,
            f"{row.details.batch_size:,}",
            *_statistics(row),
            f"{row.value / rows[0].value:.2f}",
            number(row.value * row.details.flops_per_image / 1e12),
            percent(row.details.share_of_peak),
            "not counted" if (peak := row.details.peak_memory_bytes) is None else format_bytes(peak),
        ]
        for row in rows
    ]
    columns = ["rung", "batch", *_MEDIAN, "times the first", "TFLOP/s", "of the peak", "peak memory"]
    text = (
        f"A training image costs {number(rows[0].details.flops_per_image / 1e9)} GFLOP, forward and backward, as "
        "`torch.utils.flop_counter` counts them. The peak is the fastest repeat of a large matrix product in the same "
        "type."
    )
    return [plots.step_ladder(result), text, Table(columns, cells, caption="Training images/s")]


def _roofline(result: Result, rows: Sequence[Row[Details]]) -> Blocks:
    cells = [
        [row.name, *(_scaled(row, value) for value in (row.value, max(row.repeats))), percent(row.spread)]
        for row in rows
    ]
    tables: list[Block] = [Table(["limit", "median", "fastest repeat", "spread"], cells, caption="Measured limits")]
    if augmented := result.about(records.AugmentationDetails):
        cells = [
            [
                row.name,
                *_statistics(row),
                number(row.value / row.details.threads) if row.details.threads else "-",
                format_bytes(row.details.bytes_per_image),
                format_bytes(row.details.bytes_per_second or 0) + "/s",
                percent(row.details.share_of_copy),
            ]
            for row in augmented
        ]
        columns = ["batch", *_MEDIAN, "a thread", "bytes an image", "traffic", "of the copy bandwidth"]
        tables.append(Table(columns, cells, caption="The augmentation alone, images/s"))
    return [plots.roofline(result), *tables]


def _scaled(row: Row[Details], value: float) -> str:
    if row.unit == "bytes/s":
        return f"{format_bytes(value)}/s"
    return f"{number(value / 1e12)} TFLOP/s"


def _accuracy(result: Result, rows: Sequence[Row[Details]]) -> Blocks:
    summary = [[row.name, *_mean(row)] for row in rows]
    what = Table(["what", "mean", f"{CONFIDENCE:.0%} interval over seeds", "seeds"], summary)
    (final,) = result.about(records.AccuracyDetails)
    return [plots.accuracy_over_time(final.details), what, _trainings(final.details)]


def _trainings(details: records.AccuracyDetails) -> Table:
    cells = [
        [
            str(run.seed),
            percent(run.accuracy, 2),
            number(run.epochs[-1].seconds),
            number(run.train_seconds),
            number(run.start_up_seconds),
            number(run.compile_seconds),
        ]
        for run in details.runs
    ]
    columns = ["seed", "accuracy", "s to the end", "of them training", "start-up before, s", "compilation before, s"]
    batch = f", batch {details.batch_size:,}" if details.batch_size else ""
    return Table(columns, cells, caption=f"{details.epochs or 0} epochs at most{batch}")


def _mean(row: Row[Details]) -> list[str]:
    low_high = row.interval
    if row.unit == "accuracy":
        ends = f"{percent(low_high[0], 2)} to {percent(low_high[1], 2)}" if low_high else "one seed"
        return [percent(row.value, 2), ends, str(len(row.repeats))]
    return [f"{number(row.value)} s", interval(*low_high) if low_high else "one seed", str(len(row.repeats))]


def _starts(result: Result, rows: Sequence[Row[Details]]) -> Blocks:
    cells = [[row.name, *_statistics(row), str(len(row.repeats))] for row in rows]
    caption = "Seconds from the start of the process to the end of the first step"
    blocks = [Table(["start", *_MEDIAN, "repeats"], cells, caption=caption)]
    # Reports of older versions do not know them.
    known = {row.name: row.details.seconds for row in rows_about(rows, records.StartDetails)}
    # In the order of the start that has most of them.
    names = max(known.values(), key=len, default=())
    parts = [[name, *(f"{seconds.get(name, 0.0):.2f}" for seconds in known.values())] for name in names]
    caption = "Where they went, medians; the exit, after the first step, is not in them"
    return [*blocks, Table(["part", *known], parts, caption=caption)] if known else blocks


def _preparation(result: Result, rows: Sequence[Row[records.PreparationDetails]]) -> Blocks:
    sizes = {row.details.format: row.value for row in rows if row.unit == "bytes"}
    cells = []
    for row in rows:
        if row.unit == "s":
            images, size = row.details.images, sizes.get(row.details.format)
            rate = number(images / row.value) if images else "-"
            cells.append([row.details.format, *_statistics(row), rate, "-" if size is None else format_bytes(size)])
    dataset = rows[0].details.dataset
    what = f"folder:DIR` of {records.OWN_FILES}" if dataset == records.OWN_FILES else f"{_without_path(dataset)}`"
    caption = f"Seconds of `prep-data --dataset {what}, hashes included"
    return [Table(["format", *_MEDIAN, "images/s", "bytes"], cells, caption=caption)]


def _without_path(dataset: str) -> str:
    kind, colon, _ = dataset.partition(":")
    return f"{kind}{colon}DIR" if colon else kind


def _skipped(result: Result) -> Blocks:
    if not result.skipped:
        return []
    cells = [[s.suite, s.name, s.reason] for s in result.skipped]
    return [Table(["suite", "what", "why not"], cells, numeric=())]


def _machine(result: Result) -> Blocks:
    settings, config, data = result.settings, result.config, result.data
    amp, batch = config["run"]["amp"], config["data"]["batch_size"]
    crops = f", in crops of {crop} px" if (crop := plots.crop_size(result)) else ""
    method = (
        f"Cases that are compared ran in turn: {settings['warm_up']} round(s) of warm-up, which count for nothing, "
        f"then {settings['repeats']} rounds of about {settings['seconds']} s a case; starts and preparations, which "
        f"are whole processes, {settings['slow_repeats']}. Each timing begins and ends with the device idle. A loader "
        "is timed in the middle of a longer pass, where it makes as many batches as it gives out. Given are medians "
        "with bootstrap intervals; spread is the largest less the smallest repeat over the median. `report.json` "
        "holds every repeat."
    )
    table = machine_table(
        result.machine,
        [
            ["command", f"`{settings['command']}`"],
            ["recipe", f"{config['recipe']}, AMP {amp}; steps are measured in batches of {batch:,}{crops}"],
            ["data", f"{data['train_images']:,} training images of {data['source']}{_shapes(data.get('shapes'))}"],
        ],
    )
    return [method, table]


def _shapes(shapes: Mapping[str, float] | None) -> str:
    """What is to be said of images that keep their own shapes: the medians; nothing of others."""
    if shapes is None:
        return ""
    size = format_bytes(shapes["file_bytes"])
    return f"; the medians: {shapes['width']:.0f} px wide, {shapes['height']:.0f} px high, files of {size}"
