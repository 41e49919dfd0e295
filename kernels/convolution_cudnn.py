"""Convolutions with a BatchNorm's sums at their end as graphs of cuDNN; see `kernels.convolution`.

From 9.24 on cuDNN makes kernels for compute capability 9.0, in bfloat16, that do what those of
`kernels.convolution_triton` do; `nvidia-cudnn-frontend` describes the graphs to it. There are two:

| graph | computes | sums, float32 [2, C] |
| --- | --- | --- |
| forward | out, the convolution | of d and of d * d, d = out - shift; the running mean as shift keeps d small |
| gradient, of stride 1 | dz, as `data_gradient_kernel` there | of dz, of dz * x_hat |

A sum is made of atomic additions, so a result does not repeat bit for bit, and it may be added to what is there: each
operator zeroes its own. x_hat, z, dz, rstd: as in `kernels.batchnorm_triton`.
"""

# torch.cuda.device_of has no types, nor have the frontend and a Function's arguments.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

from functools import cache, partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from fast_train.kernels.batchnorm_triton import apply_op, input_gradient_kernel
from fast_train.kernels.convolution_reference import Raw
from fast_train.kernels.convolution_triton import norm_convolution_backward, norm_relu_convolution_triton, out_shape
from fast_train.kernels.rows_triton import channels_last, tiling_of

# 9.24.0, as cuDNN numbers itself.
_OLDEST = 92400
# With fewer channels, or others than multiples of 8, cuDNN 9.24 has only kernels that were made for older devices.
_FEWEST_CHANNELS, _CHANNELS_STEP = 64, 8
# Plans of a graph that are built, which takes a second or so each, and timed. The native ones come first.
_PLANS = 5


def frontend() -> ModuleType:
    """cuDNN's Python frontend; ValueError where it is not installed."""
    try:
        import cudnn
    except ImportError as error:
        raise ValueError(f"it needs nvidia-cudnn-frontend (pip install 'fast-train[cudnn]'): {error}") from error
    return cudnn


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why these graphs can't run on a device in a type, in a few words; None where they can."""
    if dtype != torch.bfloat16:
        return "it computes in bfloat16 alone (--amp bf16)"
    here = device.type == "cuda" and torch.cuda.is_available()
    # Newer ones may have no kernels of these graphs: plans were built for this one alone.
    if not here or torch.cuda.get_device_capability(device)[0] != 9:
        return "it needs a GPU of compute capability 9.0"
    try:
        version = frontend().backend_version()
    except ValueError as error:
        return str(error)
    return None if version >= _OLDEST else f"it needs cuDNN {_OLDEST} or newer, not {version}"


def fuses(out_channels: int, in_channels: int) -> bool:
    """Whether cuDNN has native kernels for a convolution of these channels."""
    least = min(out_channels, in_channels) >= _FEWEST_CHANNELS
    return least and out_channels % _CHANNELS_STEP == in_channels % _CHANNELS_STEP == 0


class Graph(NamedTuple):
    """shape: [N, C, H, W] of what the convolution reads. columns: channels of its result. size: of its filter.
    gradient: the gradient's graph. second: with a second gradient of y. from_y: the ReLU passed where y is above zero;
    without it, where x_hat * weight + bias is."""

    shape: tuple[int, ...]
    columns: int
    size: int
    stride: int
    gradient: bool = False
    second: bool = False
    from_y: bool = False

    def describe(self, **target: Any) -> tuple[Any, list[Any]]:
        """The frontend's graph, and its tensors: what it reads in the order of the operators' arguments, what it
        writes, the two sums. target: ``handle=``, or ``device_property=`` of a device that need not be here."""
        cudnn = frontend()
        wide, narrow = cudnn.data_type.FLOAT, cudnn.data_type.BFLOAT16
        graph = cudnn.pygraph(io_data_type=narrow, intermediate_data_type=wide, compute_data_type=wide, **target)
        tensors: list[Any] = []
        summed = (1, self.shape[1] if self.gradient else self.columns, 1, 1)

        def new(shape: tuple[int, ...], data_type: Any = narrow) -> Any:
            tensors.append(graph.tensor(dim=list(shape), stride=_strides(shape), data_type=data_type))
            return tensors[-1]

        vector = partial(new, summed, wide)
        count, channels, height, width = self.shape
        filters_shape = (self.columns, channels, self.size, self.size)
        window = {"padding": [self.size // 2] * 2, "stride": [self.stride] * 2, "dilation": [1, 1]}
        if self.gradient:
            dout, filters = new((count, self.columns, height, width)), new(filters_shape)
            dy = graph.conv_dgrad(loss=dout, filter=filters, **window)
            dy.set_dim(list(self.shape)).set_stride(_strides(self.shape))
            if self.second:
                dy = graph.add(a=dy, b=new(self.shape))
            x, mean, rstd = new(self.shape), vector(), vector()
            x_hat = graph.mul(a=graph.sub(a=x, b=mean), b=rstd)
            z = new(self.shape) if self.from_y else graph.add(a=graph.mul(a=x_hat, b=vector()), b=vector())
            result = graph.relu_backward(loss=dy, input=z)
            factors = result, graph.mul(a=result, b=x_hat)
        else:
            result = graph.conv_fprop(image=new(self.shape), weight=new(filters_shape), **window)
            deviation = graph.sub(a=result, b=vector())
            factors = deviation, graph.mul(a=deviation, b=deviation)
        tensors.append(result.set_output(True).set_data_type(narrow))
        for factor in factors:
            total = graph.reduction(input=factor, mode=cudnn.reduction_mode.ADD)
            total.set_dim(list(summed)).set_stride(_strides(summed))
            tensors.append(total.set_output(True).set_data_type(wide))
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A])
        return graph, tensors


def _strides(shape: tuple[int, ...]) -> list[int]:
    """Of [N, C, H, W] in channels_last memory."""
    _, channels, height, width = shape
    return [channels * height * width, 1, channels * width, channels]


class Plan:
    """A graph as a kernel: the fastest of its first plans, by a trial on the first tensors, which can't be captured."""

    def __init__(self, graph: Graph, device: torch.device) -> None:
        with torch.cuda.device(device):
            self._handle = frontend().create_handle()
        self._what, self._device, self._index = graph, device, -1
        self._graph, self._tensors = graph.describe(handle=self._handle)
        self._room = torch.empty(1, dtype=torch.uint8, device=device)

    def run(self, *values: Tensor) -> None:
        """values: what the graph reads, what it writes, and its sums, zeroed: float32 [2, C]."""
        *others, sums = values
        bound = dict(zip(self._tensors, (*others, *sums), strict=True))
        if self._index < 0:
            self._choose(bound)
            sums.zero_()
        self._execute(bound, self._index)

    def _execute(self, bound: dict[Any, Tensor], index: int) -> None:
        frontend().set_stream(handle=self._handle, stream=torch.cuda.current_stream(self._device).cuda_stream)
        self._graph.execute_plan_at_index(bound, self._room, index, self._handle)

    def _choose(self, bound: dict[Any, Tensor]) -> None:
        milliseconds, refused = {}, None
        for index in range(min(self._graph.get_execution_plan_count(), _PLANS)):
            try:
                self._graph.build_plan_at_index(index)
                size = max(self._graph.get_workspace_size_plan_at_index(index), len(self._room))
                self._room = self._room.new_empty(size)
                milliseconds[index] = triton.testing.do_bench(partial(self._execute, bound, index), warmup=1, rep=5)
            except (torch.AcceleratorError, torch.OutOfMemoryError):
                raise
            # Of the frontend's own kinds: a plan is a proposal, and only its trial says whether it can run.
            except Exception as error:
                refused = error
        if not milliseconds:
            raise RuntimeError(f"cuDNN has no plan that runs for {self._what}") from refused
        self._index = min(milliseconds, key=milliseconds.__getitem__)


#: One for each graph and device.
plan_of = cache(Plan)


@torch.library.custom_op("fast_train::cudnn_convolution", mutates_args=())
def convolution_op(x: Tensor, filters: Tensor, shift: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """(the convolution in channels_last memory, the sums of the forward graph)."""
    x, filters = channels_last(x), channels_last(filters)
    shape = out_shape(x, filters, stride)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    sums = x.new_zeros((2, shape[1]), dtype=torch.float32)
    plan_of(Graph(tuple(x.shape), shape[1], filters.shape[-1], stride), x.device).run(x, filters, shift, out, sums)
    return out, sums


@convolution_op.register_fake
def _(x, filters, shift, stride):
    shape = out_shape(x, filters, stride)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return out, x.new_empty((2, shape[1]), dtype=torch.float32)


@torch.library.custom_op("fast_train::cudnn_data_gradients", mutates_args=())
def data_gradients_op(
    dout: Tensor, filters: Tensor, dy2: Tensor | None, x: Tensor, y: Tensor | None,
    mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, dz, the sums of the gradient's graph: dbias and dweight)."""
    dout, filters, x, tiles = channels_last(dout), channels_last(filters), channels_last(x), tiling_of(x)
    dz, dx = (torch.empty_like(x, memory_format=torch.channels_last) for _ in range(2))
    sums = x.new_zeros((2, tiles.n_cols), dtype=torch.float32)
    second = [] if dy2 is None else [channels_last(dy2)]
    mask = [weight, bias] if y is None else [channels_last(y)]
    columns, size = filters.shape[0], filters.shape[-1]
    graph = Graph(tuple(x.shape), columns, size, 1, gradient=True, second=dy2 is not None, from_y=y is not None)
    plan_of(graph, x.device).run(dout, filters, *second, x, mean, rstd, *mask, dz, sums)
    with torch.cuda.device_of(x):
        input_gradient_kernel[tiles.tile_grid](
            dz, x, mean, rstd, weight, bias, *sums, dx, x, mean, rstd, weight, bias, dx, tiles.n_rows, tiles.n_cols,
            RELU=False, SHORTCUT=False, **tiles.blocks,
        )  # fmt: skip
    return dx, dz, sums


@data_gradients_op.register_fake
def _(dout, filters, dy2, x, y, mean, rstd, weight, bias):
    dx, dz = (torch.empty_like(x, memory_format=torch.channels_last) for _ in range(2))
    return dx, dz, x.new_empty((2, x.shape[1]), dtype=torch.float32)


def _data_gradients(*arguments: Tensor | None) -> tuple[Tensor, ...]:
    """(dx, dweight, dbias, dz), as of `kernels.convolution_triton.data_gradients_op`."""
    dx, dz, sums = data_gradients_op(*arguments)
    return dx, sums[1], sums[0], dz


class _NormConvolutionFn(torch.autograd.Function):
    """(the convolution, its sums, and y, which it read, if ``shared``)."""

    @staticmethod
    def forward(ctx: Any, x, weight, bias, residual, mean, rstd, filters, shift, stride: int, shared: bool) -> Any:
        y, _ = apply_op(x, mean, rstd, weight, bias, residual, [], True, False)
        out, sums = convolution_op(y, filters, shift, stride)
        ctx.residual, ctx.stride = residual is not None, stride
        ctx.save_for_backward(x, y, mean, rstd, weight, bias, filters)
        ctx.mark_non_differentiable(sums)
        ctx.set_materialize_grads(False)
        return (out, sums, y) if shared else (out, sums)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, _: None, dy2: Tensor | None = None) -> Any:
        return *norm_convolution_backward(ctx, dout, dy2, _data_gradients), None, None, None


def norm_relu_convolution_cudnn(
    raw: Raw, weight: Tensor, bias: Tensor, filters: Tensor, running_mean: Tensor, running_var: Tensor,
    residual: Tensor | None, *, stride: int, shared: bool, momentum: float, eps: float,
) -> tuple[Raw, Tensor | None]:  # fmt: skip
    """`kernels.convolution.norm_relu_convolution` by graphs that `why_not` has nothing against.

    A convolution without a native kernel is cuDNN's plain one, and the sums are passes of their own.
    """
    if not fuses(*filters.shape[:2]):
        return norm_relu_convolution_triton(
            raw, weight, bias, filters, running_mean, running_var, residual,
            stride=stride, shared=shared, momentum=momentum, eps=eps, tiles=None,
        )  # fmt: skip
    out, sums, *y = _NormConvolutionFn.apply(
        raw.x, weight, bias, residual, raw.mean, raw.rstd, filters, running_mean, stride, shared
    )
    with torch.no_grad():
        n_rows = out.numel() // out.shape[1]
        deviation, squares = sums / n_rows
        # Rounding may leave less than nothing.
        var = (squares - deviation.square()).clamp_min(0)
        statistics = running_mean + deviation, (var + eps).rsqrt()
        running_mean.add_(deviation, alpha=momentum)
        running_var.lerp_(var * (n_rows / (n_rows - 1)), momentum)
    return Raw(out, *statistics), y[0] if shared else None
