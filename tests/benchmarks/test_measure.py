import gc
import weakref
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fast_train.benchmarks.instrument.statistics import bootstrap, bootstrap_ratio, estimate, spread
from fast_train.benchmarks.instrument.timing import Case, Rate, captured, interleave
from fast_train.benchmarks.throughput.cli import Flags
from fast_train.benchmarks.throughput.suites import settings_of
from fast_train.pipeline.config.settings import Config

values = st.lists(st.floats(0.1, 1e6), min_size=2, max_size=20)


def _no_failure(name, reason):
    raise AssertionError(f"{name}: {reason}")


def test_cases_run_in_turn_and_each_round_begins_with_another():
    ran = []
    cases = [Case(name, lambda name=name: ran.append(name) or float(len(ran))) for name in "abc"]
    samples = interleave(cases, repeats=2, warm_up=1, on_failure=_no_failure)
    assert "".join(ran) == "abc" + "bca" + "cab"
    assert samples["a"].warm_up == (1.0,)
    assert samples["a"].repeats == (6.0, 8.0)


@pytest.mark.parametrize(("repeats", "warm_up", "flag"), [(5, 0, "--warm-up 0"), (0, 1, "--repeats 0")])
def test_nothing_is_measured_without_warm_up_or_repeats(repeats, warm_up, flag):
    with pytest.raises(ValueError, match=flag):
        interleave([Case("a", float)], repeats=repeats, warm_up=warm_up, on_failure=_no_failure)


def test_a_replay_keeps_what_its_graph_reads(monkeypatch):
    """A CUDA graph holds addresses: of tensors that are freed it would read other tensors' memory."""
    replays = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: replays.append(1)))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **options: nullcontext())
    tensor = torch.ones(3)
    read = weakref.ref(tensor)
    replay = captured(partial(torch.add, tensor, 1))
    del tensor
    gc.collect()
    assert read() is not None
    assert torch.equal(replay(), torch.full((3,), 2.0))
    assert replays == [1]


def test_a_case_that_fails_leaves_the_others_alone():
    def fail():
        raise RuntimeError("out of\nmemory")

    failures = []
    cases = [Case("good", lambda: 1.0), Case("bad", fail)]
    samples = interleave(cases, repeats=3, warm_up=1, on_failure=lambda *failure: failures.append(failure))
    assert failures == [("bad", "out of memory")]
    assert list(samples) == ["good"]
    assert len(samples["good"].repeats) == 3


@given(values)
def test_the_interval_holds_the_median_and_lies_within_the_values(repeats):
    low, high = bootstrap(repeats)
    assert min(repeats) <= low <= high <= max(repeats)
    assert low <= estimate(repeats) <= high
    assert bootstrap(repeats) == (low, high)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    """The percentile bootstrap of 30 normal values covers a little less than its 95 %."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = bootstrap(generator.normal(10, 1, 30).tolist(), "mean")
        covered += low <= 10 <= high
    assert 175 <= covered <= 199


def test_one_value_has_no_interval():
    assert bootstrap([3.0]) is None
    assert bootstrap_ratio([3.0], [1.0, 2.0]) is None


def test_a_ratio_has_the_interval_of_both():
    low, high = bootstrap_ratio([20.0, 20.0, 20.0], [9.0, 10.0, 11.0])
    assert low == pytest.approx(20 / 11)
    assert high == pytest.approx(20 / 9)


def test_spread_is_a_part_of_the_median():
    assert spread([90.0, 100.0, 110.0]) == pytest.approx(0.2)
    assert spread([5.0]) == 0


def test_a_rate_is_measured_over_enough_iterations():
    counts = []

    def work(count):
        counts.append(count)
        return 0.001 * count

    rate = Rate(work, items=10, seconds=0.5)
    assert rate() == pytest.approx(10_000)
    assert rate.iterations == pytest.approx(500, rel=0.01)
    assert counts[0] == counts[1] == 1


def test_a_disturbed_trial_does_not_shorten_all_repeats():
    counts = []

    def work(count):
        counts.append(count)
        return 10.0 if len(counts) == 2 else 0.001 * count

    rate = Rate(work, items=1, seconds=0.5)
    assert [rate() for _ in range(3)] == pytest.approx([1000] * 3)
    assert counts == [1, 1, 1, 500, 500]


def test_iterations_come_in_lots():
    counts = []

    def work(count):
        counts.append(count)
        return 0.01 * count

    Rate(work, items=1, seconds=0.5, lot=4)()
    Rate(work, items=1, seconds=5.0, lot=4, most=30)()
    assert counts[-1] == 28
    assert 52 in counts
    assert all(count % 4 == 0 for count in counts)


@pytest.mark.parametrize(("flags", "expected"), [({}, (5, 2)), ({"repeats": 7}, (7, 7)), ({"quick": True}, (2, 2))])
def test_repeats_on_a_cpu(flags, expected):
    """What takes long is repeated less there, unless repeats are asked for."""
    settings = settings_of(Flags(**flags), Config(), cuda=False)
    assert (settings.repeats, settings.slow_repeats) == expected
