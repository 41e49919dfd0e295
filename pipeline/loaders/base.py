"""What every loader is: batches of raw bytes, in an order that is a pure function of (seed, epoch)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from data_prep.manifest import PreparedSet
from kernels.order import epoch_order


class Batch(NamedTuple):
    """images uint8 [N, H, W, C]; labels int64 [N]; indices int64 [N], the images' numbers in their split."""

    images: Tensor
    labels: Tensor
    indices: Tensor


class Loader(ABC):
    """Batches of one split of a prepared set, on ``device``.

    Training (``train=True``) goes through the epoch's permutation in batches of one fixed size; what is left of
    the permutation behind the last whole batch is not used in that epoch. Otherwise every image comes exactly
    once, in the order of the file, and the last batch may be smaller.

    Iterating starts at the epoch's first batch, or, once, where `load_state_dict` put it. Raises ValueError for a
    training split smaller than one batch.
    """

    #: The files it reads, as `prep-data --formats` calls them.
    format: ClassVar[str] = "packed"
    #: True: a batch from `feed` holds the whole split, to be gathered by its indices on the device.
    gathers: ClassVar[bool] = False
    #: True: a batch from `feed` is overwritten when the next one is asked for; iterating gives copies.
    reuses_buffers: ClassVar[bool] = False

    def __init__(
        self,
        prepared: PreparedSet,
        split: str,
        *,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        train: bool = True,
        workers: int | None = None,
    ) -> None:
        self.prepared, self.split, self.seed, self.train = prepared, split, seed, train
        self.batch_size, self.workers, self.device = batch_size, workers, torch.device(device)
        self.count = prepared.size(split)
        self.epoch = 0
        self._position = 0
        self._resume_at = 0
        if train and self.count < batch_size:
            raise ValueError(
                f"split '{split}' of {prepared.root} holds {self.count} images, fewer than one batch of "
                f"{batch_size}; give a smaller batch size"
            )

    @classmethod
    def missing(cls) -> str | None:
        """What it lacks to run here and how to install that, in one line; None where it can run."""
        return None

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.count // self.batch_size if self.train else -(-self.count // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation come next, from its first batch."""
        self.epoch, self._position, self._resume_at = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: the epoch and how many of its batches it has given out."""
        return {"epoch": self.epoch, "step": self._position, "seed": self.seed, "batch_size": self.batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind the last batch that was given out; ValueError if seed or batch size differ."""
        for name in ("seed", "batch_size"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the loader's state has {name} {state[name]}, this run {getattr(self, name)}; resume with "
                    f"the same {name}"
                )
        self.set_epoch(state["epoch"])
        self._position = self._resume_at = state["step"]

    def __iter__(self) -> Iterator[Batch]:
        batches = self._next_batches()
        if not self.reuses_buffers:
            return batches
        return (Batch(*(tensor.clone() for tensor in batch)) for batch in batches)

    def feed(self) -> Iterator[Batch]:
        """As `__iter__`, but as cheap for the step as the loader can: see `gathers` and `reuses_buffers`."""
        return self._next_batches()

    def _next_batches(self) -> Iterator[Batch]:
        start, self._resume_at = self._resume_at, 0
        return self._counted(self._batches(start), start)

    def example(self) -> Batch:
        """A batch of the shapes that `feed` gives in training, to warm up with; it uses up nothing of the order."""
        indices = torch.arange(self.batch_size, device=self.device)
        shape = (self.batch_size, *self.prepared.manifest.image_shape)
        images = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        return Batch(images, torch.zeros_like(indices), indices)

    def close(self) -> None:  # noqa: B027  # a loader that holds nothing inherits this
        """Release processes, threads and files; closing twice is fine."""

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def order(self, device: torch.device | str = "cpu") -> Tensor:
        """The epoch's order, int64: for training a permutation cut to whole batches."""
        if not self.train:
            return torch.arange(self.count, device=device)
        order = epoch_order(self.count, seed=self.seed, epoch=self.epoch, device=device)
        return order[: len(self) * self.batch_size]

    def index_batches(self, start: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
        """The indices of each batch from number ``start`` on, int64 [N]."""
        order = self.order(device)
        for first in range(start * self.batch_size, len(order), self.batch_size):
            yield order[first : first + self.batch_size]

    def _counted(self, batches: Iterator[Batch], start: int) -> Iterator[Batch]:
        self._position = start
        for batch in batches:
            # Before the batch is given out: a state saved while it is in use continues behind it.
            self._position += 1
            yield batch

    @abstractmethod
    def _batches(self, start: int) -> Iterator[Batch]:
        """The epoch's batches from number ``start`` on."""
