"""Convolutions with a BatchNorm's sums inside, layer by layer; `benchmarks.lab.convolutions` says what is measured."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from fast_train.benchmarks.instrument.statistics import bootstrap_ratio, estimate, spread
from fast_train.benchmarks.instrument.timing import FAILURES, Case, Rate, captured, interleave, timed
from fast_train.benchmarks.lab.floors import on_meta
from fast_train.common.text import one_line
from fast_train.kernels import convolution_cudnn, convolution_tma
from fast_train.kernels.convolution_cudnn import Graph, norm_relu_convolution_cudnn
from fast_train.kernels.convolution_reference import Raw
from fast_train.kernels.convolution_triton import norm_relu_convolution_triton, with_statistics_triton
from fast_train.kernels.tiling import Tile, Tiles, fit, tma_tiles_of
from fast_train.pipeline.config.settings import ModelConfig

if TYPE_CHECKING:
    from fast_train.benchmarks.lab.convolutions import Flags

CUDNN, GRAPHS = "cuDNN and sums", "cuDNN's graphs"
#: Of a step of ResNet-18, 1,024 images, on an H100: what norms should take less with cuDNN's graphs, and the most that
#: convolutions may take more (T) for the graphs to be worth their keep.
NORMS_MS, MOST_MS = 1.6, 1.2
BOTH = "forward and backward"
_REPEATS, _SECONDS = 5, 0.15
#: (rows, depth, warps, stages); columns are the layer's own, at most 128.
_CANDIDATES = ((128, 64, 4, 3), (128, 64, 4, 4), (128, 64, 8, 3), (256, 64, 8, 3), (128, 32, 4, 4))
#: Of strips by TMA: (depth, stages). The filters are kept where a depth is all channels.
_BY_TMA = ((64, 1), (64, 2), (32, 2), (32, 3))
# As a part of the largest value: sums of some hundred terms in bfloat16, whose steps are 2^-8.
_TOLERANCE = 3e-2
#: A layer as `norm_relu_convolution_cudnn` computes it.
Way = Callable[..., tuple[Raw, Tensor | None]]


class Layer(NamedTuple):
    """A convolution: channels in and out, filter, stride, side of the image that it reads. residual: whether one goes
    into the norm before it. shared: whether a shortcut reads what it reads."""

    depth: int
    columns: int
    size: int
    stride: int
    side: int
    residual: bool = True
    shared: bool = True

    def describe(self) -> str:
        more = [f"stride {self.stride}"] if self.stride > 1 else []
        more += ["after a residual"] * self.residual + ["beside a shortcut"] * self.shared
        what = f"{self.depth} to {self.columns} channels, {self.size}x{self.size} on {self.side}x{self.side}"
        return ", ".join([what, *more])


def layers(arch: str) -> Counter[Layer]:
    """The convolutions inside a network's blocks, and how often it has each."""
    model, images = on_meta(ModelConfig(arch=arch))
    found: Counter[Layer] = Counter()

    def note(module: nn.Conv2d, inputs: tuple[Tensor], _: Tensor, *, residual: bool, shared: bool) -> None:
        found[Layer(module.in_channels, module.out_channels, module.kernel_size[0], module.stride[0],
                    inputs[0].shape[-1], residual, shared)] += 1  # fmt: skip

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and ".conv" in name:
            # Where a block begins, but in a plain network. What the stem leaves has no residual.
            shared = name.endswith(".conv1") and not arch.startswith("plain")
            residual = shared and name != "layer1.0.conv1"
            module.register_forward_hook(partial(note, residual=residual, shared=shared))
    model(images)
    return found


def ways(layer: Layer) -> dict[str, Way]:
    """What is tried for a layer, by name."""
    found: dict[str, Way] = {CUDNN: partial(norm_relu_convolution_triton, tiles=None)}
    why_not = convolution_cudnn.why_not(torch.device("cuda"), torch.bfloat16)
    if why_not is None and convolution_cudnn.fuses(layer.columns, layer.depth):
        # Compiled, as in training: a dozen operations on vectors become one. From the ninth layer on it would not be.
        torch.compiler.reset()
        found[GRAPHS] = torch.compile(norm_relu_convolution_cudnn, dynamic=False)
    for rows, depth, warps, stages in _CANDIDATES:
        tile = Tile(rows, 128, depth, warps, stages)
        chosen = Tiles(fit(tile, layer.columns, layer.depth), fit(tile, layer.depth, layer.columns))
        name = f"{rows} x {chosen.forward.block_n} x {chosen.forward.block_k} / {warps} / {stages}"
        found[name] = partial(norm_relu_convolution_triton, tiles=chosen)
    if (loaded := _by_tma(layer)) is not None:
        for depth, stages in _BY_TMA:
            chosen = Tiles(*(tile._replace(block_k=depth, num_stages=stages) for tile in loaded))
            found[f"TMA, depth {depth} / {stages}"] = partial(norm_relu_convolution_triton, tiles=chosen)
    return found


def _by_tma(layer: Layer) -> Tiles | None:
    if (layer.size, layer.stride) != (3, 1) or convolution_tma.why_not(torch.device("cuda")) is not None:
        return None
    return tma_tiles_of(layer.columns, layer.depth, layer.side, layer.side)


class Work:
    """One layer on a fixed batch of random numbers. Computes in any way, in calls that a CUDA graph can capture."""

    def __init__(self, layer: Layer, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        self.layer = layer
        shape = (batch, layer.depth, layer.side, layer.side)
        self.x, residual = (
            normal(*shape).to(dtype, memory_format=torch.channels_last).requires_grad_() for _ in range(2)
        )
        self.residual = residual if layer.residual else None
        fan_in = layer.depth * layer.size**2
        filters = normal(layer.columns, layer.depth, layer.size, layer.size) * (2 / fan_in) ** 0.5
        self.filters = filters.to(dtype, memory_format=torch.channels_last).requires_grad_()
        self.weight, self.bias = (normal(layer.depth).requires_grad_() for _ in range(2))
        self.running = [torch.zeros(channels, device=device) for channels in [layer.depth] * 2 + [layer.columns] * 2]
        with torch.no_grad():
            out, read = self._layer(partial(norm_relu_convolution_triton, tiles=None))
        # In the memory format that training's gradients have: another one would be copied within the time.
        self.gradients = [
            normal(*like.shape).to(like.dtype, memory_format=torch.channels_last)
            for like in (out.x, read)
            if like is not None
        ]

    def _layer(self, way: Way) -> tuple[Raw, Tensor | None]:
        momentum, eps = 0.1, 1e-5
        mean_before, var_before, mean_after, var_after = self.running
        raw = with_statistics_triton(self.x, mean_before, var_before, momentum=momentum, eps=eps)
        return way(
            raw, self.weight, self.bias, self.filters, mean_after, var_after, self.residual,
            stride=self.layer.stride, shared=self.layer.shared, momentum=momentum, eps=eps,
        )  # fmt: skip

    def forward(self, way: Way) -> list[Tensor]:
        """The result, and its batch's statistics."""
        with torch.no_grad():
            out, _ = self._layer(way)
        return list(out)

    def both(self, way: Way) -> list[Tensor]:
        """Gradients of x, residual, filters, weight and bias."""
        out, read = self._layer(way)
        results = [out.x] if read is None else [out.x, read]
        leaves = (self.x, self.residual, self.filters, self.weight, self.bias)
        return list(torch.autograd.grad(results, [leaf for leaf in leaves if leaf is not None], self.gradients))


def check(computed: list[Tensor], expected: list[Tensor]) -> None:
    """Raise RuntimeError where a way computes something else than cuDNN with separate sums."""
    for ours, theirs in zip(computed, expected, strict=True):
        distance = float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())
        if not distance <= _TOLERANCE:
            raise RuntimeError(f"differs from cuDNN's by {distance:.1%} of the largest value")


def records_of(layer: Layer, batch: int) -> Iterator[dict[str, Any]]:
    """A record for each direction and each way to compute the layer; RuntimeError where cuDNN's can't be measured."""
    device = torch.device("cuda")
    work = Work(layer, batch, device, torch.bfloat16)
    tried = ways(layer)
    for direction, run in (("forward", work.forward), (BOTH, work.both)):
        cases, failed = [], {}
        expected = run(tried[CUDNN])
        for name, chosen in tried.items():
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


def saved(records: Sequence[dict[str, Any]], found: Counter[Layer], batch: int) -> float | None:
    """Milliseconds a step that cuDNN's graphs save; None where a layer that has such lacks a figure."""
    seconds = {(Layer(**r["layer"]), r["name"]): batch / r["images_per_second"] for r in records
               if r["direction"] == BOTH and "failed" not in r}  # fmt: skip
    fused = [layer for layer in found if convolution_cudnn.fuses(layer.columns, layer.depth)]
    if any((layer, name) not in seconds for layer in fused for name in (CUDNN, GRAPHS)):
        return None
    return 1e3 * sum(found[layer] * (seconds[layer, CUDNN] - seconds[layer, GRAPHS]) for layer in fused)


def adds(device: torch.device) -> bool:
    """Whether cuDNN adds a sum to what is there, or sets it: here that of 16 * 4 * 4 ones."""
    x, filters, out = (torch.zeros(shape, device=device, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
                       for shape in ((16, 64, 4, 4), (64, 64, 3, 3), (16, 64, 4, 4)))  # fmt: skip
    plan, shift = convolution_cudnn.Plan(Graph((16, 64, 4, 4), 64, 3, 1), device), torch.ones(64, device=device)
    sums = torch.zeros(2, 64, device=device)
    plan.run(x, filters, shift, out, sums)
    sums.fill_(1000)
    plan.run(x, filters, shift, out, sums)
    return float(sums[1].min()) > 1000


def measure(flags: Flags, command: Sequence[str]) -> int:
    """Measure, print; returns the exit status, 1 where a layer could not be measured. ValueError without a GPU."""
    del command
    found, batch = layers(flags.arch), flags.batch_size
    if not torch.cuda.is_available():
        raise ValueError("these are kernels of a CUDA device, and there is none here; run it on a machine with one")
    # As in training: the others are compared with cuDNN's fastest algorithm.
    torch.backends.cudnn.benchmark = True
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batch {batch:,}, bfloat16")
    if (reason := convolution_tma.why_not(torch.device("cuda"))) is not None:
        print(f"no tiles by TMA: {reason}")
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
    print(f"\n{_verdict(records, found, batch)}")
    print(json.dumps(records))
    return 0 if whole else 1


def _verdict(records: Sequence[dict[str, Any]], found: Counter[Layer], batch: int) -> str:
    """What cuDNN's graphs are worth."""
    device = torch.device("cuda")
    ms, reason = saved(records, found, batch), convolution_cudnn.why_not(device, torch.bfloat16)
    if ms is None or reason is not None:
        return f"{GRAPHS}: T not measured: {reason or 'a layer failed'}"
    more, sums = NORMS_MS - ms, "added to what is there" if adds(device) else "set"
    return (
        f"{GRAPHS} save {ms:.2f} ms a step; T = {NORMS_MS} - {ms:.2f} = {more:.2f} ms, and an H100's limit is "
        f"{MOST_MS}: {'keep them' if more < MOST_MS else 'drop them'}. Sums are {sums}."
    )


def _figures(record: dict[str, Any]) -> str:
    if "failed" in record:
        return f"not measured: {record['failed']}"
    rate, ratio = record["images_per_second"], record["over_cudnn"]
    return f"{rate:>11,.0f} images/s, spread {record['spread']:.0%}, {ratio:.2f} of cuDNN"
