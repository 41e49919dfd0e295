"""Each loader with the recipe's step and with the baseline's: what arrives, and which of the two it waits for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fast_train.benchmarks.instrument.bench import Bench, Measured
from fast_train.benchmarks.instrument.feeds import DALI, FFCV, Delivered, Entry, Feed, FeedOptions, LoaderFeed, is_view
from fast_train.benchmarks.instrument.records import Details
from fast_train.benchmarks.instrument.result import Row, rows_about
from fast_train.benchmarks.instrument.timing import FAILURES, captured
from fast_train.benchmarks.throughput.records import EndToEndDetails, StepDetails
from fast_train.benchmarks.throughput.suites import ThroughputSettings, decode, loaders
from fast_train.benchmarks.throughput.suites.ladder import RATE
from fast_train.common.cores import usable_cores
from fast_train.common.text import one_line
from fast_train.pipeline.config.settings import Config
from fast_train.pipeline.engine.augmentation import Augmentation
from fast_train.pipeline.engine.build import build_step, ready_step
from fast_train.pipeline.engine.runtime import Runtime
from fast_train.pipeline.loaders import AnyBatch, Batch, RaggedBatch, RaggedView, SplitView

SUITE = "end-to-end"
_MOST_EPOCHS = 20
#: What bounds a rate.
LOADER, STEP, EITHER, UNKNOWN = "loader", "step", "either", "not known"
#: Of images that keep their own shapes: which part of the slower one takes the most of its time.
DECODING, AUGMENTATION = "decoding", "augmentation"
_VERDICTS = {
    LOADER: "the loader bounds it",
    STEP: "the step bounds it",
    DECODING: "decoding bounds it",
    AUGMENTATION: "the augmentation bounds it",
    EITHER: "loader and step are alike within the noise",
    UNKNOWN: "which of the two bounds it was not measured",
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step that is ready for one kind of batch. name: whose it is. row: the one that measures it alone.
    augmentation_row: the one that measures its augmentation alone, of images that keep their own shapes."""

    name: str
    run: Callable[[AnyBatch], None]
    row: str
    augmentation_row: str | None = None


def run(bench: Bench[ThroughputSettings]) -> None:
    """Two groups: all loaders with the recipe's step, and all with the baseline's."""
    _group(bench, f"recipe {bench.config.recipe}'s step", bench.config, bench.runtime)
    _group(bench, "the baseline's step", bench.baseline, bench.baseline_runtime)


def _group(bench: Bench[ThroughputSettings], step_name: str, config: Config, runtime: Runtime) -> None:
    steps = _Steps(bench, step_name, config, runtime)
    fed: list[Measured[EndToEndDetails]] = []
    about: dict[str, tuple[Entry, Step]] = {}
    with ExitStack() as stack:
        for entry in loaders.entries(bench):
            name = f"{entry.name}, {step_name}"
            if bench.settings.quick and entry.name not in loaders.QUICK:
                bench.skip(SUITE, name, "left out by --quick")
                continue
            workers = loaders.workers_of(entry, bench.settings.workers)
            options = FeedOptions(
                prepared=bench.prepared, config=config, runtime=runtime, workers=workers, scratch=bench.scratch
            )
            feed = loaders.open_feed(bench, entry, options, stack, suite=SUITE, name=name)
            if feed is None:
                continue
            try:
                step = steps.of(feed)
            except FAILURES as error:
                bench.skip(SUITE, name, one_line(error))
                continue
            fed.append(measured(bench, entry, feed, step))
            about[name] = entry, step
        cases: list[Measured[Details]] = [*steps.cases, *fed]
        rows = bench.measure(SUITE, f"end to end, {step_name}", cases)
    by_name = {row.name: row for row in rows}
    for row in rows_about(rows, EndToEndDetails):
        alone = by_name.get(row.details.step_alone_row)
        if alone is not None:
            loader = bench.result.find(loaders.SUITE, row.details.loader_alone_row)
            entry, step = about[row.name]
            augmentation = by_name.get(step.augmentation_row or "")
            details = judge(
                row,
                alone,
                loader,
                decoding=_decoding(bench, entry, row.details.workers),
                augmentation=None if augmentation is None else augmentation.value,
                share_cores=bench.device.type == "cpu",
            )
            bench.amend(row, details)


def _decoding(bench: Bench[ThroughputSettings], entry: Entry, workers: int) -> float | None:
    """Images/s that its decoder reaches in all. FFCV and DALI decode in threads; the others in processes, which don't
    share Python's lock and so reach what one thread does, each."""
    if entry.decoder is None:
        return None
    cores, threads = usable_cores(), entry.decoder in (FFCV, DALI)
    on_gpu = entry.decoder == DALI and bench.device.type == "cuda"
    name = decode.row_name(entry.decoder + decode.ON_GPU * on_gpu, cores if threads else 1)
    row = bench.result.find(decode.SUITE, name)
    return None if row is None else row.value * (1 if threads else max(min(workers, cores), 1))


class _Steps:
    """A step for each kind of batch that loaders give: the split with indices, bytes, or finished images."""

    def __init__(self, bench: Bench[ThroughputSettings], name: str, config: Config, runtime: Runtime) -> None:
        self._bench, self._name, self._config, self._runtime = bench, name, config, runtime
        self._built: dict[Any, Step] = {}
        self.cases: list[Measured[StepDetails]] = []

    def of(self, feed: Feed) -> Step:
        example = feed.example()
        pixels = example.images if isinstance(example, Batch | SplitView) else example.data
        # A captured step reads as many bytes as it was captured with.
        length = len(pixels) if isinstance(example, RaggedBatch) and self._runtime.graph else None
        key = ("view", pixels.data_ptr()) if is_view(example) else (feed.delivers, pixels.dtype, length)
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
        what = self._what(feed, batch)
        row = self._add(f"step alone on {what}", lambda: ready(batch), feed.batch_size)
        augmentation = None
        if isinstance(batch, RaggedBatch | RaggedView):
            augmentation = self._add(f"augmentation alone on {what}", self._replayed(augmenter, batch), feed.batch_size)
        return Step(name=self._name, run=ready, row=row, augmentation_row=augmentation)

    def _replayed(self, augmenter: Augmentation, batch: AnyBatch) -> Callable[[], object]:
        """A call of the augmentation on a batch; on CUDA as a graph, as in a captured step."""
        call = partial(augmenter, batch)
        call()
        return captured(call) if self._bench.device.type == "cuda" else call

    def _add(self, what: str, call: Callable[[], object], items: int) -> str:
        """Measure a call, too; the name of its row."""
        name = f"{what}, {self._name}"
        details = StepDetails(step=self._name, batch_size=items)
        self.cases.append(Measured(name=name, run=self._bench.rate(call, items=items), details=details))
        return name

    def _what(self, feed: Feed, batch: AnyBatch) -> str:
        what = _what(feed, batch)
        taken = any(case.name == f"step alone on {what}, {self._name}" for case in self.cases)
        # Batches of one kind, which lie in memory in another way.
        return f"{what} in {len(batch.data):,} bytes" if taken and isinstance(batch, RaggedBatch) else what


def _what(feed: Feed, batch: AnyBatch) -> str:
    if is_view(batch):
        return "the resident split"
    if isinstance(batch, RaggedBatch):
        return "decoded images"
    assert isinstance(batch, Batch), "views of a split were told above"
    if not batch.images.is_floating_point():
        return "bytes"
    by = "by the loader" if isinstance(feed, LoaderFeed) else "elsewhere"
    return f"{str(batch.images.dtype).removeprefix('torch.')} images augmented {by}"


def measured(bench: Bench[ThroughputSettings], entry: Entry, feed: Feed, step: Step) -> Measured[EndToEndDetails]:
    """The case of a step that a feed feeds: training images a second."""
    rate = feed.rate(step.run, seconds=bench.settings.seconds, epochs=_MOST_EPOCHS)
    # What the step takes from a loader of ours is bytes: the augmentation is the step's.
    raw = isinstance(feed, LoaderFeed) and not is_view(feed.example()) and entry.augmentation is None
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
    row: Row[EndToEndDetails],
    step: Row[Details],
    loader: Row[Details] | None,
    *,
    decoding: float | None = None,
    augmentation: float | None = None,
    share_cores: bool,
) -> EndToEndDetails:
    """The row's details with the share of the time that the step waits, and in words which of the two bounds the rate.
    step, loader: each alone. decoding, augmentation: images/s of these parts of the loader and of the step, each alone;
    None where that was not measured. share_cores: whether both compute on the CPU."""
    waits = max(0.0, 1 - row.value / step.value)
    slow = slower(loader, row, step)
    decode_share = _share(loader, decoding) if slow == LOADER else None
    augmentation_share = _share(step, augmentation) if slow == STEP else None
    bound = slow
    if decode_share is not None:
        bound = DECODING if decode_share >= 0.5 else AUGMENTATION
    elif augmentation_share is not None and augmentation_share > 0.5:
        bound = AUGMENTATION
    known = f"alone it gives {loader.value:,.0f} images/s" if loader is not None else "it was not measured alone"
    text = (
        f"{row.details.entry} with {row.details.step}: {_VERDICTS[bound]}. The loader: {known}; the step alone takes "
        f"{step.value:,.0f}; together {row.value:,.0f}, so the step waits {waits:.0%} of the time."
    )
    if decode_share is not None:
        text += f" Decoding alone takes {decode_share:.0%} of the loader's time."
    if augmentation_share is not None:
        text += f" The augmentation takes {augmentation_share:.0%} of the step's time."
    if share_cores and slow == STEP and _below(row, step):
        text += " It waits although the loader is faster alone: they share the cores."
    return replace(
        row.details,
        step_alone=step.value,
        loader_alone=loader.value if loader is not None else None,
        wait_share=waits,
        bound=bound,
        sentence=text,
        decode_share=decode_share,
        augmentation_share=augmentation_share,
    )


def _share(whole: Row[Details] | None, part: float | None) -> float | None:
    """Of the time of the one, what the other takes, which is a part of it and alone reaches so many images/s."""
    return None if whole is None or part is None else min(whole.value / part, 1.0)


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
