"""Muon: filters move by the orthogonal matrix next to their momentum.

Source: Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein 2024, "Muon: an optimizer for hidden layers in neural
networks", kellerjordan.github.io/posts/muon, in the form of its first use on CIFAR-10, where the norm of each filter
bank is fixed.

torch.optim.Muon does not serve: it takes 2-D matrices only, and these are 4-D filters; it fixes no norms; it works on
one matrix at a time, where those of one shape go as one batch here; and with a gradient scaler the host waits to hear
whether a gradient is infinite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from fast_train.pipeline.device import computes_bf16
from fast_train.pipeline.ranks import current

# The coefficients a x + b x^3 + c x^5 of the post: steep at zero, so that small singular values grow in few iterations,
# while those of about 1 stay near 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_EPSILON = 1e-7
Tensors: TypeAlias = list[Tensor] | tuple[Tensor, ...]


def orthogonalise(matrices: Tensor, iterations: int) -> Tensor:
    """U V^T of each matrix U S V^T, roughly: the singular values come out between about 0.7 and 1.2.

    matrices: [B, M, N], of a floating-point type. The result has their shape. Its type is that of the computation:
    bfloat16 on CUDA devices with tensor cores for it (exact enough, and fastest), float32 elsewhere. The Newton-Schulz
    iteration works on the smaller side.
    """
    fast = matrices.is_cuda and computes_bf16(matrices.device)
    x = matrices.to(torch.bfloat16 if fast else torch.float32)
    # The products x x^T are then [B, m, m] with m the smaller side.
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + _EPSILON)
    for _ in range(iterations):
        square = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(square, square, square, beta=_B, alpha=_C)
        x = torch.baddbmm(x, polynomial, x, beta=_A)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for groups with ``muon``, which hold filters [out, in, height, width]; fused SGD for the others.

    A step of Muon takes the momentum (with Nesterov, one step ahead) as a matrix [out, in * height * width] and
    orthogonalises it. It scales the filters to the Frobenius norm sqrt(out), which is the direction's too, and moves
    them by ``lr`` times the direction. So ``lr`` is an angle, and weight decay has no meaning.

    groups: each with params, lr (a 0-D tensor on the device), momentum, nesterov, weight_decay (for SGD), muon, and the
    iterations of Muon. The momentum buffers exist from the start. The host waits for nothing: where a gradient scaler
    found infinities, the device decides that the step changes nothing.
    """

    # torch.amp.GradScaler then sets grad_scale and found_inf as tensors, and does not wait for their values.
    _step_supports_amp_scaling = True

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        super().__init__(groups, {})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # none that evaluates the loss again
        del closure
        scale, skip = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in parameters]
            momenta = [self.state[p]["momentum_buffer"] for p in parameters]
            if not parameters:
                continue
            if group["muon"]:
                _step_filters(group, parameters, gradients, momenta, scale, skip)
            else:
                sgd(
                    parameters, gradients, momenta, fused=True, grad_scale=scale, found_inf=skip, maximize=False,
                    lr=group["lr"], momentum=group["momentum"], nesterov=group["nesterov"], dampening=0.0,
                    weight_decay=group["weight_decay"],
                )  # fmt: skip


def _step_filters(
    group: dict[str, Any],
    filters: Tensors,
    gradients: Tensors,
    momenta: Tensors,
    scale: Tensor | None,
    skip: Tensor | None,
) -> None:
    before = [] if skip is None else [(t, t.clone()) for t in (*filters, *momenta)]
    if scale is not None:
        gradients = torch._foreach_div(gradients, scale)
    torch._foreach_mul_(momenta, group["momentum"])
    torch._foreach_add_(momenta, gradients)
    directions = momenta
    if group["nesterov"]:
        directions = torch._foreach_add(gradients, momenta, alpha=group["momentum"])
    norms = torch._foreach_norm(filters)
    # Filters of zeros have no direction to be scaled along.
    torch._foreach_clamp_min_(norms, _EPSILON)
    torch._foreach_reciprocal_(norms)
    torch._foreach_mul_(norms, [len(f) ** 0.5 for f in filters])
    torch._foreach_mul_(filters, norms)
    updates = (_shared_out if current().size > 1 else _orthogonal)(directions, group["iterations"])
    torch._foreach_mul_(updates, group["lr"])
    torch._foreach_sub_(filters, updates)
    if skip is not None:
        for tensor, value in before:
            tensor.copy_(torch.where(skip.bool(), value, tensor))


def _shared_out(directions: Tensors, iterations: int) -> list[Tensor]:
    """As `_orthogonal`, where each rank does its share of the directions, which are the same on all, and all get the
    whole."""
    ranks = current()
    shares: list[list[int]] = [[] for _ in range(ranks.size)]
    loads, sizes = [0.0] * ranks.size, [0] * ranks.size
    # The longest work first, each to the rank that has least.
    for number in sorted(range(len(directions)), key=lambda n: (-_work(directions[n]), n)):
        rank = loads.index(min(loads))
        shares[rank].append(number)
        loads[rank] += _work(directions[number])
        sizes[rank] += directions[number].numel()
    own = directions[0].new_zeros(max(sizes))
    if shares[ranks.rank]:
        done = _orthogonal([directions[n] for n in shares[ranks.rank]], iterations)
        own[: sizes[ranks.rank]] = torch.cat([update.permute(0, 2, 3, 1).flatten() for update in done])
    updates = list(directions)
    for share, row, size in zip(shares, ranks.gather(own).unbind(), sizes, strict=True):
        for n, update in zip(share, row[:size].split([directions[n].numel() for n in share]), strict=True):
            outputs, inputs, height, width = directions[n].shape
            updates[n] = update.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
    return updates


def _work(direction: Tensor) -> float:
    """What it takes to orthogonalise, in proportion: its size times its smaller side."""
    return float(direction.numel() * min(len(direction), direction[0].numel()))


def _orthogonal(directions: Tensors, iterations: int) -> list[Tensor]:
    """Each direction [O, I, H, W] orthogonalised, in its own type; those of one shape go as one batch."""
    batches: dict[torch.Size, list[int]] = {}
    for number, direction in enumerate(directions):
        batches.setdefault(direction.shape, []).append(number)
    updates = list(directions)
    for (outputs, inputs, height, width), numbers in batches.items():
        # [out, height, width, in] is the order of channels_last memory, so this is a view. The columns of the result
        # come in the order of these.
        batch = torch.stack([directions[n].permute(0, 2, 3, 1).reshape(outputs, -1) for n in numbers])
        results = orthogonalise(batch, iterations).to(batch.dtype).view(-1, outputs, height, width, inputs)
        for n, result in zip(numbers, results.permute(0, 1, 4, 2, 3).unbind(), strict=True):
            updates[n] = result
    return updates
