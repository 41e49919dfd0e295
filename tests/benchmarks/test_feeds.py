"""What is timed of a loader, and what is said of it beside a step."""

import multiprocessing
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from fast_train.benchmarks.instrument.feeds import (
    Feed,
    FeedOptions,
    LoaderFeed,
    batches_ahead,
    library_entries,
    timed_lot,
)
from fast_train.benchmarks.instrument.records import Details
from fast_train.benchmarks.instrument.result import Result, Row
from fast_train.benchmarks.peers import peer_entries
from fast_train.benchmarks.peers.ffcv_readme import FfcvReadme
from fast_train.benchmarks.peers.tuned_dataloader import TunedDataLoader
from fast_train.benchmarks.throughput.records import EndToEndDetails
from fast_train.benchmarks.throughput.report import headline
from fast_train.benchmarks.throughput.suites import end_to_end, loaders
from fast_train.benchmarks.throughput.suites.end_to_end import EITHER, LOADER, STEP, UNKNOWN, judge, slower
from fast_train.data_prep import cli as prep_cli
from fast_train.data_prep.manifest import PreparedSet
from fast_train.kernels.spec import AugmentSpec
from fast_train.pipeline.config.settings import Config
from fast_train.pipeline.engine.runtime import resolve_runtime
from fast_train.pipeline.loaders import Batch


class _Prefetching(Feed):
    """Makes batches as soon as it may: always ``ahead`` of what was taken."""

    batch_size, device, lot = 10, torch.device("cpu"), 1

    def __init__(self, ahead):
        self.ahead, self.made, self.given = ahead, 0, 0

    def batches(self, count):
        self.made = self.given = 0
        for number in range(count):
            self.made = min(number + 1 + self.ahead, count)
            self.given += 1
            yield Batch(*(torch.tensor([number]) for _ in Batch._fields))

    def example(self):
        raise NotImplementedError

    def close(self):
        pass


@pytest.mark.parametrize("ahead", [1, 4, 8])
@pytest.mark.parametrize("count", [1, 2, 20])
def test_as_many_batches_are_made_in_the_timed_part_as_are_taken(ahead, count, monkeypatch):
    feed, made, consumed = _Prefetching(ahead), [], []
    monkeypatch.setattr("fast_train.benchmarks.instrument.feeds.synchronise", lambda device: made.append(feed.made))
    feed.seconds(count, consumed.append)
    begin, end = made
    assert end - begin == count
    assert len(consumed) == ahead + count
    # Nothing is left to be made behind another case's back.
    assert feed.given == feed.made == ahead + count + ahead


def test_only_the_timed_part_is_timed(monkeypatch):
    feed, clock = _Prefetching(4), iter(range(100))
    now = [0.0]
    monkeypatch.setattr("fast_train.benchmarks.instrument.feeds.time.perf_counter", lambda: now[0])

    def consume(batch):
        now[0] += 1.0 + next(clock) // 4

    # Batches 0 to 3 take 1 s, 4 to 7 take 2 s, 8 and 9 take 3 s.
    assert feed.seconds(6, consume) == pytest.approx(4 * 2 + 2 * 3)


@pytest.mark.parametrize(
    ("workers", "per_epoch", "each", "expected"),
    [(None, 90, 2, 4), (0, 90, 2, 4), (1, 90, 2, 4), (4, 90, 2, 8), (4, 90, 4, 16), (4, 3, 4, 3)],
)
def test_a_loader_holds_what_its_workers_prefetch_of_an_epoch(workers, per_epoch, each, expected):
    assert batches_ahead(workers, per_epoch, each) == expected


@pytest.fixture(scope="module")
def prepared(prepared_path, tmp_path_factory):
    """The set of these tests in every format."""
    out = tmp_path_factory.mktemp("formats") / "set"
    arguments = ["--dataset", f"folder:{prepared_path.parent / 'images'}", "--out", str(out)]
    assert prep_cli.main([*arguments, "--formats", "packed,ffcv,dali"]) == 0
    return PreparedSet.open(out)


@pytest.mark.parametrize(
    ("workers", "ahead", "per_epoch", "expected"),
    [(2, 4, 100, 2), (None, 4, 100, 1), (0, 4, 100, 1), (16, 32, 390, 16), (16, 32, 97, 97), (4, 8, 4, 4)],
)
def test_of_short_epochs_whole_ones_are_timed(workers, ahead, per_epoch, expected):
    """At an epoch's end workers stall."""
    assert timed_lot(workers, ahead, per_epoch) == expected


def _entries():
    """Each line of the comparison. FFCV's example takes Numba many seconds to compile."""
    for entry in (*library_entries(), *peer_entries(ragged=False)):
        yield pytest.param(entry, id=entry.name, marks=pytest.mark.slow if entry.name == FfcvReadme.name else ())


def _open(entry, prepared, scratch):
    config = Config.from_dict({"data": {"path": str(prepared.root), "batch_size": 16}, "run": {"device": "cpu"}})
    runtime = resolve_runtime(config.run)
    workers = 1 if entry.workers is None else entry.workers
    return entry.open(FeedOptions(prepared=prepared, config=config, runtime=runtime, workers=workers, scratch=scratch))


# The baseline has four workers on any number of cores; bench-throughput says nothing of it either.
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("entry", list(_entries()))
def test_a_pass_of_any_length_has_that_many_batches(entry, prepared, tmp_path):
    feed = _open(entry, prepared, tmp_path)
    with_indices = isinstance(feed, LoaderFeed)
    try:
        for count in (1, 3, 4, 11):
            batches = [len(batch.indices if with_indices else batch.labels) for batch in feed.batches(count)]
            assert batches == [16] * count
        assert feed.seconds(2) > 0
    finally:
        feed.close()


def test_a_peer_whose_workers_are_stopped_is_waited_for_no_longer_than_that(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("fast_train.benchmarks.instrument.feeds.LATEST_SECONDS", 0.5)
    feed, others = _open(TunedDataLoader.entry(), prepared, tmp_path), set(multiprocessing.active_children())
    batches = feed.batches(40)
    next(batches)
    started = set(multiprocessing.active_children()) - others
    assert started
    for worker in started:
        # The job's end and Ctrl-C reach the whole group; workers are ended by who started them.
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGSTOP):
            os.kill(worker.pid, signum)
    with pytest.raises(RuntimeError, match="no batch came within"):
        list(batches)
    for worker in started:
        os.kill(worker.pid, signal.SIGCONT)
    feed.close()


def _row(*repeats, suite="end-to-end", name="row"):
    return Row(suite=suite, name=name, unit="images/s", repeats=repeats, details=Details())


def _fed(entry, step, *repeats, **details):
    details = EndToEndDetails(
        entry=entry, step=step, batch_size=8, workers=2, step_alone_row="", loader_alone_row="", **details
    )
    return Row(suite="end-to-end", name=f"{entry}, {step}", unit="images/s", repeats=repeats, details=details)


@pytest.mark.parametrize(
    ("loader", "together", "step", "expected"),
    [
        (_row(100, 110), _row(95, 105), _row(200, 210), LOADER),
        (_row(200, 210), _row(95, 105), _row(100, 110), STEP),
        (_row(200, 210), _row(50, 55), _row(100, 110), STEP),
        (_row(100, 120), _row(90, 100), _row(110, 130), EITHER),
        (None, _row(95, 105), _row(100, 110), STEP),
        (None, _row(50, 55), _row(100, 110), UNKNOWN),
        (None, _row(50), _row(100), UNKNOWN),
    ],
)
def test_what_bounds_a_rate_is_said_only_beyond_the_noise(loader, together, step, expected):
    assert slower(loader, together, step) == expected


@pytest.mark.parametrize(
    ("device", "loader", "together", "said"),
    [
        ("cpu", 300, 80, "It waits although the loader is faster alone: they share the cores."),
        ("cuda", 300, 80, "the step bounds it. The loader: alone it gives 300 images/s; the step alone takes 100;"),
        ("cpu", 50, 40, "the loader bounds it"),
    ],
)
def test_a_loader_is_judged_by_the_step_alone(device, loader, together, said):
    alone = _row(loader, loader, suite="loaders", name="torch, raw")
    row = _fed("torch", "the step", together, together)
    details = judge(row, _row(100, 100), alone, share_cores=device == "cpu")
    assert details.wait_share == pytest.approx(1 - together / 100)
    assert (details.step_alone, details.loader_alone) == (100, loader)
    assert said in details.sentence


class _Timed(_Prefetching):
    """Takes 10 ms a batch."""

    per_epoch = 100

    def seconds(self, count, consume=lambda batch: None):
        return 0.01 * count


def test_rates_are_images_a_second():
    bench = SimpleNamespace(
        settings=SimpleNamespace(seconds=0.3, workers=2),
        config=SimpleNamespace(augment=AugmentSpec()),
    )
    entry, feed = library_entries()[0], _Timed(4)
    alone = loaders.measured(bench, entry, feed, name="name", kind=loaders.RAW, workers=2)
    step = end_to_end.Step(name="the step", run=lambda batch: None, row="alone")
    together = end_to_end.measured(bench, entry, feed, step)
    assert alone.run() == pytest.approx(1000)
    assert together.run() == pytest.approx(1000)


def _result(rows, *, synthetic=False, complete=True):
    return Result(
        settings={},
        config={},
        data={"synthetic": synthetic},
        machine={"gpu": None, "usable_cores": 2, "cpu": "processor"},
        rows=rows,
        complete=complete,
    )


def test_the_headline_names_the_fastest_and_what_the_baseline_gives():
    step = "recipe fast's step"
    rows = [
        _fed("torch", step, 700, 800, wait_share=0.0),
        _fed("resident", step, 1000, 1010, wait_share=0.0),
        _fed("ffcv", step, 990, 1005, wait_share=0.0),
        _fed("baseline DataLoader", "the baseline's step", 250, 252, wait_share=0.0),
    ]
    text = headline(_result(rows))
    assert text.startswith(f"resident with {step} trains 1,005 images/s, 4.0 times the baseline's 251, on 2 cores")
    assert "Within the noise of it: ffcv." in text
    assert "synthetic" not in text
    assert "synthetic" in headline(_result(rows, synthetic=True))
    assert "interrupted" in headline(_result(rows, complete=False))
