import io
import time

import pytest
import torch
from rich.console import Console

from fast_train.pipeline.engine.metrics import Glimpse, Totals
from fast_train.pipeline.report import progress as display
from fast_train.pipeline.report.progress import Display

RECORD = {
    "epoch": 2, "step": 20, "lr": 0.05, "train_loss": 1.25, "train_accuracy": 0.5, "test_loss": 1.0,
    "test_accuracy": 0.625, "images_per_second": 1234.5, "seconds": 3.0, "train_seconds": 6.0, "synthetic": True,
}  # fmt: skip


def _console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


def test_plain_lines_where_it_is_no_terminal():
    console = _console(terminal=False)
    shown = Display(console, epochs=4, note=" (synthetic data)")
    shown.begin(2, already=0, images_left=300)
    shown.update(Totals(50.0, 20, 40), 0.05)
    shown.end(RECORD)
    shown.close()
    text = console.file.getvalue()
    assert text.count("\n") == 1
    for part in ("epoch   2/4", "1.250 50.00%", "1.000 62.50%", "lr 0.05", "1,234 images/s", "(synthetic data)"):
        assert part in text


def test_a_live_bar_on_a_terminal(monkeypatch):
    console = _console(terminal=True)
    shown = Display(console, epochs=4)
    shown.begin(2, already=0, images_left=300)
    shown.update(Totals(50.0, 20, 40), 0.05)
    shown._progress.refresh()
    shown.close()
    text = console.file.getvalue()
    for part in ("epoch 2/4", "images/s", "loss 1.250", "acc 50.0%", "lr 0.05", "left"):
        assert part in text


def test_an_epoch_without_evaluation():
    console = _console(terminal=False)
    Display(console, epochs=4).end({**RECORD, "test_loss": None, "test_accuracy": None})
    assert "test" not in console.file.getvalue()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_glimpse_shows_the_sums_now_and_then(monkeypatch, device):
    monkeypatch.setattr(display, "_SECONDS_BETWEEN_LOOKS", 0.02)
    sums = torch.tensor([6.0, 3.0, 4.0], dtype=torch.float64, device=device)
    glimpse = Glimpse(sums)
    assert glimpse.take() is None
    deadline = time.monotonic() + 5
    seen = None
    while seen is None and time.monotonic() < deadline:
        time.sleep(0.01)
        seen = glimpse.take()
    assert seen == Totals(6.0, 3, 4)
    assert glimpse.take() is None
