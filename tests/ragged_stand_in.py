"""In place of the loaders until they deliver images that keep their own shapes."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch

from fast_train.pipeline import loaders
from fast_train.pipeline.engine.stored import stored_labels, stored_pixels
from fast_train.pipeline.loaders.base import Loader
from fast_train.pipeline.loaders.batch import RaggedBatch, RaggedView
from fast_train.pipeline.loaders.resident import ResidentLoader


class StandIn(Loader):
    def __new__(cls, prepared, split, options):
        return super().__new__(cls) if prepared.manifest.ragged else ResidentLoader(prepared, split, options)

    def __init__(self, prepared, split, options) -> None:
        super().__init__(prepared, split, options)
        pixels = stored_pixels(prepared, split, range(self.count))
        sizes = np.array([image.size for image in pixels])
        columns = [
            torch.from_numpy(np.concatenate([image.reshape(-1) for image in pixels])),
            torch.from_numpy(np.cumsum(sizes) - sizes),
            torch.tensor([image.shape[0] for image in pixels], dtype=torch.int32),
            torch.tensor([image.shape[1] for image in pixels], dtype=torch.int32),
            torch.from_numpy(stored_labels(prepared, split)),
        ]
        self._columns = [column.to(self.device) for column in columns]

    def _batches(self, start: int) -> Generator[Any]:
        data, offsets, heights, widths, labels = self._columns
        for i in self.index_batches(start, self.device):
            yield RaggedBatch(data, offsets[i], heights[i], widths[i], labels[i], i)

    def _views(self, start: int) -> Generator[Any]:
        for indices in self.index_batches(start, self.device):
            yield RaggedView(*self._columns, indices)

    def feed(self) -> Iterator[Any]:
        return self._begin_pass(self._views)

    def example(self) -> Any:
        return RaggedView(*self._columns, torch.arange(self.batch_size, device=self.device))


def install() -> None:
    loaders.LOADERS["resident"] = StandIn
