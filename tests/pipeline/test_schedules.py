import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fast_train.pipeline.config.settings import ScheduleConfig, settings
from fast_train.pipeline.optim.schedules import build_schedule


def _rates(total=1000, peak=0.4, **config):
    schedule = build_schedule(ScheduleConfig(**config), peak=peak, total_steps=total)
    return [schedule.rate(step) for step in range(total)]


@given(st.sampled_from(settings()["schedule.name"].choices), st.integers(1, 400), st.floats(0, 0.9), st.floats(0, 1))
def test_every_rate_lies_between_zero_and_the_peak(name, total, warmup, final):
    rates = _rates(total, name=name, warmup=warmup, final=final, milestones=(0.5,))
    assert all(0 <= rate <= 0.4 + 1e-12 for rate in rates)
    assert max(rates) > 0


def test_paper_divides_by_ten_at_32k_and_48k():
    rates = _rates(64_000, 0.1, name="multistep", milestones=(0.5, 0.75))
    assert rates[31_999] == pytest.approx(0.1)
    assert rates[32_000] == pytest.approx(0.01)
    assert rates[47_999] == pytest.approx(0.01)
    assert rates[48_000] == pytest.approx(0.001)
    warmed = _rates(64_000, 0.1, name="multistep", milestones=(0.5, 0.75), warmup=0.1)
    assert warmed[6_400:] == rates[6_400:]


def test_triangular_rises_to_the_peak_and_falls_to_zero():
    rates = _rates(name="triangular", warmup=0.25)
    assert rates[250] == pytest.approx(0.4)
    assert rates[125] == pytest.approx(0.2, rel=0.01)
    assert 0 < rates[-1] < 0.001
    assert rates == sorted(rates[:250]) + sorted(rates[250:], reverse=True)


def test_a_warm_up_can_begin_above_zero():
    rates = _rates(name="triangular", warmup=0.1, start=0.2)
    assert rates[0] == pytest.approx(0.4 * 0.2, rel=0.05)
    assert rates[50] == pytest.approx(0.4 * 0.6, rel=0.01)
    assert rates[100] == pytest.approx(0.4)


def test_onecycle_is_torchs():
    """But for the end point: torch reaches its last rate with the last step, a step later here."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.4, total_steps=1001, pct_start=0.3, cycle_momentum=False, final_div_factor=1e9
    )
    ours = _rates(name="onecycle", warmup=0.3)
    for rate in ours:
        assert theirs.get_last_lr()[0] == pytest.approx(rate, abs=1.5e-3)
        optimizer.step()
        theirs.step()


def test_cosine_halves_in_the_middle():
    assert _rates(name="cosine")[500] == pytest.approx(0.2)


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=60), st.integers(0, 5), st.floats(0, 0.5))
def test_plateau_is_torchs(losses, patience, threshold):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.1, patience=patience, threshold=threshold, eps=0
    )
    config = ScheduleConfig(name="plateau", patience=patience, threshold=threshold)
    ours = build_schedule(config, peak=0.4, total_steps=100)
    for loss in losses:
        theirs.step(loss)
        ours.epoch_end(loss)
        resumed = build_schedule(config, peak=0.4, total_steps=100)
        resumed.load_state_dict(ours.state_dict())
        assert ours.rate(5) == pytest.approx(optimizer.param_groups[0]["lr"])
        ours = resumed
