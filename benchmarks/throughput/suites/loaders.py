"""Loaders alone: bytes on the device, and augmented images; then augmented over batch sizes and worker counts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from fast_train.benchmarks.instrument.bench import Bench, Measured
from fast_train.benchmarks.instrument.cost import in_batches
from fast_train.benchmarks.instrument.feeds import Entry, Feed, FeedOptions, LoaderFeed, library_entries
from fast_train.benchmarks.peers import BASELINES, peer_entries
from fast_train.benchmarks.throughput.records import LoaderDetails
from fast_train.benchmarks.throughput.suites import ThroughputSettings
from fast_train.common.cores import usable_cores

SUITE = "loaders"
RAW, AUGMENTED = "raw", "augmented"
#: Those that --quick feeds a step with, and so measures in all that a step may take from them.
QUICK = ("resident", "torch", *BASELINES)
#: Passes longer than this many epochs say nothing more.
_MOST_EPOCHS = 50


def run(bench: Bench[ThroughputSettings]) -> None:
    """All loaders in turn: first side by side, then over batch sizes, then over worker counts.

    In batches of the baseline's size their bytes are measured too, to be compared with what the baseline's step takes.
    """
    main, workers = bench.config.data.batch_size, bench.settings.workers
    if bench.prepared.manifest.ragged:
        bench.skip(SUITE, "others' decoded images", "their recipes crop while they decode: no whole image comes out")
    baseline = bench.baseline.data.batch_size
    _group(bench, f"loaders, batch {main:,}", main, workers, (RAW, AUGMENTED))
    if not bench.settings.scaling:
        bench.skip(SUITE, "other loaders' bytes; other batch sizes and worker counts", "left out by --quick")
        return
    for batch_size in sorted({*bench.settings.batch_sizes, baseline} - {main}):
        kinds = (RAW, AUGMENTED) if batch_size == baseline else (AUGMENTED,)
        _group(bench, f"loaders, batch {batch_size:,}", batch_size, workers, kinds)
    for count in bench.settings.worker_counts:
        if count != workers:
            _group(bench, f"loaders, {count} workers", main, count, (AUGMENTED,), only_with_workers=True)


def row_name(entry: Entry, kind: str, batch_size: int, workers: int) -> str:
    """The name of a row. workers: of those that leave their number open."""
    count = workers_of(entry, workers)
    suffix = f", {count} worker{'s'[: count != 1]}" if count else ""
    return f"{entry.name}, {kind}, batch {batch_size:,}{suffix}"


def workers_of(entry: Entry, workers: int) -> int:
    """Its own number of workers where its recipe fixes it, otherwise ``workers``."""
    return workers if entry.workers is None else entry.workers


def open_feed(
    bench: Bench[ThroughputSettings], entry: Entry, options: FeedOptions, stack: ExitStack, *, suite: str, name: str
) -> Feed | None:
    """A feed that the stack closes, or None; then it is listed as ``name`` of ``suite`` with the reason."""
    try:
        feed = entry.open(options)
    except (ValueError, ImportError) as error:
        bench.skip(suite, name, str(error))
        return None
    stack.callback(feed.close)
    return feed


def entries(bench: Bench[ThroughputSettings]) -> list[Entry]:
    """All that are compared, ours first."""
    return [*library_entries(), *peer_entries(ragged=bench.prepared.manifest.ragged is not None)]


def _group(
    bench: Bench[ThroughputSettings],
    label: str,
    batch_size: int,
    workers: int,
    kinds: Sequence[str],
    *,
    only_with_workers: bool = False,
) -> None:
    """One round-robin over all loaders at one setting."""
    config = in_batches(bench.config, batch_size)
    cases = []
    with ExitStack() as stack:
        for entry in entries(bench):
            if only_with_workers and entry.workers is not None:
                continue
            own = workers_of(entry, workers)
            for kind in kinds:
                if kind == RAW and (_crops(bench, entry) or (bench.settings.quick and entry.name not in QUICK)):
                    continue
                name = row_name(entry, kind, batch_size, workers)
                options = FeedOptions(
                    prepared=bench.prepared,
                    config=config,
                    runtime=bench.runtime,
                    workers=own,
                    scratch=bench.scratch,
                    raw=kind == RAW,
                )
                feed = open_feed(bench, entry, options, stack, suite=SUITE, name=name)
                if feed is not None:
                    cases.append(measured(bench, entry, feed, name=name, kind=kind, workers=own))
        bench.measure(SUITE, label, cases)


def measured(
    bench: Bench[ThroughputSettings], entry: Entry, feed: Feed, *, name: str, kind: str, workers: int
) -> Measured[LoaderDetails]:
    """The case of one feed: images a second, as bytes or augmented."""
    seconds = bench.settings.seconds
    if isinstance(feed, LoaderFeed) and kind == AUGMENTED:
        rate = feed.rate(feed.augmenter, seconds=seconds, epochs=_MOST_EPOCHS)
    else:
        rate = feed.rate(seconds=seconds, epochs=_MOST_EPOCHS)
    details = LoaderDetails(
        entry=entry.name,
        kind=kind,
        batch_size=feed.batch_size,
        workers=workers,
        fixed=entry.workers is not None,
        augmentation=_augmentation(bench, entry) if kind == AUGMENTED else "none",
        source=entry.source,
        cores=usable_cores(),
    )
    return Measured(name=name, run=rate, details=details)


def _crops(bench: Bench[ThroughputSettings], entry: Entry) -> bool:
    """Whether its augmentation is part of its decoding."""
    return bench.prepared.manifest.ragged is not None and entry.augmentation is not None


def _augmentation(bench: Bench[ThroughputSettings], entry: Entry) -> str:
    if entry.augmentation is not None:
        return entry.augmentation
    crop, spec = bench.config.crop, bench.config.augment
    if crop.sizes:
        return f"{'random' if crop.scale else 'centre'} crop{', flip' if crop.flip else ''} by our kernel"
    parts = [f"crop {spec.pad}" if spec.pad else "", "flip" if spec.flip else ""]
    parts += [f"cutout {spec.cutout}" if spec.cutout else ""]
    return f"{', '.join(part for part in parts if part) or 'normalisation'} by our kernel"
