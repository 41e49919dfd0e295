"""Loaders alone: bytes on the device, and augmented images; then augmented over batch sizes and worker counts."""

from __future__ import annotations

import dataclasses
import os
from contextlib import ExitStack

from fast_train.benchmarks.instrument.bench import Bench, Measured
from fast_train.benchmarks.instrument.feeds import Entry, Feed, LoaderFeed, library_entries
from fast_train.benchmarks.instrument.timing import Rate
from fast_train.benchmarks.peers import peer_entries
from fast_train.pipeline.config.settings import Config

SUITE = "loaders"
RAW, AUGMENTED = "raw", "augmented"
#: Passes longer than this many epochs say nothing more.
_MOST_EPOCHS = 50


def run(bench: Bench) -> None:
    """All loaders in turn: first side by side, then over batch sizes, then over worker counts.

    In batches of the notes' size their bytes are measured too, to be compared with what the notes' step takes.
    """
    main, workers = bench.config.data.batch_size, bench.settings.workers
    notes = bench.notes.data.batch_size
    kinds = (AUGMENTED,) if bench.settings.quick else (RAW, AUGMENTED)
    _group(bench, f"loaders, batch {main:,}", main, workers, kinds)
    if not bench.settings.scaling:
        bench.skip(SUITE, "bytes; other batch sizes and worker counts", "left out by --quick")
        return
    for batch_size in sorted({*bench.settings.batch_sizes, notes} - {main}):
        kinds = (RAW, AUGMENTED) if batch_size == notes else (AUGMENTED,)
        _group(bench, f"loaders, batch {batch_size:,}", batch_size, workers, kinds)
    for count in bench.settings.worker_counts:
        if count != workers:
            _group(bench, f"loaders, {count} workers", main, count, (AUGMENTED,), only_with_workers=True)


def row_name(entry: Entry, kind: str, batch_size: int, workers: int) -> str:
    """The name of a row. workers: of those that leave their number open."""
    count = _workers(entry, workers)
    suffix = f", {count} worker{'s' if count != 1 else ''}" if count else ""
    return f"{entry.name}, {kind}, batch {batch_size:,}{suffix}"


def _workers(entry: Entry, workers: int) -> int:
    return workers if entry.workers is None else entry.workers


def open_feed(
    bench: Bench, entry: Entry, config: Config, workers: int, raw: bool, stack: ExitStack, name: str, suite: str
) -> Feed | None:
    """A feed that the stack closes, or None; why not is listed."""
    try:
        runtime = bench.notes_runtime if config is bench.notes else bench.runtime
        feed = entry.open(bench, config, runtime, _workers(entry, workers), raw)
    except (ValueError, ImportError) as error:
        bench.skip(suite, name, str(error))
        return None
    stack.callback(feed.close)
    return feed


def entries() -> list[Entry]:
    """All that are compared, ours first."""
    return [*library_entries(), *peer_entries()]


def _group(
    bench: Bench, label: str, batch_size: int, workers: int, kinds: tuple[str, ...], *, only_with_workers: bool = False
) -> None:
    """One round-robin over all loaders at one setting."""
    data = dataclasses.replace(bench.config.data, batch_size=batch_size)
    config = dataclasses.replace(bench.config, data=data)
    cases = []
    with ExitStack() as stack:
        for entry in entries():
            if only_with_workers and entry.workers is not None:
                continue
            for kind in kinds:
                name = row_name(entry, kind, batch_size, workers)
                feed = open_feed(bench, entry, config, workers, kind == RAW, stack, name, SUITE)
                if feed is not None:
                    cases.append(_case(bench, entry, feed, name, kind, _workers(entry, workers)))
        bench.measure(SUITE, label, cases)


def _case(bench: Bench, entry: Entry, feed: Feed, name: str, kind: str, workers: int) -> Measured:
    augment = isinstance(feed, LoaderFeed) and kind == AUGMENTED

    def work(count: int) -> float:
        if augment:
            assert isinstance(feed, LoaderFeed)
            return feed.seconds(count, feed.augmenter)
        return feed.seconds(count)

    per_epoch = bench.prepared.size("train") // feed.batch_size
    rate = Rate(
        work, items=feed.batch_size, seconds=bench.settings.seconds, lot=feed.lot, most=_MOST_EPOCHS * per_epoch
    )
    details = {
        "entry": entry.name,
        "kind": kind,
        "batch_size": feed.batch_size,
        "workers": workers,
        "fixed": entry.workers is not None,
        "augmentation": _augmentation(bench, entry) if kind == AUGMENTED else "none",
        "source": entry.source,
        "cores": os.cpu_count(),
    }
    return Measured(name=name, run=rate, details=details)


def _augmentation(bench: Bench, entry: Entry) -> str:
    if entry.augmentation is not None:
        return entry.augmentation
    spec = bench.config.augment
    parts = [f"crop {spec.pad}" if spec.pad else "", "flip" if spec.flip else ""]
    parts += [f"cutout {spec.cutout}" if spec.cutout else ""]
    return f"{', '.join(part for part in parts if part) or 'normalisation'} by our kernel"
