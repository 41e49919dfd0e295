import io
import time

import pytest
import torch
from rich.console import Console

from fast_train.pipeline.engine.listener import Ready
from fast_train.pipeline.engine.metrics import Glimpse, Totals
from fast_train.pipeline.report.progress import Terminal

RECORD = {
    "epoch": 2, "step": 20, "lr": 0.05, "train_loss": 1.25, "train_accuracy": 0.5, "test_loss": 1.0,
    "test_accuracy": 0.625, "images_per_second": 1234.5, "seconds": 3.0, "train_seconds": 6.0, "synthetic": True,
}  # fmt: skip


def _console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


READY = Ready(epochs=4, total_steps=40, done_steps=0, history=(), seconds=0.0)


def test_plain_lines_where_it_is_no_terminal():
    console = _console(terminal=False)
    with Terminal(console) as shown:
        shown.on_ready(READY)
        shown.on_epoch_begin(2, already=0, images_left=300)
        shown.on_progress(Totals(50.0, 20, 40), 0.05)
        shown.on_epoch_end(RECORD)
    text = console.file.getvalue()
    assert text.count("\n") == 1
    for part in ("epoch   2/4", "1.250 50.00%", "1.000 62.50%", "lr 0.05", "1,234 images/s"):
        assert part in text


def test_a_live_bar_on_a_terminal():
    console = _console(terminal=True)
    with Terminal(console) as shown:
        shown.on_ready(READY)
        shown.on_epoch_begin(2, already=0, images_left=300)
        shown.on_progress(Totals(50.0, 20, 40), 0.05)
        # The bar is drawn ten times a second.
        time.sleep(0.25)
    text = console.file.getvalue()
    for part in ("epoch 2/4", "images/s", "loss 1.250", "acc 50.0%", "lr 0.05", "left"):
        assert part in text


def test_an_epoch_without_evaluation():
    console = _console(terminal=False)
    with Terminal(console) as shown:
        shown.on_ready(READY)
        shown.on_epoch_end({**RECORD, "test_loss": None, "test_accuracy": None})
    assert "test" not in console.file.getvalue()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_glimpse_shows_the_sums_now_and_then(device):
    sums = torch.tensor([6.0, 3.0, 4.0], dtype=torch.float64, device=device)
    glimpse = Glimpse(sums, every=0.02)
    assert glimpse.take() is None
    deadline = time.monotonic() + 5
    seen = None
    while seen is None and time.monotonic() < deadline:
        time.sleep(0.01)
        seen = glimpse.take()
    assert seen == Totals(6.0, 3, 4)
    assert glimpse.take() is None
