"""Gradients averaged over the ranks while the backward pass still computes others.

torch's DistributedDataParallel does the same; this is a class of our own because a captured step then needs none of
its conditions (a side stream, eleven eager steps, no error handling of NCCL's), and because the running statistics of
BatchNorm go along: after each step the whole state is the same on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fast_train.pipeline.ranks import Ranks, Waiting

# Bytes of a message: as in torch's DistributedDataParallel. The first one is small, so that it leaves early.
FIRST_BYTES, BYTES = 1 << 20, 25 << 20


class _Bucket:
    """Parameters whose gradients go as one message. buffers: what is averaged besides."""

    def __init__(self, parameters: list[nn.Parameter], buffers: list[Tensor]) -> None:
        self.parameters, self.buffers = parameters, buffers
        tensors = [*parameters, *buffers]
        #: float32 [n], what is sent.
        self.flat = torch.zeros(sum(t.numel() for t in tensors), device=tensors[0].device)
        parts = self.flat.split([t.numel() for t in tensors])
        # In the memory format of each tensor, so that the optimizer's fused kernels take them.
        views = [
            part.as_strided(t.shape, t.stride(), part.storage_offset()) for part, t in zip(parts, tensors, strict=True)
        ]
        self.gradients, self.averages = views[: len(parameters)], views[len(parameters) :]
        self.missing = len(parameters)
        self.sent: Waiting | None = None


class MeanOverRanks:
    """Averages what each rank's backward pass computes, in place of the gradients: call `finish` after it.

    model: of float32 parameters, each of which gets a gradient in every step, but for those that want none. Parts that
    are not in training mode keep their statistics. Messages leave in one order on all ranks.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self._ranks = ranks
        self._buckets: list[_Bucket] = []
        trained = (b for module in model.modules() if module.training for b in module.buffers(recurse=False))
        statistics = [b for b in trained if b.is_floating_point()]
        # The backward pass comes to the last layers first.
        waiting: list[nn.Parameter] = []
        wanted = [p for p in model.parameters() if p.requires_grad][::-1]
        for parameter in wanted:
            waiting.append(parameter)
            most = BYTES if self._buckets else FIRST_BYTES
            if sum(p.numel() * p.element_size() for p in waiting) >= most or parameter is wanted[-1]:
                # All statistics are known before the first gradient.
                self._buckets.append(_Bucket(waiting, [] if self._buckets else statistics))
                waiting = []
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(self._hook(bucket))

    def _hook(self, bucket: _Bucket) -> Callable[[Tensor], None]:
        def ready(parameter: Tensor) -> None:
            bucket.missing -= 1
            if bucket.missing == 0:
                self._send_what_is_ready()

        return ready

    @torch.no_grad()
    def _send_what_is_ready(self) -> None:
        for bucket in self._buckets:
            if bucket.missing:
                return
            if bucket.sent is None:
                own: list[Any] = [p.grad for p in bucket.parameters]
                torch._foreach_copy_([*bucket.gradients, *bucket.averages], [*own, *bucket.buffers])
                # Before the sum: it can't overflow where the mean does not.
                bucket.flat.mul_(1 / self._ranks.size)
                bucket.sent = self._ranks.start_sum(bucket.flat)

    @torch.no_grad()
    def finish(self) -> None:
        """Put the means in the place of the gradients, and of BatchNorm's running statistics."""
        for bucket in self._buckets:
            if bucket.sent is None:
                raise RuntimeError(f"{bucket.missing} parameters got no gradient in this step")
            bucket.sent.wait()
            for parameter, mean in zip(bucket.parameters, bucket.gradients, strict=True):
                parameter.grad = mean
            if bucket.buffers:
                torch._foreach_copy_(bucket.buffers, bucket.averages)
            bucket.missing, bucket.sent = len(bucket.parameters), None
