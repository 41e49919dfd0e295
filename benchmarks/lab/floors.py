"""The least time that each layer of a step can take: its operations at the matrix rate, its bytes at the copy's rate.

Computed from shapes, not measured. A convolution reads and writes each of its tensors once; a BatchNorm, with the
addition and the ReLU after it, makes the passes of `kernels.batchnorm`. Parameters' gradients are written, and
nothing is left in a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fast_train.pipeline.config.settings import ModelConfig
from fast_train.pipeline.models import build_model
from fast_train.pipeline.models.fused import FusedNorm

CONVOLUTION, NORM = "convolution", "norm"
FORWARD, BACKWARD = "forward", "backward"
DATA_GRADIENT, WEIGHT_GRADIENT = "data gradient", "weight gradient"
# So that a channel has more than one value even where an image has shrunk to one pixel.
_TRACED_IMAGES = 2


@dataclass(frozen=True, kw_only=True)
class Part:
    """One direction of one layer. shape: of its output, [C, H, W]. flops, bytes: of an image; a multiply-add counts as
    two. fixed_bytes: of a step, whatever the batch: weights."""

    layer: str
    kind: str
    what: str
    shape: tuple[int, ...]
    flops: float
    bytes: float
    fixed_bytes: float = 0.0

    def seconds(self, batch: int, *, copy: float, matrix: float) -> float:
        """The least time of a batch, where ``copy`` bytes and ``matrix`` operations a second are the limits."""
        return max(self.limits(batch, copy=copy, matrix=matrix))

    def limits(self, batch: int, *, copy: float, matrix: float) -> tuple[float, float]:
        """Seconds that its operations take, and that its bytes take."""
        return batch * self.flops / matrix, self.moved(batch) / copy

    def moved(self, batch: int) -> float:
        return batch * self.bytes + self.fixed_bytes


def norm_passes(*, residual: bool, relu: bool, twice: bool, later: bool, itemsize: int) -> tuple[float, float]:
    """Passes over an activation's memory, (forward, backward), of `kernels.batchnorm`; its table says which."""
    if later:
        return 1, 3
    bits = 1 / (8 * itemsize) if residual and relu else 0.0
    return 3 + residual + bits, 6 + twice + bits if twice or bits else 5


def parts(config: ModelConfig, itemsize: int) -> list[Part]:
    """Every convolution's and norm's directions, in the order of the forward pass. itemsize: bytes of a value.

    The network is the one with the fused norm; ValueError where there is none (another activation than ReLU).
    """
    model, images = on_meta(config)
    found: list[Part] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(_convolution_hook(name, itemsize, found))
        elif isinstance(module, FusedNorm):
            module.register_forward_hook(_norm_hook(name, itemsize, found), with_kwargs=True)
    model(images)
    return found


def on_meta(config: ModelConfig) -> tuple[nn.Module, Tensor]:
    """A network with the fused norm, in training, and images for it, without memory or work: for hooks."""
    shape = (_TRACED_IMAGES, config.in_channels, config.image_size, config.image_size)
    return build_model(config, fuse="norm").train().to("meta"), torch.empty(shape, device="meta")


def _convolution_hook(name: str, itemsize: int, found: list[Part]) -> Callable[..., None]:
    def hook(module: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        pixels_in, pixels_out = inputs[0][0].numel(), output[0].numel()
        flops = 2.0 * pixels_out * module.weight[0].numel()
        moved, fixed = float(itemsize * (pixels_in + pixels_out)), float(itemsize * module.weight.numel())
        # The first layer's input is data: it has no gradient.
        directions = [FORWARD, *([DATA_GRADIENT] if inputs[0].requires_grad else []), WEIGHT_GRADIENT]
        found.extend(
            Part(
                layer=name,
                kind=CONVOLUTION,
                what=what,
                shape=tuple(output.shape[1:]),
                flops=flops,
                bytes=moved,
                fixed_bytes=fixed,
            )
            for what in directions
        )

    return hook


def _norm_hook(name: str, itemsize: int, found: list[Part]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any], output: Any) -> None:
        residual = len(inputs) > 1
        flags = {name: options.get(name, False) for name in ("relu", "twice", "later")}
        passes = norm_passes(residual=residual, itemsize=itemsize, **flags)
        shape, size = tuple(inputs[0].shape[1:]), itemsize * inputs[0][0].numel()
        for what, count in zip((FORWARD, BACKWARD), passes, strict=True):
            found.append(Part(layer=name, kind=NORM, what=what, shape=shape, flops=0.0, bytes=float(count * size)))

    return hook


def groups(found: Iterable[Part], batch: int, *, copy: float, matrix: float) -> dict[str, float]:
    """Seconds of a step's floors, by kind and direction, such as ``convolution, forward``."""
    sums: dict[str, float] = {}
    for part in found:
        name = f"{part.kind}, {part.what}"
        sums[name] = sums.get(name, 0.0) + part.seconds(batch, copy=copy, matrix=matrix)
    return sums


def describe(found: Iterable[Part], batch: int, *, copy: float, matrix: float) -> list[dict[str, Any]]:
    """A record for each part, in JSON's types: what it does for a batch, its floor, and which limit that is."""
    records = []
    for part in found:
        by_flops, by_bytes = part.limits(batch, copy=copy, matrix=matrix)
        records.append(
            {
                "layer": part.layer,
                "kind": part.kind,
                "what": part.what,
                "shape": list(part.shape),
                "flops": batch * part.flops,
                "bytes": part.moved(batch),
                "floor_seconds": max(by_flops, by_bytes),
                "bound": "operations" if by_flops > by_bytes else "bytes",
            }
        )
    return records
