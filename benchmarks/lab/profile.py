"""Where a step's time goes on the device: seconds of each group of kernels, by torch.profiler."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # which torch does not say it exports
from torch.profiler import ProfilerActivity, profile

from fast_train.benchmarks.lab.floors import CONVOLUTION, DATA_GRADIENT, FORWARD, WEIGHT_GRADIENT

# As `floors.groups` calls them: a table puts both side by side.
CONVOLUTION_FORWARD = f"{CONVOLUTION}, {FORWARD}"
CONVOLUTION_DATA = f"{CONVOLUTION}, {DATA_GRADIENT}"
CONVOLUTION_WEIGHT = f"{CONVOLUTION}, {WEIGHT_GRADIENT}"
CONVOLUTION_GRADIENT = "convolution, a gradient"
NORM = "norm, elementwise"
AUGMENTATION = "augmentation"
OPTIMIZER = "optimizer"
MATRIX = "matrix product"
REST = "rest"

# The first pattern found in a kernel's name counts. Ours are named as their functions in `kernels`. cuDNN and CUTLASS
# name the direction of a convolution in each kernel. Inductor names the operations that a kernel joins; kernels that it
# makes from a template begin with triton_tem.
_PATTERNS = (
    (AUGMENTATION, r"^augment_kernel"),
    (CONVOLUTION_DATA, r"^data_gradient_kernel|dgrad|bwd_?data|convBwdData|backward_?data"),
    (CONVOLUTION_WEIGHT, r"wgrad|bwd_?filter|backward_?filter"),
    (CONVOLUTION_FORWARD, r"^convolution_kernel|fprop|convFwd|implicit_convolve|conv2d_grouped_direct"),
    (CONVOLUTION_GRADIENT, r"triton_tem_\w*convolution_backward"),
    (CONVOLUTION_FORWARD, r"triton_tem_\w*convolution"),
    # After the convolutions, some of which cuDNN names implicit_gemm: the last layer, and all of Muon's iteration.
    (MATRIX, r"nvjet|gemm|gemv|cublas"),
    (OPTIMIZER, r"multi_tensor_apply|[Ff]used_?[Ss]gd|foreach"),
    (NORM, r"^(moments|statistics|apply|gradient_sums|join_sums|input_gradient)_kernel"),
    (NORM, r"triton_(poi|red|per|for)_|batch_?norm|bn_(fw|bw)|elementwise_kernel"),
)
GROUPS = (*dict.fromkeys(group for group, _ in _PATTERNS), REST)


def classify(kernel: str) -> str:
    return next((group for group, pattern in _PATTERNS if re.search(pattern, kernel)), REST)


def kernel_seconds(call: Callable[[], object], count: int) -> dict[str, float]:
    """Seconds on the device of each kernel, by name, in one of ``count`` calls of a captured or plain step."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(count):
            call()
        torch.cuda.synchronize()
    return {
        event.key: event.self_device_time_total / 1e6 / count
        for event in profiler.key_averages()
        if event.device_type == DeviceType.CUDA and event.self_device_time_total > 0
    }


def by_group(kernels: dict[str, float]) -> dict[str, float]:
    """The seconds of each group, zero for one that has no kernel."""
    sums: dict[str, float] = defaultdict(float, dict.fromkeys(GROUPS, 0.0))
    for name, seconds in kernels.items():
        sums[classify(name)] += seconds
    return dict(sums)
