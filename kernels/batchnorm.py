"""Training-mode BatchNorm fused with what follows it: an optional residual addition and an optional ReLU.

``y = relu(z)``, ``z = (x - mean) / sqrt(var + eps) * weight + bias + residual``, with the batch's mean and var (Ioffe
and Szegedy 2015, algorithm 1), computed in float32 and rounded once. The Triton kernels pass over an activation's
memory this often (a residual block's output serves the next convolution and the next shortcut, so it has two
gradients; dz is the gradient before the ReLU):

| | reads | writes |
| --- | --- | --- |
| forward, statistics | x | |
| forward, result | x, residual if any | y, bits if residual and ReLU |
| backward, sums; neither residual nor second gradient | dy, x | |
| backward, dx | dy, x | dx |
| backward, sums; otherwise | dy, second dy if any, x, bits if residual and ReLU | dz |
| backward, dx | dz, x | dx |

A residual whose own norm is applied with it (a projection's) costs one more pass forward, for its statistics, and three
backward: its x twice, its dx. By itself that norm would make 8.

So 8 without and 10 with a residual, one or two more for a second gradient. Where the ReLU passed, the sign of y tells:
y is computed once more, or with a residual read from a bit a value (1/16 of a pass in bfloat16). dz is the residual's
gradient too.
"""

from __future__ import annotations

from torch import Tensor

from fast_train.kernels.batchnorm_reference import Unnormalised, batch_norm_reference
from fast_train.kernels.checks import check_activation, check_channels

# Triton is imported where it runs: not every build of torch brings it, and it takes a while.


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    residual: Tensor | Unnormalised | None = None,
    relu: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise by the batch's statistics, add ``residual`` if there is one, apply ReLU if ``relu``; differentiable.

    x: float32, bfloat16 or float16 [N, C, H, W], best in channels_last memory; residual: the same shape and type, or
    such an activation whose own norm is applied first.
    weight, bias: float32 [C]. running_mean, running_var: float32 [C], moved towards the batch's mean and unbiased
    variance by the share ``momentum``, in place, as torch.nn.functional.batch_norm does.

    Returns [N, C, H, W] of x's type. Raises ValueError on shapes, types or devices that don't fit, and where a channel
    has only one value. Triton runs it on CUDA devices, PyTorch elsewhere; both sum in a fixed order, so that a result
    repeats bit for bit.
    """
    arguments = (x, weight, bias, running_mean, running_var, residual)
    _check_inputs(*arguments)
    if x.is_cuda:
        from fast_train.kernels.batchnorm_triton import batch_norm_triton

        return batch_norm_triton(*arguments, relu=relu, momentum=momentum, eps=eps)
    return batch_norm_reference(*arguments, relu=relu, momentum=momentum, eps=eps)


def batch_norm_twice(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    residual: Tensor | Unnormalised | None = None,
    relu: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """`batch_norm`, its result under two names for two uses.

    The gradients of the two uses then reach the kernel separately, and it adds them while it reads. With one name,
    PyTorch would add them in a pass of its own (two reads and a write of the whole activation). Neither may be changed
    in place.
    """
    arguments = (x, weight, bias, running_mean, running_var, residual)
    _check_inputs(*arguments)
    if x.is_cuda:
        from fast_train.kernels.batchnorm_triton import batch_norm_twice_triton

        return batch_norm_twice_triton(*arguments, relu=relu, momentum=momentum, eps=eps)
    y = batch_norm_reference(*arguments, relu=relu, momentum=momentum, eps=eps)
    return y, y


def _check_inputs(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    residual: Tensor | Unnormalised | None,
) -> None:
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    if isinstance(residual, Unnormalised):
        vectors |= {f"residual.{name}": getattr(residual, name) for name in vectors}
        residual = residual.x
    check_activation(x, residual)
    check_channels(x.shape[1], x.device, **vectors)
