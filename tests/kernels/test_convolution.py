"""Norm, ReLU and convolution in one against plain PyTorch in float64: values, statistics, gradients."""

from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from cudnn_plans import PlanInPyTorch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fast_train.kernels import convolution_cudnn, convolution_tma
from fast_train.kernels.convolution import norm_relu_convolution, normalise, with_statistics
from fast_train.kernels.convolution_cudnn import norm_relu_convolution_cudnn
from fast_train.kernels.convolution_reference import Raw
from fast_train.kernels.convolution_triton import (
    convolution_op,
    data_gradients_op,
    norm_relu_convolution_triton,
    normalise_triton,
    with_statistics_triton,
)
from fast_train.kernels.switches import switched
from fast_train.kernels.tiling import Tile, Tiles, tiles_of
from fast_train.pipeline.engine.graph import no_garbage_collection

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# One rounding to the type; in float32, sums of a few hundred terms.
TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}


def _inputs(dtype, *, shape=(2, 20, 5, 7), columns=33, size=3, residual=True, device="cpu", seed=0):
    """x, weight, bias, filters, residual (leaves), and running statistics of both norms."""
    generator = torch.Generator().manual_seed(seed)
    channels = shape[1]

    def normal(*size):
        return torch.randn(*size, generator=generator)

    def wide(values):
        return values.to(device, dtype, memory_format=torch.channels_last).requires_grad_()

    x, filters = wide(0.5 + 2 * normal(*shape)), wide(normal(columns, channels, size, size) / (channels**0.5 * size))
    weight = (1 + 0.3 * normal(channels)).to(device).requires_grad_()
    bias = (0.3 * normal(channels)).to(device).requires_grad_()
    running = [v.to(device) for n in (channels, columns) for v in (normal(n), normal(n).abs())]
    return [x, weight, bias, filters, wide(normal(*shape)) if residual else None], running


def _copies(tensors, dtype=None):
    return [
        None if t is None else t.detach().clone().to(dtype or t.dtype).requires_grad_(t.requires_grad) for t in tensors
    ]


def _plainly(leaves, running, stride):
    """PyTorch's own: (the activation, the convolution), the running statistics moved."""
    x, weight, bias, filters, residual = leaves
    normed = F.batch_norm(x, running[0], running[1], weight, bias, training=True, momentum=0.1, eps=1e-5)
    read = (normed if residual is None else normed + residual).relu()
    out = F.conv2d(read, filters, stride=stride, padding=filters.shape[-1] // 2)
    F.batch_norm(out, running[2], running[3], training=True, momentum=0.1, eps=1e-5)
    return read, out


def _through(statistics, joint, leaves, running, stride, shared):
    x, weight, bias, filters, residual = leaves
    raw = statistics(x, running[0], running[1], momentum=0.1, eps=1e-5)
    options = {"stride": stride, "shared": shared, "momentum": 0.1, "eps": 1e-5}
    return joint(raw, weight, bias, filters, running[2], running[3], residual, **options)


def _by_triton(*arguments, tiles=tiles_of):
    def joint(raw, weight, bias, filters, *rest, **options):
        chosen = tiles(*filters.shape[:2], filters.element_size())
        return norm_relu_convolution_triton(raw, weight, bias, filters, *rest, tiles=chosen, **options)

    return _through(with_statistics_triton, joint, *arguments)


def _by_cudnn(*arguments):
    return _through(with_statistics_triton, norm_relu_convolution_cudnn, *arguments)


def _by_default(*arguments):
    def joint(*a, **options):
        return norm_relu_convolution(*a[:-1], residual=a[-1], **options)

    return _through(with_statistics, joint, *arguments)


def _by_tma(*arguments):
    """Compiled: the choice of tiles asks for the device."""
    with switched(tma=True):
        return torch.compile(_by_default, backend="aot_eager", fullgraph=True)(*arguments)


def _close(ours, theirs, tolerance, what):
    """Within ``tolerance`` of the largest value: gradients are differences of sums."""
    scale = float(theirs.detach().abs().max()) + 1e-6
    assert float((ours.detach().double() - theirs.detach()).abs().max()) <= tolerance * scale, what


def _compare(run, inputs, *, stride=1, shared=False, tolerance=None, used=("out", "read"), sums=1e-5):
    """Values, statistics and all gradients against float64. used: which of the results the loss depends on. sums: how
    far the mean may be from that of what is stored; the variance ten times as far."""
    leaves, running = inputs
    dtype = leaves[0].dtype
    tolerance = tolerance or TOLERANCE[dtype]
    exact, exact_running = _copies(leaves, torch.float64), [v.double() for v in running]
    exact_read, exact_out = _plainly(exact, exact_running, stride)
    raw, read = run(leaves, running, stride, shared)
    assert (read is not None) == shared
    generator = torch.Generator().manual_seed(7)

    def factor(like):
        return torch.randn(like.shape, generator=generator).to(like)

    for_out, for_read = factor(raw.x), factor(raw.x.new_empty(exact_read.shape))
    loss = exact_loss = 0
    if "out" in used:
        loss, exact_loss = (raw.x * for_out).sum(dtype=torch.float32), (exact_out * for_out).sum()
    if shared and "read" in used:
        loss = loss + (read * for_read).sum(dtype=torch.float32)
        exact_loss = exact_loss + (exact_read * for_read).sum()
    loss.backward()
    exact_loss.backward()
    assert raw.x.dtype == dtype
    _close(raw.x, exact_out, 2 * tolerance, "out")
    _close(raw.mean, raw.x.double().mean((0, 2, 3)), sums, "mean")
    var = raw.x.double().var((0, 2, 3), correction=0)
    _close(raw.rstd, (var + 1e-5).rsqrt(), 10 * sums, "rstd")
    for ours, theirs in zip(running, exact_running, strict=True):
        _close(ours, theirs, max(2 * tolerance, 1e-5), "running statistics")
    for name, ours, theirs in zip(("x", "weight", "bias", "filters", "residual"), leaves, exact, strict=True):
        if theirs is not None and theirs.grad is None:
            assert ours.grad is None, name
        elif theirs is not None:
            assert ours.grad.dtype == ours.dtype
            _close(ours.grad, theirs.grad, 6 * tolerance, f"gradient of {name}")


CASES = [(residual, stride, shared) for residual in (False, True) for stride in (1, 2) for shared in (False, True)]
# Each case once, and each type with both values of each flag: all of them for each type would take a minute.
INTERPRETED = [
    (torch.float32, False, 1, False), (torch.float32, True, 2, True), (torch.float32, True, 1, True),
    (torch.bfloat16, False, 1, True), (torch.bfloat16, True, 2, False), (torch.bfloat16, False, 2, False),
    (torch.float16, False, 2, True), (torch.float16, True, 1, False),
]  # fmt: skip


@pytest.mark.parametrize(("residual", "stride", "shared"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_equals_pytorch(dtype, residual, stride, shared):
    _compare(_by_default, _inputs(dtype, residual=residual), stride=stride, shared=shared)


@pytest.mark.interpreter
@pytest.mark.parametrize(("dtype", "residual", "stride", "shared"), INTERPRETED)
def test_triton_equals_pytorch(dtype, residual, stride, shared):
    """On the CPU the kernels run in Triton's interpreter; two tiles of rows, the second one partial."""
    inputs = _inputs(dtype, shape=(2, 20, 11, 7), residual=residual)
    _compare(_by_triton, inputs, stride=stride, shared=shared)


@pytest.fixture
def in_pytorch(monkeypatch):
    """cuDNN's graphs are computed by PyTorch; which of them were."""
    seen = []
    monkeypatch.setattr(convolution_cudnn, "plan_of", lambda *a: seen.append(a[0]) or PlanInPyTorch(*a))
    return seen


@pytest.mark.interpreter
@pytest.mark.parametrize(("dtype", "residual", "stride", "shared"), INTERPRETED)
def test_graphs_of_cudnn_equal_pytorch(dtype, residual, stride, shared, in_pytorch):
    inputs = _inputs(dtype, shape=(2, 64, 5, 7), columns=72, residual=residual)
    _compare(_by_cudnn, inputs, stride=stride, shared=shared)
    forward, *gradient = in_pytorch
    assert forward == ((2, 64, 5, 7), 72, 3, stride, False, False, False)
    assert gradient == ([] if stride > 1 else [((2, 64, 5, 7), 72, 3, 1, True, shared, residual)])


@pytest.mark.interpreter
def test_layers_that_cudnn_has_no_native_kernel_for_compute_the_same(in_pytorch):
    for channels, columns in ((64, 33), (32, 64)):
        _compare(_by_cudnn, _inputs(torch.float32, shape=(2, channels, 3, 3), columns=columns), shared=True)
    assert not in_pytorch


@pytest.mark.interpreter
def test_shifted_sums_keep_the_digits_of_a_variance_beside_a_large_mean(in_pytorch):
    leaves, running = _inputs(torch.float32, shape=(2, 64, 5, 7), columns=64, residual=False)
    with torch.no_grad():
        leaves[2] += 1000
        leaves[3].abs_()
        running[2] += _by_cudnn(leaves, [v.clone() for v in running], 1, False)[0].mean - running[2]
    raw, _ = _by_cudnn(leaves, running, 1, False)
    expected = (raw.x.detach().double().var((0, 2, 3), correction=0) + 1e-5).rsqrt()
    torch.testing.assert_close(raw.rstd.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.interpreter
@pytest.mark.parametrize(("residual", "stride", "used"), [
    (False, 1, "read"), (True, 1, "read"), (True, 1, "out"), (True, 2, "out"),
])  # fmt: skip
def test_one_of_the_results_may_be_left_unused(residual, stride, used):
    inputs = _inputs(torch.float32, residual=residual)
    _compare(_by_triton, inputs, stride=stride, shared=True, used=(used,))


@pytest.mark.interpreter
@settings(max_examples=6, deadline=None)
@given(
    st.integers(1, 2), st.sampled_from([1, 3, 16, 40]), st.integers(2, 5), st.integers(3, 6),
    st.sampled_from([1, 2, 17, 130]), st.sampled_from([1, 3, 5]), st.integers(1, 3), st.booleans(), st.booleans(),
    st.integers(0, 1000),
)  # fmt: skip
@example(1, 3, 2, 3, 2, 5, 1, True, True, 0)
@example(1, 40, 3, 3, 17, 1, 1, False, True, 0)
def test_triton_on_any_shape(count, channels, height, width, columns, size, stride, residual, shared, seed):
    """Filters wider than the image, channels that fill no block, and channels that fill more than one."""
    shape = (count, channels, height, width)
    inputs = _inputs(torch.float32, shape=shape, columns=columns, size=size, residual=residual, seed=seed)
    if ((height - 1) // stride + 1) * ((width - 1) // stride + 1) * count == 1:
        return
    # Few values have a small variance now and then, which magnifies rounding.
    _compare(_by_triton, inputs, stride=stride, shared=shared, tolerance=1e-3)


@pytest.mark.interpreter
@pytest.mark.parametrize("shared", [False, True])
def test_layers_left_to_cudnn_compute_the_same(shared):
    assert tiles_of(512, 64, 4) is tiles_of(64, 512, 4) is None
    _compare(partial(_by_triton, tiles=lambda *_: None), _inputs(torch.float32), shared=shared)


@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_fit_into_the_shared_memory_of_small_gpus(itemsize):
    """101,376 bytes a program: compute capabilities 8.6, 8.9 and 12.0 (CUDA programming guide)."""
    for columns, depth in product([16, 64, 96, 128], [16, 64, 128]):
        for tile in tiles_of(columns, depth, itemsize):
            loads = tile.block_k * (tile.block_m + tile.block_n)
            assert tile.num_stages * loads * itemsize <= 101_376


@pytest.mark.interpreter
@pytest.mark.parametrize("stride", [1, 2])
def test_tiles_of_several_depths(stride):
    """Each tap in several steps, channels in several columns of programs, rows in many chunks."""
    tile = Tile(16, 16, 16, num_warps=4, num_stages=2)
    run = partial(_by_triton, tiles=lambda *_: Tiles(tile, tile))
    _compare(run, _inputs(torch.float32, shape=(1, 20, 5, 7), columns=17), stride=stride, shared=True)


# Three strips an image, two images and one a program; an image a strip; channels in two steps, and in two blocks of
# columns, strips of two rows.
TMA_TILES = [
    ((3, 64, 12, 4), 64, Tile(16, 64, 64, 4, 2, programs=2)),
    ((1, 16, 4, 4), 32, Tile(16, 16, 16, 4, 2, programs=132)),
    ((2, 32, 8, 8), 32, Tile(16, 16, 16, 4, 2, programs=3)),
]


@pytest.mark.interpreter
@pytest.mark.parametrize(("shape", "columns", "tile"), TMA_TILES)
@pytest.mark.parametrize(("dtype", "residual", "shared"), [
    (torch.float32, True, True), (torch.bfloat16, False, True), (torch.bfloat16, True, False),
    (torch.float16, False, False),
])  # fmt: skip
def test_tiles_by_tma_equal_pytorch(dtype, residual, shared, shape, columns, tile):
    inputs = _inputs(dtype, shape=shape, columns=columns, residual=residual)
    _compare(partial(_by_triton, tiles=lambda *_: Tiles(tile, tile)), inputs, shared=shared)


def test_tiles_by_tma_are_of_a_switch_and_of_devices_that_have_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for major in (8, 9, 10):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, major=major: (major, 0))
        reason = convolution_tma.why_not(torch.device("cuda"))
        assert (reason is None) == (major == 9)
        assert reason is None or "compute capability 9.0" in reason

    def tiles(channels=64, columns=64, side=32, stride=1, dtype=torch.bfloat16):
        x = torch.empty(2, channels, side, side, dtype=dtype, device="meta")
        return convolution_tma.tiles_by_tma(x, torch.empty(columns, channels, 3, 3, dtype=dtype), stride)

    monkeypatch.setattr(convolution_tma, "why_not", lambda device: None)
    assert tiles() is None
    with switched(tma=True):
        assert all(tile.programs for made in (tiles(), tiles(128, 128, 16), tiles(64, 128)) for tile in made)
        others = ({"channels": 32}, {"columns": 256}, {"side": 28}, {"side": 8}, {"stride": 2})
        assert not any(tiles(**other) for other in (*others, {"dtype": torch.float32}))
        monkeypatch.setattr(convolution_tma, "why_not", lambda device: "it is another")
        assert tiles() is None


@pytest.mark.interpreter
def test_a_border_reads_no_neighbouring_image():
    """An image of ones beside two of NaN."""
    x = torch.full((3, 16, 4, 4), float("nan")).contiguous(memory_format=torch.channels_last)
    x[1] = 1
    filters = torch.ones(16, 16, 3, 3).contiguous(memory_format=torch.channels_last)
    out, _ = convolution_op(x, filters, 1, Tile(16, 16, 16, 4, 2, programs=2))
    assert torch.equal(out[1], F.conv2d(x[1:2], filters, padding=1)[0])


@pytest.mark.interpreter
def test_a_large_mean_does_not_cost_the_variance():
    """Means of chunks are joined, not squares: 1,000 beside a variance of 1 leaves the digits of float32."""
    leaves, running = _inputs(torch.float32, residual=False)
    with torch.no_grad():
        leaves[2] += 1000
        leaves[3].abs_()
    raw, _ = _by_triton(leaves, running, 1, False)
    inner = raw.x.detach().double()
    torch.testing.assert_close(raw.mean.double(), inner.mean((0, 2, 3)), rtol=3e-7, atol=0)
    expected = (inner.var((0, 2, 3), correction=0) + 1e-5).rsqrt()
    torch.testing.assert_close(raw.rstd.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.interpreter
def test_the_last_norm_of_a_network():
    """`normalise` is what is left of batch_norm once the statistics are there, gradients through them included."""
    for relu in (False, True):
        for run in (normalise, lambda raw, w, b, *, residual, relu: normalise_triton(raw, w, b, residual, relu=relu)):
            leaves, running = _inputs(torch.float32)
            exact = _copies(leaves, torch.float64)
            statistics = with_statistics if run is normalise else with_statistics_triton
            raw = statistics(leaves[0], *running[:2], momentum=0.1, eps=1e-5)
            y = run(raw, leaves[1], leaves[2], residual=leaves[4], relu=relu)
            normed = F.batch_norm(exact[0], None, None, exact[1], exact[2], training=True, eps=1e-5) + exact[4]
            expected = normed.relu() if relu else normed
            _close(y, expected, 3e-5, "y")
            factor = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
            (y * factor).sum().backward()
            (expected * factor).sum().backward()
            for place in (0, 1, 2, 4):
                _close(leaves[place].grad, exact[place].grad, 1e-4, place)


@pytest.mark.interpreter
def test_results_repeat_bit_for_bit():
    runs = []
    for _ in range(2):
        leaves, running = _inputs(torch.bfloat16)
        raw, read = _by_triton(leaves, running, 1, True)
        (raw.x.float().square().sum() + read.float().sum()).backward()
        runs.append([*raw, read, *running, *(leaf.grad for leaf in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.interpreter
def test_plain_memory_is_taken_too():
    results = []
    for plain in (False, True):
        leaves, running = _inputs(torch.float32)
        if plain:
            leaves = [leaf.detach().contiguous().requires_grad_() for leaf in leaves]
        raw, read = _by_triton(leaves, running, 1, True)
        (raw.x.square().sum() + read.sum()).backward()
        results.append([raw.x, read, *(leaf.grad for leaf in leaves)])
    assert results[1][0].is_contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.interpreter
def test_nan_is_not_hidden():
    leaves, running = _inputs(torch.float32, residual=False)
    with torch.no_grad():
        leaves[0][0, 1, 2, 2] = float("nan")
    raw, _ = _by_triton(leaves, running, 1, False)
    assert raw.mean.isnan().all()


@pytest.mark.interpreter
@pytest.mark.parametrize(("run", "channels"), [(_by_triton, 20), (_by_cudnn, 64)])
def test_torch_compile_keeps_it_whole(run, channels, in_pytorch):
    """One graph without breaks, and the values of the eager run, running statistics included; y shared and not."""

    def network(leaves, running):
        raw, read = run(leaves, running, 2, True)
        alone, _ = run(leaves, running, 1, False)
        return raw.x.square().sum() + read.sum() + alone.x.sum()

    eager = _inputs(torch.float32, shape=(2, channels, 3, 4), columns=channels)
    compiled = _copies(eager[0]), [v.clone() for v in eager[1]]
    network(*eager).backward()
    torch.compile(network, backend="aot_eager", fullgraph=True)(*compiled).backward()
    for ours, theirs in zip(compiled[1], eager[1], strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(compiled[0], eager[0], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.interpreter
def test_operators_keep_their_contracts(in_pytorch):
    """Fake and real results agree in shape, type and strides; nothing but what is declared is changed."""
    (x, weight, bias, filters, residual), running = _inputs(torch.float16)
    x, weight, bias, filters, residual = (t.detach() for t in (x, weight, bias, filters, residual))
    checks, tiles = ("test_schema", "test_faketensor"), tiles_of(*filters.shape[:2], filters.element_size())
    for stride in (1, 2):
        torch.library.opcheck(convolution_op, (x, filters, stride, tiles.forward), test_utils=checks)
    dout, _ = convolution_op(x, filters, 1, tiles.forward)
    raw = with_statistics_triton(x, *running[:2], momentum=0.1, eps=1e-5)
    for dy2, y in ((None, None), (residual, None), (residual, x)):
        arguments = (dout, filters, dy2, x, y, raw.mean, raw.rstd, weight, bias, tiles.gradient)
        torch.library.opcheck(data_gradients_op, arguments, test_utils=checks)
        torch.library.opcheck(convolution_cudnn.data_gradients_op, arguments[:-1], test_utils=checks)
    for stride in (1, 2):
        arguments = (x, filters, running[2], stride)
        torch.library.opcheck(convolution_cudnn.convolution_op, arguments, test_utils=checks)


@pytest.mark.parametrize("change", [
    dict(filters=torch.zeros(33, 19, 3, 3)),
    dict(filters=torch.zeros(33, 20, 2, 2)),
    dict(filters=torch.zeros(33, 20, 3, 1)),
    dict(filters=torch.zeros(33, 20, 3, 3, dtype=torch.bfloat16)),
    dict(weight=torch.zeros(19)),
    dict(running_var=torch.zeros(20)),
    dict(residual=torch.zeros(3, 20, 11, 8)),
    dict(stride=0),
    dict(stride=11, raw=Raw(torch.zeros(1, 20, 11, 7), torch.zeros(20), torch.zeros(20)), residual=None),
    dict(filters=torch.zeros(())),
    dict(filters=torch.zeros(0, 20, 3, 3), running_mean=torch.zeros(0), running_var=torch.zeros(0)),
    dict(bias=torch.zeros(40)[::2]),
    dict(running_mean=torch.zeros(66)[::2]),
    dict(raw=Raw(torch.zeros(3, 20, 11, 7), torch.zeros(40)[::2], torch.zeros(20))),
    dict(raw=Raw(torch.zeros(3, 20), torch.zeros(20), torch.zeros(20))),
    dict(raw=Raw(torch.zeros(3, 20, 11, 7), torch.zeros(20), torch.zeros(20, dtype=torch.float64))),
])  # fmt: skip
def test_bad_inputs(change):
    (x, weight, bias, filters, residual), running = _inputs(torch.float32)
    arguments = {
        "raw": with_statistics(x, *running[:2]), "weight": weight, "bias": bias, "filters": filters,
        "running_mean": running[2], "running_var": running[3], "residual": residual,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"must be|must leave"):
        norm_relu_convolution(**{**arguments, **change})


def test_an_image_beyond_32_bits_is_refused():
    x = torch.empty(1, 64, 5000, 5000, device="meta")
    vector, out = torch.empty(64, device="meta"), torch.empty(8, device="meta")
    with pytest.raises(ValueError, match="has more than 1,073,741,824 values"):
        norm_relu_convolution(Raw(x, vector, vector), vector, vector, torch.empty(8, 64, 3, 3, device="meta"), out, out)


@pytest.mark.gpu
@pytest.mark.parametrize(("residual", "stride", "shared"), CASES)
@pytest.mark.parametrize(("shape", "columns", "size"), [
    ((64, 64, 32, 32), 64, 3), ((64, 64, 32, 32), 128, 3), ((64, 128, 16, 16), 128, 3), ((32, 128, 16, 16), 64, 1),
    ((7, 20, 11, 7), 33, 3),
])  # fmt: skip
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpu_equals_pytorch(dtype, shape, columns, size, residual, stride, shared, monkeypatch):
    # cuDNN would compute gradients in TF32.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    inputs = _inputs(dtype, shape=shape, columns=columns, size=size, residual=residual, device="cuda")
    _compare(_by_default, inputs, stride=stride, shared=shared)


def _skip_without_tma():
    reason = convolution_tma.why_not(torch.device("cuda"))
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.gpu
@pytest.mark.parametrize(("residual", "shared"), list(product([False, True], repeat=2)))
@pytest.mark.parametrize(("shape", "columns"), [
    ((67, 64, 32, 32), 64), ((67, 128, 16, 16), 128), ((5, 64, 32, 32), 128),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gpu_tiles_by_tma_equal_pytorch(dtype, shape, columns, residual, shared):
    """67 images of layer1 are more tiles than programs."""
    _skip_without_tma()
    inputs = _inputs(dtype, shape=shape, columns=columns, residual=residual, device="cuda")
    with switched(tma=True):
        _compare(_by_default, inputs, shared=shared)


def _skip_without_cudnn():
    reason = convolution_cudnn.why_not(torch.device("cuda"), torch.bfloat16)
    if reason is not None:
        pytest.skip(f"cuDNN's graphs: {reason}")


@pytest.mark.gpu
@pytest.mark.parametrize(("residual", "stride", "shared"), CASES)
@pytest.mark.parametrize(("channels", "columns", "size"), [(64, 64, 3), (64, 128, 3), (128, 64, 1)])
def test_gpu_graphs_of_cudnn_equal_pytorch(channels, columns, size, residual, stride, shared):
    """Twice: the second run finds its plans chosen."""
    _skip_without_cudnn()
    for _ in range(2):
        options = {"columns": columns, "size": size, "residual": residual, "device": "cuda"}
        inputs = _inputs(torch.bfloat16, shape=(64, channels, 16, 16), **options)
        _compare(_by_cudnn, inputs, stride=stride, shared=shared, sums=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("by", [_by_default, _by_cudnn, _by_tma])
def test_gpu_replays_in_a_graph(by):
    """Captured, forward and backward; a replay reads what its inputs hold by then and moves the statistics."""
    if by is _by_cudnn:
        _skip_without_cudnn()
    if by is _by_tma:
        _skip_without_tma()
    shape = (32, 64, 16, 16)
    leaves, running = _inputs(torch.bfloat16, shape=shape, columns=64, device="cuda")

    def run(leaves, running):
        raw, read = by(leaves, running, 1, True)
        return torch.autograd.grad(raw.x.float().square().sum() + read.float().sum(), leaves)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(leaves, running)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with no_garbage_collection(), torch.cuda.graph(graph):
        captured = run(leaves, running)
    with torch.no_grad():
        leaves[0].mul_(1.5).add_(0.25)
        for tensor in running:
            tensor.fill_(1)
    eager = _copies(leaves), [v.clone() for v in running]
    graph.replay()
    expected = run(*eager)
    # The gradient of the filters is cuDNN's, which may sum in another order.
    for ours, theirs in zip(captured, expected, strict=True):
        _close(ours, theirs.double(), 1e-2, "gradient")
    for ours, theirs in zip(running, eager[1], strict=True):
        torch.testing.assert_close(ours, theirs)
