"""What flows from a loader to the step: one type for each way in which images lie in memory."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from fast_train.kernels.resized_crop import Ragged

#: Of images that keep their own shapes.
CHANNELS = 3


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

    def images_at(self, rows: Tensor) -> list[Tensor]:
        """Single images [H, W, C]. rows: int64 [n], from 0 to N - 1."""
        return list(self.images[rows])

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

    def gather(self) -> Batch:
        return Batch(self.images[self.indices], self.targets(), self.indices)


class RaggedBatch(NamedTuple):
    """N images of their own shapes. data: uint8, at least their pixels; offsets int64 [N], where in it the pixels
    [H, W, 3] of each begin; heights, widths int32 [N]; labels int64 [N]; indices int64 [N].

    On a CUDA device the training batches of a loader have ``data`` of one length.
    """

    data: Tensor
    offsets: Tensor
    heights: Tensor
    widths: Tensor
    labels: Tensor
    indices: Tensor

    def pixels(self) -> Ragged:
        """What `kernels.resized_crop` takes."""
        return Ragged(self.data, self.offsets, self.heights, self.widths)

    def images_at(self, rows: Tensor) -> list[Tensor]:
        """Single images uint8 [H, W, 3], views. rows: int64 [n], from 0 to N - 1."""
        shapes = zip(*(column[rows].tolist() for column in (self.offsets, self.heights, self.widths)), strict=True)
        return [self.data[at : at + 3 * height * width].view(height, width, 3) for at, height, width in shapes]

    def targets(self) -> Tensor:
        """The labels of the batch, int64 [N]."""
        return self.labels

    def changing(self) -> tuple[str, ...]:
        return self._fields

    def clone(self) -> RaggedBatch:
        return RaggedBatch(*(tensor.clone() for tensor in self))

    def to(self, device: torch.device, length: int | None = None) -> RaggedBatch:
        """On a device, without waiting. length: of ``data`` there, which may be more than its bytes; None for these."""
        if device == self.data.device:
            return self
        data = torch.empty(length or len(self.data), dtype=torch.uint8, device=device)
        data[: len(self.data)].copy_(self.data, non_blocking=True)
        return RaggedBatch(data, *(tensor.to(device, non_blocking=True) for tensor in self[1:]))


class RaggedView(NamedTuple):
    """N images of a split whose pixels lie in memory whole: as `RaggedBatch`, but data, offsets, heights, widths and
    labels are those of all M images, and indices int64 [N] say which. Whoever takes it gathers them.

    ``data`` may be page-locked memory of the host, which a kernel on the device reads.
    """

    data: Tensor
    offsets: Tensor
    heights: Tensor
    widths: Tensor
    labels: Tensor
    indices: Tensor

    def pixels(self) -> Ragged:
        """What `kernels.resized_crop` takes, to gather from."""
        return Ragged(self.data, self.offsets, self.heights, self.widths)

    def targets(self) -> Tensor:
        return self.labels[self.indices]

    def changing(self) -> tuple[str, ...]:
        """The fields that are other tensors in each batch: the split stays."""
        return ("indices",)

    def clone(self) -> RaggedView:
        return self._replace(indices=self.indices.clone())

    def gather(self, length: int | None = None) -> RaggedBatch:
        """The N images alone. length: of their ``data``, which may be more than they need; None for just that."""
        heights, widths = self.heights[self.indices], self.widths[self.indices]
        sizes = CHANNELS * heights.long() * widths
        offsets = begins(sizes)
        data = torch.empty(length or int(sizes.sum()), dtype=torch.uint8, device=self.data.device)
        parts = (column.tolist() for column in (self.offsets[self.indices], offsets, sizes))
        for source, target, size in zip(*parts, strict=True):
            data[target : target + size] = self.data[source : source + size]
        return RaggedBatch(data, offsets, heights, widths, self.targets(), self.indices)


def begins(sizes: Tensor) -> Tensor:
    """Where parts of ``sizes`` bytes, int64 [N], begin that lie one after the other: int64 [N]."""
    return sizes.cumsum(0) - sizes


#: What a loader's `feed` yields, and the step takes. N is ``len(batch.indices)`` of each.
AnyBatch: TypeAlias = Batch | SplitView | RaggedBatch | RaggedView
#: What iterating over it yields.
OwnBatch: TypeAlias = Batch | RaggedBatch
