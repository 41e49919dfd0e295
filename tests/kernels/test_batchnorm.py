"""BatchNorm with residual and ReLU against plain PyTorch in float64: values, gradients, running statistics."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fast_train.kernels.batchnorm import batch_norm, batch_norm_twice
from fast_train.kernels.batchnorm_reference import Unnormalised
from fast_train.kernels.batchnorm_triton import (
    apply_op,
    batch_norm_triton,
    batch_norm_twice_triton,
    gradients_op,
    statistics_op,
)
from fast_train.kernels.switches import switched
from fast_train.kernels.tiling import tiling
from fast_train.pipeline.engine.graph import no_garbage_collection

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# One rounding to the type; in float32, sums of a few thousand terms.
TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}
NORMED = "normed"
NAMES = (
    "x", "weight", "bias", "running_mean", "running_var", "residual",
    "residual.weight", "residual.bias", "residual.running_mean", "residual.running_var",
)  # fmt: skip
CASES = [(residual, relu) for residual in (False, True, NORMED) for relu in (False, True)]
# (dtype, residual, relu, twice): each case once, and each type with both values of each flag.
INTERPRETED = [
    (torch.float32, False, False, False), (torch.float32, True, True, True), (torch.float32, False, True, False),
    (torch.bfloat16, False, True, True), (torch.bfloat16, True, False, False), (torch.bfloat16, True, False, True),
    (torch.float16, False, False, True), (torch.float16, True, True, False),
    (torch.float32, NORMED, True, True), (torch.bfloat16, NORMED, True, False), (torch.float16, NORMED, False, True),
]  # fmt: skip


def _inputs(shape, dtype, *, residual, device="cpu", seed=0, mean=0.5, std=2.0):
    """x, weight, bias, running_mean, running_var, residual: leaves where a gradient is of interest.

    residual: whether there is one; NORMED for one with a norm of its own, whose weight and so on then follow.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator)

    channels = shape[1]

    def activation(values):
        return values.to(device, dtype, memory_format=torch.channels_last).requires_grad_()

    def vectors():
        weight = (1 + 0.3 * normal(channels)).to(device).requires_grad_()
        bias = (0.3 * normal(channels)).to(device).requires_grad_()
        return weight, bias, normal(channels).to(device), normal(channels).abs().to(device)

    x = activation(mean + std * normal(*shape))
    own = vectors()
    added = activation(normal(*shape)) if residual else None
    return x, *own, added, *(vectors() if residual is NORMED else ())


def _run(kernel, inputs, **options):
    residual = Unnormalised(*inputs[5:]) if len(inputs) > 6 else inputs[5]
    return kernel(*inputs[:5], residual, momentum=0.1, eps=1e-5, **options)


def _leaves(inputs):
    return [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]


def _copies(inputs, dtype=None):
    """The same values again, with gradients of their own; floating-point ``dtype`` where given."""
    return tuple(
        None if t is None else t.detach().clone().to(dtype or t.dtype).requires_grad_(t.requires_grad) for t in inputs
    )


def _plainly(inputs, relu):
    """By PyTorch's own: the result, and what goes into the ReLU."""

    def norm(x, weight, bias, running_mean, running_var):
        return F.batch_norm(x, running_mean, running_var, weight, bias, training=True, momentum=0.1, eps=1e-5)

    y, residual = norm(*inputs[:5]), norm(*inputs[5:]) if len(inputs) > 6 else inputs[5]
    y = y if residual is None else y + residual
    return y.relu() if relu else y, y


def _close(ours, theirs, tolerance, what):
    """Within ``tolerance`` of the largest value: gradients of x are differences of sums."""
    scale = float(theirs.detach().abs().max()) + 1e-6
    assert float((ours.detach().double() - theirs.detach()).abs().max()) <= tolerance * scale, what


def _compare(run, inputs, *, relu, twice=False, tolerance=None):
    """Values, running statistics and all gradients against float64. ``twice``: two names, two gradients."""
    dtype = inputs[0].dtype
    tolerance = tolerance or TOLERANCE[dtype]
    exact = _copies(inputs, torch.float64)
    expected, before_relu = _plainly(exact, relu)
    got = _run(run, inputs, relu=relu)
    outputs = got if twice else (got,)
    generator = torch.Generator().manual_seed(7)
    # No gradient where rounding may move a value over zero: its ReLU passes here and not there.
    kept = before_relu.detach().abs() > 0.05
    factors = [torch.randn(expected.shape, generator=generator).to(inputs[0]) * kept for _ in outputs]
    sum((out * factor).sum(dtype=torch.float32) for out, factor in zip(outputs, factors, strict=True)).backward()
    sum((expected * factor).sum() for factor in factors).backward()
    for out in outputs:
        assert out.dtype == dtype
        _close(out, expected, tolerance, "y")
    for name, ours, theirs in zip(NAMES, inputs, exact, strict=False):
        if ours is not None and ours.requires_grad:
            assert ours.grad.dtype == ours.dtype
            _close(ours.grad, theirs.grad, 4 * tolerance, f"gradient of {name}")
        elif ours is not None:
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(("residual", "relu"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_equals_pytorch(dtype, residual, relu):
    inputs = _inputs((4, 5, 6, 7), dtype, residual=residual)
    _compare(lambda *a, **o: batch_norm(*a[:5], residual=a[5], **o), inputs, relu=relu)


@pytest.mark.interpreter
def test_a_residual_normed_on_the_way_is_rounded_no_more_than_one_normed_before():
    """Against float64: by itself that norm's result is rounded to bfloat16 before it is added."""
    worst = []
    for joined in (True, False):
        inputs = _inputs((3, 6, 19, 23), torch.bfloat16, residual=NORMED)
        expected, _ = _plainly(_copies(inputs, torch.float64), True)
        if not joined:
            inputs = (*inputs[:5], batch_norm_triton(*inputs[5:], None, relu=False, momentum=0.1, eps=1e-5))
        y = _run(batch_norm_triton, inputs, relu=True)
        worst.append((y.double() - expected).square().mean())
    assert worst[0] < worst[1]


@pytest.mark.interpreter
@pytest.mark.parametrize(("dtype", "residual", "relu", "twice"), INTERPRETED)
def test_triton_equals_pytorch(dtype, residual, relu, twice):
    """On the CPU the kernels run in Triton's interpreter; several tiles, the last one partial."""
    inputs = _inputs((3, 6, 19, 23), dtype, residual=residual)
    _compare(batch_norm_twice_triton if twice else batch_norm_triton, inputs, relu=relu, twice=twice)


@pytest.mark.interpreter
@settings(max_examples=6, deadline=None)
@given(
    st.integers(1, 6), st.sampled_from([1, 2, 3, 16, 65]), st.integers(2, 9), st.integers(3, 9),
    st.sampled_from([False, True, NORMED]), st.booleans(), st.integers(0, 1000),
)  # fmt: skip
@example(1, 130, 4, 9, True, True, 0)
def test_triton_on_any_shape(count, channels, height, width, residual, relu, seed):
    inputs = _inputs((count, channels, height, width), torch.float32, residual=residual, seed=seed)
    # Few values have a small variance now and then, which magnifies rounding.
    _compare(batch_norm_triton, inputs, relu=relu, tolerance=1e-3)


@pytest.mark.interpreter
def test_many_steps_and_chunks_share_the_rows(monkeypatch):
    """With few programs each sums several tiles: no row is left out or counted twice."""
    monkeypatch.setattr("fast_train.kernels.tiling.MAX_PROGRAMS", 3)
    monkeypatch.setattr("fast_train.kernels.tiling.TILE_ELEMENTS", 64)
    inputs = _inputs((3, 6, 9, 13), torch.float32, residual=NORMED)
    tiles = tiling(3 * 9 * 13, 6)
    assert tiles.n_chunks > 1
    assert tiles.n_steps > 1
    _compare(batch_norm_triton, inputs, relu=True)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 1 << 22), st.integers(1, 2048))
def test_tiling_covers_all_rows_once(rows, channels):
    tiles = tiling(rows, channels)
    needed = -(-rows // tiles.block_m)
    assert tiles.n_chunks <= needed <= tiles.n_chunks * tiles.n_steps
    assert needed > tiles.n_chunks * (tiles.n_steps - 1)


@pytest.mark.interpreter
@pytest.mark.parametrize("offset", [1e3, 1e4])
def test_a_large_mean_does_not_cost_the_variance(offset):
    """A naive E[x^2] - E[x]^2 in float32 has no digit left of a variance of 1 next to a mean of 10,000."""
    inputs = _inputs((8, 3, 16, 16), torch.float32, residual=False, mean=offset, std=1.0)
    exact = inputs[0].detach().double()
    mean, rstd = statistics_op(inputs[0].detach(), inputs[3], inputs[4], 0.1, 1e-5)
    # float32 resolves the mean itself to 6e-8 of it, which is what is left.
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=2e-7, atol=0)
    expected = (exact.var((0, 2, 3), unbiased=False) + 1e-5).rsqrt()
    torch.testing.assert_close(rstd.double(), expected, rtol=1e-4, atol=0)


@pytest.mark.interpreter
@pytest.mark.parametrize("channels", [3, 70])
def test_the_relu_passes_where_its_rounded_result_is_above_zero(channels):
    """By a bit a value as by y itself: float16 rounds 1e-9 to zero. All gradients, to the last bit."""
    results = []
    for bits in (True, False):
        inputs = _inputs((2, channels, 3, 5), torch.float16, residual=True)
        with torch.no_grad():
            inputs[1].fill_(1e-9)
            inputs[2].zero_()
            inputs[5][1:] = 0
        with switched(relu_bits=bits):
            y = batch_norm_triton(*inputs, relu=True, momentum=0.1, eps=1e-5)
        y.float().sum().backward()
        results.append([leaf.grad for leaf in _leaves(inputs)])
    assert torch.equal(inputs[5].grad, (y > 0).half())
    assert 0 < (y[0] > 0).sum() < y[0].numel()
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.interpreter
def test_results_repeat_bit_for_bit():
    runs = []
    for _ in range(2):
        inputs = _inputs((4, 6, 19, 23), torch.bfloat16, residual=True)
        y, again = batch_norm_twice_triton(*inputs, relu=True, momentum=0.1, eps=1e-5)
        (y.float().square().sum() + again.float().sum()).backward()
        runs.append([y, inputs[3], inputs[4], *(leaf.grad for leaf in _leaves(inputs))])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.interpreter
def test_other_memory_formats_are_taken_too():
    """Plain memory, and the gradient of a mean, which has no strides."""
    inputs = _inputs((2, 6, 5, 5), torch.float32, residual=True)
    plain = tuple(None if t is None else t.detach().contiguous().requires_grad_(t.requires_grad) for t in inputs)
    results = [batch_norm_triton(*i, relu=True, momentum=0.1, eps=1e-5) for i in (inputs, plain)]
    assert all(result.is_contiguous(memory_format=torch.channels_last) for result in results)
    for result in results:
        result.mean().backward()
    assert torch.equal(*results)
    for ours, theirs in zip(_leaves(inputs), _leaves(plain), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.interpreter
def test_nan_is_not_hidden_by_the_relu():
    inputs = _inputs((2, 3, 4, 4), torch.float32, residual=False)
    with torch.no_grad():
        inputs[0][0, 1, 2, 2] = float("nan")
    y = batch_norm_triton(*inputs, relu=True, momentum=0.1, eps=1e-5)
    assert y[:, 1].isnan().all()
    assert not y[:, 0].isnan().any()


@pytest.mark.interpreter
def test_torch_compile_keeps_it_whole():
    """One graph without breaks, and the values of the eager run, running statistics included."""

    def block(inputs):
        y, skip = batch_norm_twice_triton(*inputs, relu=True, momentum=0.1, eps=1e-5)
        # The last block's second name is of no use.
        last, _ = batch_norm_twice_triton(y * 2, *inputs[1:5], skip, relu=True, momentum=0.1, eps=1e-5)
        return batch_norm_triton(last, *inputs[1:], relu=True, momentum=0.1, eps=1e-5).square().sum()

    eager = _inputs((2, 6, 5, 5), torch.float32, residual=True)
    compiled = _copies(eager)
    block(eager).backward()
    torch.compile(block, backend="aot_eager", fullgraph=True)(compiled).backward()
    for ours, theirs in zip(compiled[3:5], eager[3:5], strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(_leaves(compiled), _leaves(eager), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.interpreter
def test_operators_keep_their_contracts():
    """Fake and real results agree in shape, type and strides; nothing but what is declared is changed."""
    x, weight, bias, running_mean, running_var, residual = (
        t.detach() for t in _inputs((2, 3, 4, 5), torch.float16, residual=True)
    )
    mean, rstd = statistics_op(x, running_mean, running_var, 0.1, 1e-5)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(statistics_op, (x, running_mean, running_var, 0.1, 1e-5), test_utils=checks)
    for shortcut, keep in (([], False), ([], True), ([mean, rstd, weight, bias], True)):
        arguments = (x, mean, rstd, weight, bias, residual, shortcut, True, keep)
        torch.library.opcheck(apply_op, arguments, test_utils=checks)
    _, bits = apply_op(*arguments)
    joined = [residual, mean, rstd, weight]
    for dy2, y, shortcut, store in (
        (None, None, [], False), (residual, None, [], True), (residual, x, [], True), (residual, bits, joined, True),
    ):  # fmt: skip
        arguments = (residual, dy2, x, y, mean, rstd, weight, bias, shortcut, True, store)
        torch.library.opcheck(gradients_op, arguments, test_utils=checks)


@pytest.mark.parametrize("change", [
    dict(x=torch.zeros(4, 3)),
    dict(x=torch.zeros(2, 3, 4, 4, dtype=torch.float64)),
    dict(x=torch.zeros(1, 3, 1, 1)),
    dict(weight=torch.zeros(4)),
    dict(running_var=torch.zeros(3, dtype=torch.bfloat16)),
    dict(weight=torch.zeros(6)[::2]),
    dict(running_mean=torch.zeros(1).expand(3)),
    dict(residual=torch.zeros(2, 3, 4, 5)),
    dict(residual=torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16)),
    dict(residual=Unnormalised(torch.zeros(2, 3, 4, 5), *[torch.zeros(3)] * 4)),
    dict(residual=Unnormalised(torch.zeros(2, 3, 4, 4), *[torch.zeros(3)] * 3, torch.zeros(4))),
])  # fmt: skip
@pytest.mark.parametrize("run", [batch_norm, batch_norm_twice])
def test_bad_inputs(run, change):
    arguments = dict(zip(NAMES, _inputs((2, 3, 4, 4), torch.float32, residual=True), strict=False))
    with pytest.raises(ValueError, match=r"must be|give more"):
        run(**{**arguments, **change})


@pytest.mark.gpu
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize(("residual", "relu"), CASES)
@pytest.mark.parametrize("shape", [(64, 64, 32, 32), (64, 512, 4, 4), (37, 96, 15, 13), (5, 3, 9, 9)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpu_equals_pytorch(dtype, shape, residual, relu, twice):
    inputs = _inputs(shape, dtype, residual=residual, device="cuda")
    _compare(batch_norm_twice_triton if twice else batch_norm_triton, inputs, relu=relu, twice=twice)


@pytest.mark.gpu
@pytest.mark.parametrize("dependent", [False, True])
def test_gpu_replays_in_a_graph(dependent):
    """Captured, forward and backward; a replay reads what its inputs hold by then and moves the statistics.

    dependent: with kernels that start early, whose bits are those of kernels that don't.
    """
    inputs = _inputs((32, 64, 16, 16), torch.bfloat16, residual=True, device="cuda")
    x, running = inputs[0], inputs[3:5]

    def run(given):
        y, skip = batch_norm_twice(*given[:5], residual=given[5], relu=True)
        return torch.autograd.grad(y.float().square().sum() + skip.float().sum(), _leaves(given))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), switched(dependent_launch=dependent):
        run(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with no_garbage_collection(), torch.cuda.graph(graph), switched(dependent_launch=dependent):
        captured = run(inputs)
    with torch.no_grad():
        x.mul_(1.5).add_(0.25)
        for tensor in running:
            tensor.fill_(1)
    eager = _copies(inputs)
    graph.replay()
    expected = run(eager)
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(running, eager[3:5], strict=True))
