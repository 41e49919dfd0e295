"""BatchNorm by the statistics of the whole batch, of which each rank has a part.

torch.nn.SyncBatchNorm does not serve: it has no code for a CPU, and outside of a capture it drops empty parts by a mask
whose count the host waits for; torch.compile may keep that way for the captured step, which it would break.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from fast_train.pipeline.ranks import current

M = TypeVar("M", bound=nn.Module)


def synchronised(model: M) -> M:
    """``model`` with its BatchNorms, on their device, replaced by ones that share their statistics, of the same
    parameters and names; as it is where this process is no rank."""
    if not current().joined:
        return model
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, _SharedNorm(child))
    return model


class _SharedNorm(nn.BatchNorm2d):
    def __init__(self, plain: nn.BatchNorm2d) -> None:
        super().__init__(plain.num_features, eps=plain.eps, momentum=plain.momentum, affine=False)
        self.weight, self.bias = plain.weight, plain.bias
        for name, value in plain.named_buffers(recurse=False):
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, C, H, W], of as many numbers in each rank."""
        if not self.training:
            return super().forward(x)
        values = x.float()
        own = torch.stack([values.mean(dim=(0, 2, 3)), values.var(dim=(0, 2, 3), unbiased=False)])
        # [R, 2, C]: the variance of the whole is the mean of the variances, and that of the means besides.
        means, variances = _rows(own).unbind(dim=1)
        mean, variance = means.mean(dim=0), variances.mean(dim=0) + means.var(dim=0, unbiased=False)
        self._follow(mean.detach(), variance.detach(), count=values.numel() // len(mean) * len(means))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, *, count: int) -> None:
        """Move the running statistics by one more batch. count: of its numbers in a channel."""
        momentum = cast(float, self.momentum)
        cast(Tensor, self.num_batches_tracked).add_(1)
        cast(Tensor, self.running_mean).lerp_(mean, momentum)
        cast(Tensor, self.running_var).lerp_(variance * (count / max(count - 1, 1)), momentum)


@torch.compiler.disable
def _rows(own: Tensor) -> Tensor:
    """What each rank has, [R, ...]."""
    return cast(Tensor, _Rows.apply(own))


class _Rows(torch.autograd.Function):
    """All ranks get what each has; so each one's gradient is summed over all."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return current().gather(own)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return current().sum(gradients[0])[current().rank]
