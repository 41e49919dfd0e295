"""The two limits of the device, measured here: how fast it copies, and how fast it multiplies matrices."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from fast_train.benchmarks.instrument.bench import Bench, Measured, tf32
from fast_train.benchmarks.instrument.flags import Settings
from fast_train.benchmarks.instrument.records import CopyDetails, Details, ProductDetails
from fast_train.benchmarks.instrument.result import Result
from fast_train.pipeline.device import computes_bf16, has_tf32

SUITE = "roofline"
COPY = "copy"
NO_TF32 = "the device has no TF32, a type of NVIDIA's tensor cores from compute capability 8.0 on"
_COPY_BYTES = {"cuda": 1 << 30, "mps": 1 << 28, "cpu": 1 << 28}
_SIDE = {"cuda": 8192, "mps": 4096, "cpu": 2048}


def run(bench: Bench[Settings]) -> None:
    """Copy bandwidth, and matrix products in each type that the device computes in; on a CPU the faster one of
    `torch.mm` and of a 1x1 convolution."""
    device = bench.device
    products = [_product(bench, *kind) for kind in _kinds(device)]
    cases: list[Measured[Details]] = [_copy(bench), *products]
    bench.measure(SUITE, "roofline", cases)
    if not has_tf32(device):
        bench.skip(SUITE, matmul("TF32"), NO_TF32)
    if not computes_bf16(device):
        bench.skip(SUITE, matmul("bfloat16"), "the device has no bfloat16 arithmetic")


def matmul(kind: str) -> str:
    """The name of the row of a type's matrix product."""
    return f"matrix product, {kind}"


def peak_flops(result: Result, kind: str) -> float | None:
    """Operations a second of the fastest repeat: what the device can do. None where it was not measured."""
    return _fastest(result, matmul(kind))


def copy_bandwidth(result: Result) -> float | None:
    """Bytes a second, read and written, of the fastest repeat."""
    return _fastest(result, COPY)


def _fastest(result: Result, name: str) -> float | None:
    row = result.find(SUITE, name)
    return max(row.repeats) if row else None


def kind_of(amp: torch.dtype | None, *, tf32: bool) -> str:
    """The name of the type that a step computes in."""
    if amp is None:
        return "TF32" if tf32 else "float32"
    return str(amp).removeprefix("torch.")


def _kinds(device: torch.device) -> list[tuple[str, torch.dtype, bool]]:
    kinds = [("float32", torch.float32, False)]
    if has_tf32(device):
        kinds.append(("TF32", torch.float32, True))
    if device.type != "cpu":
        kinds.append(("float16", torch.float16, True))
    if computes_bf16(device):
        kinds.append(("bfloat16", torch.bfloat16, True))
    return kinds


def _copy(bench: Bench[Settings]) -> Measured[CopyDetails]:
    size = _COPY_BYTES[bench.device.type] >> (4 if bench.settings.quick else 0)
    source = torch.ones(size, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    rate = bench.rate(lambda: target.copy_(source), items=2 * size)
    return Measured(name=COPY, run=rate, unit="bytes/s", details=CopyDetails(bytes=size))


def _product(bench: Bench[Settings], kind: str, dtype: torch.dtype, fast: bool) -> Measured[ProductDetails]:
    side = _SIDE[bench.device.type] >> (1 if bench.settings.quick else 0)
    left, right = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
    products: list[Callable[[], object]] = [lambda: torch.mm(left, right)]
    if bench.device.type == "cpu":
        # There the product of a convolution comes from another library than torch.mm's, which may be twice as fast.
        # An image of as many pixels as the product has rows, in channels_last memory.
        pixels = left.view(1, side // 32, 32, side).permute(0, 3, 1, 2)
        filters = right[:, :, None, None].contiguous(memory_format=torch.channels_last)
        products.append(lambda: F.conv2d(pixels, filters))
    rates = [bench.rate(product, items=2 * side**3) for product in products]
    run = tf32(fast)(lambda: max(rate() for rate in rates))
    return Measured(name=matmul(kind), run=run, unit="FLOP/s", details=ProductDetails(side=side, kind=kind))
