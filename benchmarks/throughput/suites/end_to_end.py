"""Each loader with the recipe's step and with the notes': what arrives, and which of the two it waits for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from fast_train.benchmarks.instrument.bench import Bench, Measured
from fast_train.benchmarks.instrument.feeds import Delivered, Entry, Feed, LoaderFeed
from fast_train.benchmarks.instrument.result import Row
from fast_train.benchmarks.instrument.timing import FAILURES, Rate, timed
from fast_train.benchmarks.throughput.suites import loaders
from fast_train.benchmarks.throughput.suites.ladder import RATE
from fast_train.common.text import one_line
from fast_train.pipeline.config.settings import Config
from fast_train.pipeline.engine.augmentation import Augmentation
from fast_train.pipeline.engine.build import build_step, ready_step
from fast_train.pipeline.engine.runtime import Runtime
from fast_train.pipeline.loaders import AnyBatch, SplitView

SUITE = "end-to-end"
_QUICK = ("resident", "torch", "notes' DataLoader")
_MOST_EPOCHS = 20
#: What bounds a rate.
LOADER, STEP, EITHER, UNKNOWN = "loader", "step", "either", "not known"


def run(bench: Bench) -> None:
    """Two groups: all loaders with the recipe's step, and all with the notes' step."""
    _group(bench, f"recipe {bench.config.recipe}'s step", bench.config, bench.runtime)
    _group(bench, "the notes' step", bench.notes, bench.notes_runtime)


def _group(bench: Bench, step_name: str, config: Config, runtime: Runtime) -> None:
    steps = _Steps(bench, step_name, config, runtime)
    cases = []
    with ExitStack() as stack:
        for entry in loaders.entries():
            name = f"{entry.name}, {step_name}"
            if bench.settings.quick and entry.name not in _QUICK:
                bench.skip(SUITE, name, "left out by --quick")
                continue
            feed = loaders.open_feed(bench, entry, config, bench.settings.workers, False, stack, name, SUITE)
            if feed is None:
                continue
            try:
                step, alone = steps.of(feed)
            except FAILURES as error:
                bench.skip(SUITE, name, one_line(error))
                continue
            cases.append(_case(bench, entry, feed, step, name, step_name, alone))
        rows = bench.measure(SUITE, f"end to end, {step_name}", [*steps.cases, *cases])
    by_name = {row.name: row for row in rows}
    for row in rows:
        if "entry" in row.details and row.details["step_alone_row"] in by_name:
            _judge(bench, row, by_name[row.details["step_alone_row"]])


class _Steps:
    """A step for each kind of batch that loaders give: the split with indices, bytes, or finished images."""

    def __init__(self, bench: Bench, step_name: str, config: Config, runtime: Runtime) -> None:
        self._bench, self._step_name, self._config, self._runtime = bench, step_name, config, runtime
        self._built: dict[Any, tuple[Callable[[AnyBatch], None], str]] = {}
        self.cases: list[Measured] = []

    def of(self, feed: Feed) -> tuple[Callable[[AnyBatch], None], str]:
        """The step for a feed, and the name of the row that measures it alone."""
        example = feed.example()
        views = isinstance(example, SplitView)
        key = ("view", example.images.data_ptr()) if views else (feed.delivers, example.images.dtype)
        if key not in self._built:
            self._built[key] = self._build(feed)
        return self._built[key]

    def _build(self, feed: Feed) -> tuple[Callable[[AnyBatch], None], str]:
        config, runtime = self._config, self._runtime
        augmenter: Augmentation = feed.augmenter if isinstance(feed, LoaderFeed) else Delivered()
        step = build_step(config, augmenter, runtime)
        step.set_rate(RATE)
        ready = ready_step(step, feed.example(), runtime)
        # A batch of real images: zeros would draw less power, and a GPU would clock higher.
        for given in feed.batches(1):
            batch = given.clone()
        name = f"step alone on {_what(feed, batch)}, {self._step_name}"
        rate = Rate(
            timed(lambda: ready(batch), self._bench.device),
            items=feed.batch_size,
            seconds=self._bench.settings.seconds,
        )
        details = {"step": self._step_name, "batch_size": feed.batch_size}
        self.cases.append(Measured(name=name, run=rate, details=details))
        return ready, name


def _what(feed: Feed, batch: AnyBatch) -> str:
    """What a step is given, in words."""
    if isinstance(batch, SplitView):
        return "the resident split"
    if not batch.images.is_floating_point():
        return "bytes"
    by = "by the loader" if isinstance(feed, LoaderFeed) else "elsewhere"
    return f"{str(batch.images.dtype).removeprefix('torch.')} images augmented {by}"


def _case(
    bench: Bench,
    entry: Entry,
    feed: Feed,
    step: Callable[[AnyBatch], None],
    name: str,
    step_name: str,
    alone: str,
) -> Measured:
    per_epoch = bench.prepared.size("train") // feed.batch_size
    rate = Rate(
        lambda count: feed.seconds(count, step),
        items=feed.batch_size,
        seconds=bench.settings.seconds,
        lot=feed.lot,
        most=_MOST_EPOCHS * per_epoch,
    )
    alone_row = loaders.row_name(entry, loaders.AUGMENTED, feed.batch_size, bench.settings.workers)
    if isinstance(feed, LoaderFeed) and not isinstance(feed.example(), SplitView) and entry.augmentation is None:
        # What the step takes from it is bytes: the augmentation is the step's.
        alone_row = loaders.row_name(entry, loaders.RAW, feed.batch_size, bench.settings.workers)
    details = {
        "entry": entry.name,
        "step": step_name,
        "batch_size": feed.batch_size,
        "workers": bench.settings.workers if entry.workers is None else entry.workers,
        "step_alone_row": alone,
        "loader_alone_row": alone_row,
    }
    return Measured(name=name, run=rate, details=details)


def _judge(bench: Bench, row: Row, step: Row) -> None:
    """Add the share of the time that the step waits, and in words which of the two bounds the rate."""
    waits = max(0.0, 1 - row.value / step.value)
    loader = bench.result.find(loaders.SUITE, row.details["loader_alone_row"])
    bound = slower(loader, row, step)
    verdict = {
        LOADER: "the loader bounds it",
        STEP: "the step bounds it",
        EITHER: "loader and step are alike within the noise",
        UNKNOWN: "which of the two bounds it was not measured",
    }[bound]
    known = f"alone it gives {loader.value:,.0f} images/s" if loader is not None else "it was not measured alone"
    text = (
        f"{row.details['entry']} with {row.details['step']}: {verdict}. The loader: {known}; the step alone takes "
        f"{step.value:,.0f}; together {row.value:,.0f}, so the step waits {waits:.0%} of the time."
    )
    if bench.device.type == "cpu" and bound == STEP and _below(row, step):
        text += " It waits although the loader is faster alone: they share the cores."
    bench.amend(
        row,
        step_alone=step.value,
        loader_alone=loader.value if loader is not None else None,
        wait_share=waits,
        bound=bound,
        sentence=text,
    )


def slower(loader: Row | None, together: Row, step: Row) -> str:
    """Which of the two, each measured alone, is slower: `LOADER`, `STEP`, or `EITHER` where their intervals overlap.

    Of a loader that was not measured alone, only a step that does not wait tells: `STEP`, otherwise `UNKNOWN`.
    """
    if loader is None:
        return UNKNOWN if _below(together, step) else STEP
    if _below(loader, step):
        return LOADER
    return STEP if _below(step, loader) else EITHER


def _below(one: Row, other: Row) -> bool:
    """Whether the one is smaller by more than the noise: their intervals do not overlap."""
    (_, high), (low, _) = (row.interval or (row.value, row.value) for row in (one, other))
    return high < low
