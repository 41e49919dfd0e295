import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fast_train.kernels.augment import augment, normalisation_table
from fast_train.kernels.augment_cpu import augment_cpu
from fast_train.kernels.augment_reference import augment_reference, crop_offsets
from fast_train.kernels.philox import STREAM_COLOUR, STREAM_CUTOUT, below, sample_words
from fast_train.kernels.spec import NO_AUGMENT, AugmentSpec
from fast_train.kernels.switches import switched
from fast_train.pipeline.engine.graph import no_garbage_collection

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

specs = st.builds(
    AugmentSpec,
    pad=st.integers(0, 8),
    pad_mode=st.sampled_from(["zero", "reflect"]),
    flip=st.booleans(),
    flip_mode=st.sampled_from(["random", "alternating"]),
    cutout=st.integers(0, 12),
    brightness=st.sampled_from([0.0, 0.1, 1.0]),
    contrast=st.sampled_from([0.0, 0.13, 1.0]),
)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def _images(count, height, width, channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, height, width, channels)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def _table(channels, dtype=torch.float32):
    return normalisation_table([0.4] * channels, [0.2 + 0.01 * c for c in range(channels)], dtype)


def _plainly(image, index, table, spec, seed, epoch):
    """One image, by NumPy's pad, slices and loops: nothing of the reference but its random numbers."""
    size = image.shape[:2]
    dy, dx, flip = (int(v) for v in crop_offsets(torch.tensor([index]), spec=spec, seed=seed, epoch=epoch))
    mode = {"zero": "constant", "reflect": "reflect"}[spec.pad_mode]
    padded = np.pad(image, ((spec.pad, spec.pad), (spec.pad, spec.pad), (0, 0)), mode=mode)
    window = padded[dy : dy + size[0], dx : dx + size[1]]
    window = window[:, ::-1] if flip else window
    words = sample_words(seed, epoch, torch.tensor([index]), STREAM_COLOUR)
    for pivot, spread, word in ((0, spec.brightness, words[0]), (128, spec.contrast, words[1])):
        # Sixteen bits behind the point; halves are rounded up.
        factor = 2**16 - round(spread * 2**16) + int(below(word, 2 * round(spread * 2**16) + 1))
        moved = pivot + np.floor((window.astype(float) - pivot) * factor / 2**16 + 0.5)
        window = moved.clip(0, 255).astype(np.uint8)
    out = np.stack([table.float().numpy()[window[..., c], c] for c in range(image.shape[2])])
    if spec.cutout:
        r0, r1, _, _ = sample_words(seed, epoch, torch.tensor([index]), STREAM_CUTOUT)
        top, left = (int(below(r, n)) - spec.cutout // 2 for r, n in zip((r0, r1), size, strict=True))
        out[:, max(top, 0) : max(top + spec.cutout, 0), max(left, 0) : max(left + spec.cutout, 0)] = 0
    return torch.from_numpy(out)


@settings(max_examples=60, deadline=None)
@given(
    specs, st.integers(9, 20), st.integers(9, 20), st.sampled_from([1, 3, 4]), st.integers(0, 2**63 - 1),
    st.integers(0, 10_000),
)  # fmt: skip
def test_reference_equals_plain_numpy(spec, height, width, channels, seed, epoch):
    images, table = _images(5, height, width, channels, seed % 1000), _table(channels)
    indices = torch.tensor([3, 70_000, 0, 2**32 - 1, 3])
    arguments = dict(spec=spec, seed=seed, epoch=torch.tensor(epoch), gather=False)
    out = augment_reference(images, indices, table, **arguments)
    for i, index in enumerate(indices.tolist()):
        assert torch.equal(out[i], _plainly(images[i].numpy(), index, table, spec, seed, epoch))


@settings(max_examples=100, deadline=None)
@given(
    specs, st.tuples(st.integers(9, 20), st.integers(9, 20), st.sampled_from([1, 3, 4])), dtypes,
    st.integers(0, 2**63 - 1),
)  # fmt: skip
def test_the_cpu_equals_the_reference_to_the_last_bit(spec, shape, dtype, seed):
    _compare(augment_cpu, "cpu", spec, dtype, seed, count=70, shape=shape)


@pytest.mark.interpreter
@settings(max_examples=12, deadline=None)
@given(specs, dtypes, st.integers(0, 2**63 - 1), st.booleans(), st.sampled_from([1, 3, 4]))
@example(AugmentSpec(pad=8, pad_mode="reflect", flip=True, cutout=12), torch.float16, 2**40, True, 3)
@example(AugmentSpec(pad=4, flip=True, flip_mode="alternating"), torch.bfloat16, 2**63 - 1, False, 3)
@example(AugmentSpec(pad=2, brightness=0.07, contrast=0.13), torch.bfloat16, 3, False, 1)
def test_triton_equals_reference_to_the_last_bit(spec, dtype, seed, shared_table, channels):
    """On the CPU the kernel runs in Triton's interpreter, two programs an image; the same on the GPU is below."""
    from fast_train.kernels.augment_triton import augment_triton

    with switched(shared_table=shared_table):
        _compare(augment_triton, "cpu", spec, dtype, seed, count=2, shape=(18, 23, channels))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", [
    NO_AUGMENT, AugmentSpec(pad=4, flip=True), AugmentSpec(pad=8, pad_mode="reflect", flip=True, cutout=12),
    AugmentSpec(cutout=5), AugmentSpec(flip=True), AugmentSpec(pad=2, flip=True, flip_mode="alternating"),
    AugmentSpec(pad=2, brightness=0.07, contrast=0.13), AugmentSpec(contrast=1.0), AugmentSpec(brightness=1.0),
])  # fmt: skip
@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 31, 1), (64, 48, 4)])
@pytest.mark.parametrize("shared_table", [False, True])
def test_gpu_triton_equals_reference_to_the_last_bit(shape, spec, dtype, shared_table):
    from fast_train.kernels.augment_triton import augment_triton

    with switched(shared_table=shared_table):
        _compare(augment_triton, "cuda", spec, dtype, seed=2**40 + 17, count=1000, shape=shape)


def _compare(implementation, device, spec, dtype, seed, count, shape):
    split = _images(2 * count, *shape, seed=seed % 1000).to(device)
    indices = torch.randperm(2 * count, generator=torch.Generator().manual_seed(seed % 1000))[:count].to(device)
    epoch = torch.tensor(seed % 977, device=device)
    table = _table(shape[2], dtype).to(device)
    for gather in (True, False):
        images = split if gather else split[indices].contiguous()
        arguments = dict(spec=spec, seed=seed, epoch=epoch, gather=gather)
        expected = augment_reference(images, indices, table, **arguments)
        out = implementation(images, indices, table, **arguments)
        assert out.dtype == dtype
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(out, expected)


@pytest.mark.gpu
def test_gpu_replay_of_a_captured_graph_reads_the_new_epoch():
    images, indices = _images(64, 32, 32, 3).cuda(), torch.arange(64, device="cuda")
    table, epoch, spec = _table(3).cuda(), torch.tensor(0, device="cuda"), AugmentSpec(pad=4, flip=True)
    augment(images, indices, table, spec=spec, seed=1, epoch=epoch)
    graph = torch.cuda.CUDAGraph()
    with no_garbage_collection(), torch.cuda.graph(graph):
        out = augment(images, indices, table, spec=spec, seed=1, epoch=epoch)
    for value in (3, 4):
        epoch.fill_(value)
        graph.replay()
        assert torch.equal(out, augment(images, indices, table, spec=spec, seed=1, epoch=value))


def test_gather_equals_a_batch_taken_beforehand():
    split, table, spec = _images(300, 32, 32, 3), _table(3), AugmentSpec(pad=4, flip=True, cutout=8)
    indices = torch.randperm(300)[:64]
    gathered = augment(split, indices, table, spec=spec, seed=3, epoch=9, gather=True)
    taken = augment(split[indices], indices, table, spec=spec, seed=3, epoch=9)
    assert torch.equal(gathered, taken)
    assert gathered.is_contiguous(memory_format=torch.channels_last)


def test_a_sample_does_not_depend_on_its_batch():
    split, table, spec = _images(100, 16, 16, 3), _table(3), AugmentSpec(pad=4, flip=True, cutout=6)
    indices = torch.arange(100)
    whole = augment(split, indices, table, spec=spec, seed=11, epoch=2)
    for size in (1, 7, 64):
        parts = [augment(split[i], i, table, spec=spec, seed=11, epoch=2) for i in indices.split(size)]
        assert torch.equal(torch.cat(parts), whole)
    backwards = augment(split.flip(0), indices.flip(0), table, spec=spec, seed=11, epoch=2)
    assert torch.equal(backwards.flip(0), whole)


def test_seed_and_epoch_change_the_crops():
    indices, spec = torch.arange(1000), AugmentSpec(pad=4, flip=True)
    draws = [crop_offsets(indices, spec=spec, seed=s, epoch=e) for s, e in [(0, 0), (0, 1), (1, 0)]]
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        same = sum(torch.equal(x, y) for x, y in zip(draws[a], draws[b], strict=True))
        assert same == 0


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (123456789, 41)])
def test_crops_are_uniform_over_all_positions(seed, epoch):
    """Chi-squared on 100,000 draws over 81 positions x flip: 161 degrees of freedom, p = 0.999 at 221."""
    indices = torch.arange(100_000)
    dy, dx, flip = crop_offsets(indices, spec=AugmentSpec(pad=4, flip=True), seed=seed, epoch=epoch)
    counts = torch.bincount((dy * 9 + dx) * 2 + flip, minlength=162).double()
    expected = 100_000 / 162
    assert float(((counts - expected) ** 2 / expected).sum()) < 221
    neighbours = float(((dy[1:] == dy[:-1]) & (dx[1:] == dx[:-1])).double().mean())
    assert neighbours == pytest.approx(1 / 81, abs=0.0015)  # four standard deviations


def test_alternating_flips_show_each_image_from_both_sides_in_turn():
    """Odd epochs mirror even ones, for every image and in any batch; epoch 0 is as random flipping's."""
    images, indices, table = _images(500, 12, 12, 3), torch.arange(500), _table(3)
    spec = AugmentSpec(flip=True, flip_mode="alternating")

    def show(epoch, chosen=indices, spec=spec):
        return augment(images[chosen], chosen, table, spec=spec, seed=21, epoch=torch.tensor(epoch))

    first = show(0)
    for epoch in range(1, 5):
        assert torch.equal(show(epoch), first.flip(3) if epoch % 2 else first)
    assert torch.equal(first, show(0, spec=AugmentSpec(flip=True)))
    some = torch.tensor([77, 3, 499])
    assert torch.equal(show(3, some), show(3)[some])
    mirrored = crop_offsets(torch.arange(100_000), spec=spec, seed=21, epoch=0)[2].double().mean()
    assert float(mirrored) == pytest.approx(0.5, abs=0.007)  # four standard deviations


def test_alternating_flips_leave_the_crops_as_they_are():
    indices = torch.arange(1000)
    for epoch in (0, 5):
        random, alternating = (
            crop_offsets(indices, spec=AugmentSpec(pad=4, flip=True, flip_mode=mode), seed=2, epoch=epoch)
            for mode in ("random", "alternating")
        )
        assert torch.equal(random[0], alternating[0])
        assert torch.equal(random[1], alternating[1])


def test_cutout_covers_every_place():
    """Its centre is uniform, so an inner pixel is covered with probability side² / area."""
    images = torch.full((20_000, 16, 16, 1), 255, dtype=torch.uint8)
    spec = AugmentSpec(cutout=4)
    out = augment(images, torch.arange(20_000), _table(1), spec=spec, seed=0, epoch=0)
    share = (out == 0).double().mean(dim=0)[0]
    assert share[2:-2, 2:-2].numpy() == pytest.approx(16 / 256, abs=0.008)


def test_brightness_scales_all_bytes_of_an_image_and_contrast_their_distance_from_mid_grey():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(2000, 16, 16, 1).contiguous()
    # Byte b comes out as b.
    table = torch.arange(256.0)[:, None]

    def changed(**spec):
        return augment(levels, torch.arange(2000), table, spec=AugmentSpec(**spec), seed=5, epoch=1).view(2000, 256)

    for spread, pivot, out in ((0.2, 0, changed(brightness=0.2)), (0.3, 128, changed(contrast=0.3))):
        assert bool((out[:, pivot] == pivot).all())
        factors = (out[:, 200] - pivot) / (200 - pivot)
        assert factors.aminmax() == pytest.approx((1 - spread, 1 + spread), abs=0.01)
        assert float(factors.mean()) == pytest.approx(1, abs=0.02)
        expected = (pivot + (torch.arange(256) - pivot) * factors[:, None]).clamp(0, 255)
        assert float((out - expected).abs().max()) < 3


def test_table_is_the_rounded_quotient():
    table = normalisation_table(MEAN, STD, torch.float32)
    expected = (np.arange(256)[:, None] / 255 - np.array(MEAN)) / np.array(STD)
    assert np.array_equal(table.numpy(), expected.astype(np.float32))
    assert normalisation_table(MEAN, STD, torch.bfloat16).dtype == torch.bfloat16


def test_empty_batch():
    out = augment(_images(0, 8, 8, 3), torch.empty(0, dtype=torch.int64), _table(3), spec=NO_AUGMENT, seed=0, epoch=0)
    assert out.shape == (0, 3, 8, 8)


@pytest.mark.parametrize("arguments", [
    dict(pad=9), dict(pad=-1), dict(pad_mode="wrap"), dict(flip_mode="sometimes"), dict(cutout=-2),
    dict(brightness=1.5), dict(contrast=-0.1),
])  # fmt: skip
def test_bad_spec(arguments):
    with pytest.raises(ValueError, match=r"give|choose"):
        AugmentSpec(**arguments)


@pytest.mark.parametrize("change", [
    dict(images=torch.zeros(4, 8, 8, 3)),
    dict(images=torch.zeros(5, 8, 8, 3, dtype=torch.uint8)),
    dict(images=torch.zeros(4, 3, 8, 8, dtype=torch.uint8).permute(0, 2, 3, 1)),
    dict(indices=torch.zeros(4, dtype=torch.int32)),
    dict(indices=torch.arange(8)[::2]),
    dict(table=torch.zeros(256, 1)),
    dict(table=torch.zeros(3, 256).T),
    dict(seed=-1),
    dict(spec=AugmentSpec(pad=8, pad_mode="reflect")),
])  # fmt: skip
def test_bad_inputs(change):
    arguments = dict(images=_images(4, 8, 8, 3), indices=torch.arange(4), table=_table(3), spec=NO_AUGMENT, seed=0)
    arguments.update(change)
    images, indices, table = (arguments.pop(k) for k in ("images", "indices", "table"))
    with pytest.raises(ValueError, match=r"must|needs|out of range|images for|too small"):
        augment(images, indices, table, epoch=0, **arguments)


def test_bad_table():
    with pytest.raises(ValueError, match="std above 0"):
        normalisation_table([0.5], [0.0], torch.float32)
    with pytest.raises(ValueError, match="cannot augment"):
        normalisation_table([0.5], [0.5], torch.float64)
