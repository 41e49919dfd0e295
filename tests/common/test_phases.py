"""Where a command's time goes, by name: by a clock that the test turns."""

import pytest

from fast_train.common import phases


@pytest.fixture
def clock(monkeypatch):
    now = [5.0]
    monkeypatch.setattr(phases.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(phases, "_phases", None)
    phases.begin_phases()

    def wait(seconds):
        now[0] += seconds

    return wait


def test_each_second_belongs_to_the_innermost_phase_in_the_order_of_happening(clock):
    clock(1)
    with phases.phase("training"):
        clock(2)
        with phases.phase("saving"):
            clock(4)
        clock(8)
    clock(16)
    with phases.phase("saving"):
        clock(32)
    assert list(phases.seconds_by_phase().items()) == [("training", 10), ("saving", 36), ("other", 17)]


def test_a_function_is_a_phase_at_each_call_however_it_ends(clock):
    @phases.phase("reading")
    def read(seconds):
        clock(seconds)
        return 10 / (seconds - 2)

    assert read(1) == -10
    with pytest.raises(ZeroDivisionError):
        read(2)
    clock(4)
    assert phases.seconds_by_phase() == {"reading": 3, "other": 4}
