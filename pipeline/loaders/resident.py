"""The whole split as bytes in device memory: a batch is a row of indices, gathered inside the step's kernel."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from fast_train.data_prep.manifest import PreparedSet
from fast_train.kernels.order import epoch_order
from fast_train.pipeline.loaders.base import Loader, LoaderOptions
from fast_train.pipeline.loaders.batch import AnyBatch, Batch, SplitView

# An epoch that no training comes to: its order decides which part of the split is whose.
_OF_THE_PARTS = 2**31 - 1


class ResidentLoader(Loader):
    """CIFAR-10's training split takes 154 MB; larger sets need as much device memory as they have bytes.

    With ``shard`` each rank holds its part of the training split, the same in every epoch, and draws its part of a
    batch from that: another order than on one rank, and as random within each part.
    """

    def __init__(self, prepared: PreparedSet, split: str, options: LoaderOptions) -> None:
        super().__init__(prepared, split, options)
        packed = prepared.packed(split)
        images, labels = packed.images, packed.labels
        #: Of the images that are here, their numbers in the split; None for all of it.
        self._numbers: Tensor | None = None
        if self.shards > 1:
            mine = epoch_order(self.count, seed=self.seed, epoch=_OF_THE_PARTS)[self.rank :: self.shards]
            mine = mine[: self.count // self.shards].sort().values
            images, labels, self._numbers = images[mine.numpy()], labels[mine.numpy()], mine.to(self.device)
        check_fits(images.nbytes, f"split '{split}' of {prepared.root}", self.device)
        # Copies: a mapped file must not back a tensor that outlives it or that someone writes to.
        self._images: Tensor | None = torch.tensor(images, device=self.device)
        self._labels: Tensor | None = torch.tensor(labels, device=self.device)

    def _split(self) -> tuple[Tensor, Tensor]:
        if self._images is None or self._labels is None:
            raise self._closed()
        return self._images, self._labels

    def _batches(self, start: int) -> Generator[Batch]:
        for view in self._views(start):
            numbers = view.indices if self._numbers is None else self._numbers[view.indices]
            yield Batch(view.images[view.indices], view.targets(), numbers)

    def _views(self, start: int) -> Generator[SplitView]:
        """Of the images that are here."""
        images, labels = self._split()
        for indices in self._places(start):
            yield SplitView(images, labels, indices)

    def _places(self, start: int) -> Iterator[Tensor]:
        """Where the images of each batch lie, int64 [N]."""
        if self._numbers is None:
            return self.index_batches(start, self.device)
        order = epoch_order(len(self._numbers), seed=self.seed, epoch=self.epoch, device=self.device)
        return iter(order[: len(self) * self.batch_size].split(self.batch_size)[start:])

    def feed(self) -> Iterator[AnyBatch]:
        # The draws of augmentation go by the numbers in the split, which a view of a part of it does not have.
        return self._begin_pass(self._views) if self._numbers is None else super().feed()

    def example(self) -> AnyBatch:
        """As `feed` gives it: the whole split with the first indices of the file, or a batch of a part of it."""
        if self._numbers is not None:
            return super().example()
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
