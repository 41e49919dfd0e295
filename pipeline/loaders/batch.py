"""What flows from a loader to the step: one type for each way in which images lie in memory."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from torch import Tensor


class Batch(NamedTuple):
    """N images: images uint8 [N, H, W, C]; labels int64 [N]; indices int64 [N], their numbers in the split.

    Where a loader augments by itself, images are [N, C, H, W], normalised (see `pipeline.loaders.native`).
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    def targets(self) -> Tensor:
        """The labels of the batch, int64 [N]."""
        return self.labels

    def changing(self) -> tuple[str, ...]:
        """The fields that are other tensors in each batch."""
        return self._fields

    def clone(self) -> Batch:
        return Batch(self.images.clone(), self.labels.clone(), self.indices.clone())


class SplitView(NamedTuple):
    """N images of a split that is on the device whole: images uint8 [M, H, W, C] and labels int64 [M] of all of it,
    indices int64 [N] of the N. Whoever takes it gathers them."""

    images: Tensor
    labels: Tensor
    indices: Tensor

    def targets(self) -> Tensor:
        return self.labels[self.indices]

    def changing(self) -> tuple[str, ...]:
        """The fields that are other tensors in each batch: the split stays."""
        return ("indices",)

    def clone(self) -> SplitView:
        return self._replace(indices=self.indices.clone())


#: What a loader's `feed` yields, and the step takes. N is ``len(batch.indices)`` of each.
AnyBatch: TypeAlias = Batch | SplitView
