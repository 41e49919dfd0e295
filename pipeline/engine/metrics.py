"""Sums over an epoch, kept on the device and looked at now and then."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

from fast_train.pipeline.ranks import current


class Glimpse:
    """Reads a tensor of sums now and then without making the host wait for the device. every: seconds in between.
    Of several ranks, each takes its own part of the images for an example of all.

    On CUDA a copy to pinned memory is queued after the steps, and its values are looked at once it is done: what
    is shown is what the device has finished, not what the host has queued.
    """

    def __init__(self, sums: Tensor, *, every: float = 0.25) -> None:
        self._sums, self._every = sums, every
        self._event: torch.cuda.Event | None = None
        self._pinned = torch.empty_like(sums, device="cpu", pin_memory=True) if sums.is_cuda else None
        self._last_look = time.monotonic()

    def take(self) -> Totals | None:
        """The totals, at most once in ``every`` seconds; None in between."""
        now = time.monotonic()
        if now - self._last_look < self._every:
            return None
        if self._pinned is None:
            self._last_look = now
            return totals(self._sums * current().size)
        if self._event is None:
            self._pinned.copy_(self._sums, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
            return None
        if not self._event.query():
            return None
        self._event, self._last_look = None, now
        return totals(self._pinned * current().size)


class Totals(NamedTuple):
    """Sums over the images of an epoch so far, on the host."""

    loss: float
    correct: int
    images: int


class Metrics:
    """Sums that the step adds to on the device; reading them is the epoch's only synchronisation. Each rank has those
    of its images, and all of them read together."""

    def __init__(self, device: torch.device) -> None:
        # float64: sums of 50,000 losses keep their digits. Apple's GPU has none; float32 counts to 16.7 million images.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        # Loss, correct, images.
        self.sums = torch.zeros(3, dtype=dtype, device=device)

    def add(self, loss: Tensor, correct: Tensor, images: int) -> None:
        """loss: 0-D mean over the batch. correct: 0-D count."""
        row = torch.stack([loss.detach() * images, correct, torch.full_like(loss, images)])
        self.sums += row

    def reset(self) -> None:
        self.sums.zero_()

    def read(self) -> Totals:
        """Wait for the device and return the sums, over all ranks."""
        return totals(current().sum(self.sums))

    def state(self) -> Tensor:
        """The sums, [3], or [R, 3] of R ranks, which all ask for it."""
        ranks = current()
        return ranks.gather(self.sums) if ranks.size > 1 else self.sums

    def load(self, state: Tensor) -> None:
        """The inverse of `state`, of any number of ranks: what was summed on another number stays with the first."""
        ranks, rows = current(), state.view(-1, len(self.sums))
        if len(rows) == ranks.size:
            self.sums.copy_(rows[ranks.rank])
        else:
            self.sums.copy_(rows.sum(dim=0) * ranks.first)


def totals(sums: Tensor) -> Totals:
    """The sums of `Metrics.sums`, [3], as numbers."""
    loss, correct, images = sums.tolist()
    return Totals(loss, int(correct), int(images))
