"""Batches from host memory to the device, beside the step."""

from __future__ import annotations

import torch

from fast_train.pipeline.loaders.batch import Batch

_DEPTH = 4


class DeviceRing:
    """A ring of device buffers, filled on a stream of its own while the step works on the batches before.

    example: a batch on the device, of the largest shape that will be sent.
    """

    def __init__(self, example: Batch, device: torch.device) -> None:
        self._device = device
        self._slots = [Batch(*(torch.empty_like(tensor) for tensor in example)) for _ in range(_DEPTH)]
        self._stream = torch.cuda.Stream(device)
        # The slots may lie in memory that work queued before still uses.
        self._stream.wait_stream(torch.cuda.current_stream(device))
        # _read[i] is recorded when all work that reads slot i is queued, _copied when the last copy is queued.
        self._read = [torch.cuda.Event() for _ in range(_DEPTH)]
        self._copied = torch.cuda.Event()
        self._sent = 0

    def send(self, batch: Batch) -> Batch:
        """Copy a batch in page-locked host memory; the device's copy is valid until the next one is sent.

        Neither the host nor the step waits, unless the batch that was in this slot is still in use.
        """
        current = torch.cuda.current_stream(self._device)
        # The caller has queued all its work on the batch before.
        self._read[(self._sent - 1) % _DEPTH].record(current)
        number = self._sent % _DEPTH
        slot = Batch(*(tensor[: len(batch.labels)] for tensor in self._slots[number]))
        self._stream.wait_event(self._read[number])
        with torch.cuda.stream(self._stream):
            for target, source in zip(slot, batch, strict=True):
                target.copy_(source, non_blocking=True)
            self._copied.record(self._stream)
        current.wait_event(self._copied)
        self._sent += 1
        return slot

    def wait(self) -> None:
        """Return when the batch that was sent last has left host memory."""
        self._copied.synchronize()
