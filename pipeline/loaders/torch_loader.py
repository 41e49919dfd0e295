"""The baseline: torch.utils.data.DataLoader over the packed file, one image a call, in worker processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data_prep.manifest import PreparedSet
from pipeline.loaders.base import Batch, Loader

DEFAULT_WORKERS = 4


class PackedDataset(Dataset[tuple[Tensor, int, int]]):
    """Image i of a split: (uint8 [H, W, C], label, i). The file is mapped, so workers share its pages."""

    def __init__(self, prepared: PreparedSet, split: str) -> None:
        self._packed = prepared.packed(split)

    def __len__(self) -> int:
        return len(self._packed.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return torch.tensor(self._packed.images[index]), int(self._packed.labels[index]), index


class _EpochSampler(Sampler[int]):
    """The indices that the loader set for the epoch; workers outlive it, so it changes in place."""

    def __init__(self) -> None:
        self.indices: list[int] = []

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def _leave_signals_to_the_parent(worker: int) -> None:
    del worker
    # Ctrl-C reaches the whole process group; the training process finishes its step with the workers alive.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class TorchLoader(Loader):
    """torch's DataLoader with persistent workers; pinned memory and asynchronous copies to a CUDA device."""

    def __init__(self, prepared: PreparedSet, split: str, **options: Any) -> None:
        super().__init__(prepared, split, **options)
        workers = self.workers
        if workers is None:
            workers = min(DEFAULT_WORKERS, os.cpu_count() or 1)
        self._sampler = _EpochSampler()
        self._loader: DataLoader[tuple[Tensor, int, int]] | None = DataLoader(
            PackedDataset(prepared, split),
            batch_size=self.batch_size,
            sampler=self._sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_leave_signals_to_the_parent if workers else None,
        )

    def _batches(self, start: int) -> Iterator[Batch]:
        if self._loader is None:
            raise ValueError(f"the loader of split '{self.split}' is closed; build a new one")
        self._sampler.indices = self.order()[start * self.batch_size :].tolist()
        for images, labels, indices in self._loader:
            yield Batch(*(t.to(self.device, non_blocking=True) for t in (images, labels, indices)))

    def close(self) -> None:
        # Its workers end when nothing refers to it any more.
        self._loader = None
