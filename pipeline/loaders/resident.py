"""The whole split as bytes in device memory: a batch is a row of indices, gathered inside the step's kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from data_prep.manifest import PreparedSet
from pipeline.loaders.base import Batch, Loader


class ResidentLoader(Loader):
    """CIFAR-10's training split takes 154 MB; larger sets need as much device memory as they have bytes.

    ``images`` is uint8 [M, H, W, C] and ``labels`` int64 [M], both of the whole split on the device.
    """

    gathers: ClassVar[bool] = True

    def __init__(self, prepared: PreparedSet, split: str, **options: Any) -> None:
        super().__init__(prepared, split, **options)
        packed = prepared.packed(split)
        self._check_memory(packed.images.nbytes)
        self.images = _copy(packed.images, self.device)
        self.labels = _copy(packed.labels, self.device)

    def _check_memory(self, needed: int) -> None:
        if self.device.type != "cuda":
            return
        free, _ = torch.cuda.mem_get_info(self.device)
        if needed > free:
            raise ValueError(
                f"split '{self.split}' of {self.prepared.root} takes {needed / 1e9:.1f} GB, {self.device} has "
                f"{free / 1e9:.1f} GB free; use --loader torch"
            )

    def _batches(self, start: int) -> Iterator[Batch]:
        for indices in self.index_batches(start, self.device):
            yield Batch(self.images[indices], self.labels[indices], indices)

    def feed(self) -> Iterator[Batch]:
        """Batches whose images and labels are the whole split's; only the indices differ."""
        start, self._resume_at = self._resume_at, 0
        whole = (Batch(self.images, self.labels, indices) for indices in self.index_batches(start, self.device))
        return self._counted(whole, start)

    def example(self) -> Batch:
        """The whole split, as `feed` gives it, with the first indices of the file."""
        return Batch(self.images, self.labels, torch.arange(self.batch_size, device=self.device))


def _copy(array: Any, device: torch.device) -> Tensor:
    # torch.tensor copies: a mapped file must not back a tensor that outlives it or that someone writes to.
    return torch.tensor(array, device=device)
