"""Convolutions with a BatchNorm's sums inside, layer by layer; `benchmarks.lab.convolutions` says what is measured."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from fast_train.benchmarks.instrument.statistics import bootstrap_ratio, estimate, spread
from fast_train.benchmarks.instrument.timing import FAILURES, Case, Rate, captured, interleave, timed
from fast_train.benchmarks.lab.floors import on_meta
from fast_train.common.text import one_line
from fast_train.kernels.convolution_reference import Raw
from fast_train.kernels.convolution_triton import norm_relu_convolution_triton, with_statistics_triton
from fast_train.kernels.tiling import Tile, Tiles, fit
from fast_train.pipeline.config.settings import ModelConfig

if TYPE_CHECKING:
    from fast_train.benchmarks.lab.convolutions import Flags

CUDNN = "cuDNN and sums"
_REPEATS, _SECONDS = 5, 0.15
#: (rows, depth, warps, stages); columns are the layer's own, at most 128.
_CANDIDATES = ((128, 64, 4, 3), (128, 64, 4, 4), (128, 64, 8, 3), (256, 64, 8, 3), (128, 32, 4, 4))
# As a part of the largest value: sums of some hundred terms in bfloat16, whose steps are 2^-8.
_TOLERANCE = 3e-2


class Layer(NamedTuple):
    """A convolution: channels in and out, filter, stride, side of the image that it reads."""

    depth: int
    columns: int
    size: int
    stride: int
    side: int

    def describe(self) -> str:
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{self.depth} to {self.columns} channels, {self.size}x{self.size}{stride} on {self.side}x{self.side}"


def layers(arch: str) -> Counter[Layer]:
    """The convolutions inside a network's blocks, and how often it has each."""
    model, images = on_meta(ModelConfig(arch=arch))
    found: Counter[Layer] = Counter()

    def note(module: nn.Conv2d, inputs: tuple[Tensor], _: Tensor) -> None:
        found[Layer(module.in_channels, module.out_channels, module.kernel_size[0], module.stride[0],
                    inputs[0].shape[-1])] += 1  # fmt: skip

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and ".conv" in name:
            module.register_forward_hook(note)
    model(images)
    return found


def tiles(layer: Layer) -> dict[str, Tiles | None]:
    """What is tried for a layer, by name."""
    found: dict[str, Tiles | None] = {CUDNN: None}
    for rows, depth, warps, stages in _CANDIDATES:
        tile = Tile(rows, 128, depth, warps, stages)
        chosen = Tiles(fit(tile, layer.columns, layer.depth), fit(tile, layer.depth, layer.columns))
        name = f"{rows} x {chosen.forward.block_n} x {chosen.forward.block_k} / {warps} / {stages}"
        found[name] = chosen
    return found


class Work:
    """One layer on a fixed batch of random numbers. Computes with any tiles, in calls that a CUDA graph can capture."""

    def __init__(self, layer: Layer, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        self.stride = layer.stride
        shape = (batch, layer.depth, layer.side, layer.side)
        self.x, self.residual = (
            normal(*shape).to(dtype, memory_format=torch.channels_last).requires_grad_() for _ in range(2)
        )
        fan_in = layer.depth * layer.size**2
        filters = normal(layer.columns, layer.depth, layer.size, layer.size) * (2 / fan_in) ** 0.5
        self.filters = filters.to(dtype, memory_format=torch.channels_last).requires_grad_()
        self.weight, self.bias = (normal(layer.depth).requires_grad_() for _ in range(2))
        self.running = [torch.zeros(channels, device=device) for channels in [layer.depth] * 2 + [layer.columns] * 2]
        with torch.no_grad():
            out, read = self._layer(None)
        # In the memory format that training's gradients have: another one would be copied within the time.
        self.gradients = [
            normal(*like.shape).to(like.dtype, memory_format=torch.channels_last) for like in (out.x, read)
        ]

    def _layer(self, tiles: Tiles | None) -> tuple[Raw, Tensor]:
        """The layer as the first of a residual block: a residual before it, a shortcut beside it."""
        momentum, eps = 0.1, 1e-5
        mean_before, var_before, mean_after, var_after = self.running
        raw = with_statistics_triton(self.x, mean_before, var_before, momentum=momentum, eps=eps)
        out, read = norm_relu_convolution_triton(
            raw, self.weight, self.bias, self.filters, mean_after, var_after, self.residual,
            stride=self.stride, shared=True, momentum=momentum, eps=eps, tiles=tiles,
        )  # fmt: skip
        assert read is not None
        return out, read

    def forward(self, tiles: Tiles | None) -> list[Tensor]:
        """The result, and its batch's statistics."""
        with torch.no_grad():
            out, _ = self._layer(tiles)
        return list(out)

    def both(self, tiles: Tiles | None) -> list[Tensor]:
        """Gradients of x, residual, filters, weight and bias."""
        out, read = self._layer(tiles)
        leaves = (self.x, self.residual, self.filters, self.weight, self.bias)
        return list(torch.autograd.grad((out.x, read), leaves, self.gradients))


def check(computed: list[Tensor], expected: list[Tensor]) -> None:
    """Raise RuntimeError where a tile computes something else than cuDNN with separate sums."""
    for ours, theirs in zip(computed, expected, strict=True):
        distance = float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())
        if not distance <= _TOLERANCE:
            raise RuntimeError(f"differs from cuDNN's by {distance:.1%} of the largest value")


def records_of(layer: Layer, batch: int) -> Iterator[dict[str, Any]]:
    """A record for each direction and each way to compute the layer; RuntimeError where cuDNN's can't be measured."""
    device = torch.device("cuda")
    work = Work(layer, batch, device, torch.bfloat16)
    for direction, run in (("forward", work.forward), ("forward and backward", work.both)):
        cases, failed = [], {}
        expected = run(None)
        for name, chosen in tiles(layer).items():
            try:
                check(run(chosen), expected)
                rate = Rate(timed(captured(partial(run, chosen)), device), items=batch, seconds=_SECONDS)
                cases.append(Case(name, rate))
            except FAILURES as error:
                failed[name] = one_line(error)
        samples = interleave(cases, repeats=_REPEATS, warm_up=1, on_failure=failed.__setitem__)
        if CUDNN not in samples:
            raise RuntimeError(f"{CUDNN}, {direction}: {failed[CUDNN]}")
        plain = samples[CUDNN].repeats
        for name, taken in samples.items():
            median = estimate(taken.repeats)
            yield {
                "layer": layer._asdict(), "direction": direction, "name": name, "images_per_second": median,
                "spread": spread(taken.repeats), "over_cudnn": median / estimate(plain),
                "over_cudnn_interval": bootstrap_ratio(taken.repeats, plain),
            }  # fmt: skip
        for name, reason in failed.items():
            yield {"layer": layer._asdict(), "direction": direction, "name": name, "failed": reason}


def measure(flags: Flags, command: Sequence[str]) -> int:
    """Measure, print; returns the exit status, 1 where a layer could not be measured. ValueError without a GPU."""
    del command
    found, batch = layers(flags.arch), flags.batch_size
    if not torch.cuda.is_available():
        raise ValueError("these are kernels of a CUDA device, and there is none here; run it on a machine with one")
    # As in training: the others are compared with cuDNN's fastest algorithm.
    torch.backends.cudnn.benchmark = True
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batch {batch:,}, bfloat16")
    records, whole = [], True
    for layer, count in found.items():
        print(f"\n{layer.describe()}; the network has {count}")
        try:
            for record in records_of(layer, batch):
                records.append(record)
                print(f"  {record['direction']:<21} {record['name']:<27} {_figures(record)}", flush=True)
        except FAILURES as error:
            whole = False
            print(f"  not measured: {one_line(error)}", flush=True)
    print(json.dumps(records))
    return 0 if whole else 1


def _figures(record: dict[str, Any]) -> str:
    if "failed" in record:
        return f"not measured: {record['failed']}"
    rate, ratio = record["images_per_second"], record["over_cudnn"]
    return f"{rate:>11,.0f} images/s, spread {record['spread']:.0%}, {ratio:.2f} of cuDNN"
