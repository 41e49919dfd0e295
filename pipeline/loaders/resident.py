"""The whole split as bytes in device memory: a batch is a row of indices, gathered inside the step's kernel."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.loaders.base import Loader, LoaderOptions
from fast_train.pipeline.loaders.batch import Batch, SplitView


class ResidentLoader(Loader):
    """CIFAR-10's training split takes 154 MB; larger sets need as much device memory as they have bytes."""

    holds_all: ClassVar[bool] = True

    def __init__(self, prepared: PreparedSet, split: str, options: LoaderOptions) -> None:
        super().__init__(prepared, split, options)
        packed = prepared.packed(split)
        check_fits(packed.images.nbytes, f"split '{split}' of {prepared.root}", self.device)
        # Copies: a mapped file must not back a tensor that outlives it or that someone writes to.
        self._images: Tensor | None = torch.tensor(packed.images, device=self.device)
        self._labels: Tensor | None = torch.tensor(packed.labels, device=self.device)

    def _split(self) -> tuple[Tensor, Tensor]:
        if self._images is None or self._labels is None:
            raise self._closed()
        return self._images, self._labels

    def _batches(self, start: int) -> Generator[Batch]:
        for view in self._views(start):
            yield Batch(view.images[view.indices], view.targets(), view.indices)

    def _views(self, start: int) -> Generator[SplitView]:
        images, labels = self._split()
        for indices in self.index_batches(start, self.device):
            yield SplitView(images, labels, indices)

    def feed(self) -> Iterator[SplitView]:
        return self._begin_pass(self._views)

    def example(self) -> SplitView:
        """The whole split, as `feed` gives it, with the first indices of the file."""
        return SplitView(*self._split(), torch.arange(self.batch_size, device=self.device))

    def close(self) -> None:
        super().close()
        self._images = self._labels = None


def check_fits(needed: int, what: str, device: torch.device) -> None:
    """Raise ValueError where ``needed`` bytes are more than a CUDA device has free. what: that needs them."""
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        # What this process freed before may still be kept by torch for itself.
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise ValueError(
            f"{what} takes {needed / 1e9:.1f} GB, {device} has {free / 1e9:.1f} GB free; use --loader torch"
        )
