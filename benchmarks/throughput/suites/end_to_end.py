"""Each loader with the recipe's step and with the baseline's: what arrives, and which of the two it waits for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from fast_train.benchmarks.instrument.bench import Bench, Measured
from fast_train.benchmarks.instrument.feeds import Delivered, Entry, Feed, FeedOptions, LoaderFeed
from fast_train.benchmarks.instrument.records import Details
from fast_train.benchmarks.instrument.result import Row, rows_about
from fast_train.benchmarks.instrument.timing import FAILURES
from fast_train.benchmarks.throughput.records import EndToEndDetails, StepDetails
from fast_train.benchmarks.throughput.suites import ThroughputSettings, loaders
from fast_train.benchmarks.throughput.suites.ladder import RATE
from fast_train.common.text import one_line
from fast_train.pipeline.config.settings import Config
from fast_train.pipeline.engine.augmentation import Augmentation
from fast_train.pipeline.engine.build import build_step, ready_step
from fast_train.pipeline.engine.runtime import Runtime
from fast_train.pipeline.loaders import AnyBatch, Batch, SplitView

SUITE = "end-to-end"
_MOST_EPOCHS = 20
#: What bounds a rate.
LOADER, STEP, EITHER, UNKNOWN = "loader", "step", "either", "not known"
_VERDICTS = {
    LOADER: "the loader bounds it",
    STEP: "the step bounds it",
    EITHER: "loader and step are alike within the noise",
    UNKNOWN: "which of the two bounds it was not measured",
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step that is ready for one kind of batch. name: whose it is. row: the one that measures it alone."""

    name: str
    run: Callable[[AnyBatch], None]
    row: str


def run(bench: Bench[ThroughputSettings]) -> None:
    """Two groups: all loaders with the recipe's step, and all with the baseline's."""
    _group(bench, f"recipe {bench.config.recipe}'s step", bench.config, bench.runtime)
    _group(bench, "the baseline's step", bench.baseline, bench.baseline_runtime)


def _group(bench: Bench[ThroughputSettings], step_name: str, config: Config, runtime: Runtime) -> None:
    steps = _Steps(bench, step_name, config, runtime)
    fed: list[Measured[EndToEndDetails]] = []
    with ExitStack() as stack:
        for entry in loaders.entries():
            name = f"{entry.name}, {step_name}"
            if bench.settings.quick and entry.name not in loaders.QUICK:
                bench.skip(SUITE, name, "left out by --quick")
                continue
            workers = loaders.workers_of(entry, bench.settings.workers)
            options = FeedOptions(prepared=bench.prepared, config=config, runtime=runtime, workers=workers)
            feed = loaders.open_feed(bench, entry, options, stack, suite=SUITE, name=name)
            if feed is None:
                continue
            try:
                step = steps.of(feed)
            except FAILURES as error:
                bench.skip(SUITE, name, one_line(error))
                continue
            fed.append(measured(bench, entry, feed, step))
        cases: list[Measured[Details]] = [*steps.cases, *fed]
        rows = bench.measure(SUITE, f"end to end, {step_name}", cases)
    by_name = {row.name: row for row in rows}
    for row in rows_about(rows, EndToEndDetails):
        alone = by_name.get(row.details.step_alone_row)
        if alone is not None:
            loader = bench.result.find(loaders.SUITE, row.details.loader_alone_row)
            bench.amend(row, judge(row, alone, loader, share_cores=bench.device.type == "cpu"))


class _Steps:
    """A step for each kind of batch that loaders give: the split with indices, bytes, or finished images."""

    def __init__(self, bench: Bench[ThroughputSettings], name: str, config: Config, runtime: Runtime) -> None:
        self._bench, self._name, self._config, self._runtime = bench, name, config, runtime
        self._built: dict[Any, Step] = {}
        self.cases: list[Measured[StepDetails]] = []

    def of(self, feed: Feed) -> Step:
        example = feed.example()
        assert isinstance(example, Batch | SplitView), "the images have one shape"
        views = isinstance(example, SplitView)
        key = ("view", example.images.data_ptr()) if views else (feed.delivers, example.images.dtype)
        if key not in self._built:
            self._built[key] = self._build(feed)
        return self._built[key]

    def _build(self, feed: Feed) -> Step:
        config, runtime = self._config, self._runtime
        augmenter: Augmentation = feed.augmenter if isinstance(feed, LoaderFeed) else Delivered()
        step = build_step(config, augmenter, runtime)
        step.set_rate(RATE)
        ready = ready_step(step, feed.example(), runtime)
        # A batch of real images: zeros would draw less power, and a GPU would clock higher.
        for given in feed.batches(1):
            batch = given.clone()
        row = f"step alone on {_what(feed, batch)}, {self._name}"
        rate = self._bench.rate(lambda: ready(batch), items=feed.batch_size)
        details = StepDetails(step=self._name, batch_size=feed.batch_size)
        self.cases.append(Measured(name=row, run=rate, details=details))
        return Step(name=self._name, run=ready, row=row)


def _what(feed: Feed, batch: AnyBatch) -> str:
    if isinstance(batch, SplitView):
        return "the resident split"
    assert isinstance(batch, Batch), "the images have one shape"
    if not batch.images.is_floating_point():
        return "bytes"
    by = "by the loader" if isinstance(feed, LoaderFeed) else "elsewhere"
    return f"{str(batch.images.dtype).removeprefix('torch.')} images augmented {by}"


def measured(bench: Bench[ThroughputSettings], entry: Entry, feed: Feed, step: Step) -> Measured[EndToEndDetails]:
    """The case of a step that a feed feeds: training images a second."""
    rate = feed.rate(step.run, seconds=bench.settings.seconds, epochs=_MOST_EPOCHS)
    # What the step takes from a loader of ours is bytes: the augmentation is the step's.
    raw = isinstance(feed, LoaderFeed) and not isinstance(feed.example(), SplitView) and entry.augmentation is None
    kind = loaders.RAW if raw else loaders.AUGMENTED
    details = EndToEndDetails(
        entry=entry.name,
        step=step.name,
        batch_size=feed.batch_size,
        workers=loaders.workers_of(entry, bench.settings.workers),
        step_alone_row=step.row,
        loader_alone_row=loaders.row_name(entry, kind, feed.batch_size, bench.settings.workers),
    )
    return Measured(name=f"{entry.name}, {step.name}", run=rate, details=details)


def judge(
    row: Row[EndToEndDetails], step: Row[Details], loader: Row[Details] | None, *, share_cores: bool
) -> EndToEndDetails:
    """The row's details with the share of the time that the step waits, and in words which of the two bounds the rate.
    step, loader: each alone. share_cores: whether both compute on the CPU."""
    waits = max(0.0, 1 - row.value / step.value)
    bound = slower(loader, row, step)
    known = f"alone it gives {loader.value:,.0f} images/s" if loader is not None else "it was not measured alone"
    text = (
        f"{row.details.entry} with {row.details.step}: {_VERDICTS[bound]}. The loader: {known}; the step alone takes "
        f"{step.value:,.0f}; together {row.value:,.0f}, so the step waits {waits:.0%} of the time."
    )
    if share_cores and bound == STEP and _below(row, step):
        text += " It waits although the loader is faster alone: they share the cores."
    return replace(
        row.details,
        step_alone=step.value,
        loader_alone=loader.value if loader is not None else None,
        wait_share=waits,
        bound=bound,
        sentence=text,
    )


def slower(loader: Row[Details] | None, together: Row[Details], step: Row[Details]) -> str:
    """Which of the two, each measured alone, is slower: `LOADER`, `STEP`, or `EITHER` where their intervals overlap.

    Of a loader that was not measured alone, only a step that does not wait tells: `STEP`, otherwise `UNKNOWN`.
    """
    if loader is None:
        return UNKNOWN if _below(together, step) else STEP
    if _below(loader, step):
        return LOADER
    return STEP if _below(step, loader) else EITHER


def _below(one: Row[Details], other: Row[Details]) -> bool:
    """Whether the one is smaller by more than the noise: their intervals do not overlap."""
    return one.ends[1] < other.ends[0]
