from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from torchvision.transforms import RandomErasing, RandomResizedCrop

from fast_train.kernels.augment import normalisation_table
from fast_train.kernels.resample import resampling
from fast_train.kernels.resized_crop import Ragged, resized_crop
from fast_train.kernels.resized_crop_cpu import resized_crop_cpu
from fast_train.kernels.resized_crop_reference import (
    change_colours,
    crop_boxes,
    erased_boxes,
    resize_one_axis,
    resized_crop_reference,
)
from fast_train.kernels.spec import UNIT, CropSpec

LONGEST = 70
fractions = st.sampled_from([0.0, 0.4, 1.0])
specs = st.builds(
    CropSpec,
    size=st.integers(1, 40),
    scale=st.sampled_from([None, (0.08, 1.0), (0.5, 0.5)]),
    ratio=st.sampled_from([(3 / 4, 4 / 3), (0.2, 6.0)]),
    centre=st.sampled_from([1.0, 0.875, 0.01]),
    flip=st.booleans(),
    brightness=fractions,
    contrast=fractions,
    saturation=fractions,
    erase=st.sampled_from([0.0, 0.5]),
)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
ALL = CropSpec(size=23, scale=(0.08, 1.0), flip=True, brightness=0.4, contrast=0.4, saturation=0.4, erase=0.9)


def _ragged(count, seed=0, channels=3, shortest=1, longest=LONGEST):
    rng = np.random.default_rng(seed)
    heights, widths = (rng.integers(shortest, longest + 1, count).astype(np.int32) for _ in range(2))
    sizes = heights.astype(np.int64) * widths * channels
    data = rng.integers(0, 256, sizes.sum(), dtype=np.uint8)
    return Ragged(*map(torch.from_numpy, (data, np.cumsum(sizes) - sizes, heights, widths)))


def _image(images, i, channels=3):
    height, width, start = int(images.heights[i]), int(images.widths[i]), int(images.offsets[i])
    return images.data[start : start + height * width * channels].view(height, width, channels)


def _bytes_table(channels=3):
    """Values are the bytes themselves."""
    return normalisation_table([0.0] * channels, [1 / 255] * channels, torch.float32)


def _compare(implementation, device, spec, dtype, seed, *, count, channels=3, longest=LONGEST):
    images = Ragged(*(tensor.to(device) for tensor in _ragged(2 * count, seed % 1000, channels, longest=longest)))
    tables = resampling(spec, LONGEST).to(device)
    table = normalisation_table([0.4] * channels, [0.2] * channels, dtype, device)
    indices = torch.randperm(2 * count, generator=torch.Generator().manual_seed(seed % 1000)).to(device)
    for gather in (True, False):
        chosen = indices[:count] if gather else indices * 70_001
        arguments = dict(spec=spec, seed=seed, epoch=torch.tensor(seed % 977, device=device), gather=gather)
        expected = resized_crop_reference(images, chosen, table, tables, **arguments)
        out = implementation(images, chosen, table, tables, **arguments)
        assert out.dtype == dtype
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(out, expected)


@settings(max_examples=30, deadline=None)
@given(specs, dtypes, st.integers(0, 2**63 - 1))
@example(ALL, torch.bfloat16, 2**63 - 1)
def test_the_cpu_equals_the_reference_to_the_last_bit(spec, dtype, seed):
    _compare(resized_crop_cpu, "cpu", spec, dtype, seed, count=5)


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_images_of_other_channels(channels):
    _compare(resized_crop, "cpu", CropSpec(size=9, scale=(0.1, 1.0), flip=True), torch.float32, 3, count=5,
             channels=channels)  # fmt: skip


@pytest.mark.interpreter
@settings(max_examples=1, deadline=None)
@given(specs, dtypes, st.integers(0, 2**63 - 1))
@example(ALL, torch.bfloat16, 2**63 - 1)
@example(CropSpec(size=17, brightness=0.5, saturation=0.5, centre=0.875), torch.float32, 2**40)
def test_triton_equals_reference_to_the_last_bit(spec, dtype, seed):
    """On the CPU the kernels run in Triton's interpreter; the same on the GPU is below."""
    from fast_train.kernels.resized_crop_triton import resized_crop_triton

    # At most two programs an image, of few taps: the interpreter is slow.
    _compare(resized_crop_triton, "cpu", replace(spec, size=min(spec.size, 17)), dtype, seed, count=1, longest=26)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", [
    ALL, CropSpec(size=64, scale=(0.08, 1.0), flip=True), CropSpec(size=33, centre=0.875),
    CropSpec(size=40, scale=(0.3, 1.0), brightness=0.4, saturation=0.4),
])  # fmt: skip
def test_gpu_triton_equals_reference_to_the_last_bit(spec, dtype):
    from fast_train.kernels.resized_crop_triton import resized_crop_triton

    _compare(resized_crop_triton, "cuda", spec, dtype, 2**40 + 17, count=100)


def test_the_result_is_pillows_crop_and_resize():
    """To the last bit; Pillow 13 takes the columns first where the image's shape makes that cheaper."""
    images, spec = _ragged(150), CropSpec(size=24, scale=(0.05, 1.0))
    indices, tables = torch.arange(150), resampling(spec, LONGEST)
    boxes = crop_boxes(images.heights.long(), images.widths.long(), indices, tables, spec=spec, seed=4, epoch=2)
    out = resized_crop(images, indices, _bytes_table(), tables, spec=spec, seed=4, epoch=2)
    rows_first = 0
    for i in range(150):
        top, left, tall, wide = (int(side[i]) for side in boxes)
        crop = _image(images, i)[top : top + tall, left : left + wide].contiguous()
        picture = Image.fromarray(crop.numpy()).resize((24, 24), Image.Resampling.BILINEAR)
        pillows = torch.from_numpy(np.asarray(picture).copy())
        columns_first = resize_one_axis(resize_one_axis(crop, tables, 24).transpose(0, 1), tables, 24).transpose(0, 1)
        same = torch.equal(out[i].permute(1, 2, 0).byte(), pillows)
        assert same or torch.equal(columns_first, pillows)
        rows_first += same
    assert rows_first > 40


def test_crops_are_distributed_as_torchvisions():
    """Two-sample Kolmogorov-Smirnov on 4,000 draws each; its statistic exceeds 0.0436 with probability 0.001."""
    count, height, width, spec = 4000, 60, 90, CropSpec(size=8, scale=(0.08, 1.0))
    heights, widths = torch.full((count,), height), torch.full((count,), width)
    ours = crop_boxes(
        heights, widths, torch.arange(count), resampling(spec, 1), spec=spec, seed=1, epoch=0
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = torch.tensor([
        RandomResizedCrop.get_params(torch.empty(3, height, width), [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)
    ]).unbind(1)  # fmt: skip
    for measure in (
        lambda top, left, tall, wide: tall * wide, lambda top, left, tall, wide: wide / tall,
        lambda top, left, tall, wide: top / (height - tall).clamp_min(1),
        lambda top, left, tall, wide: left / (width - wide).clamp_min(1),
    ):  # fmt: skip
        a, b = (measure(*(side.double() for side in boxes)).sort().values for boxes in (ours, theirs))
        both = torch.cat([a, b])
        distance = torch.searchsorted(a, both, right=True) - torch.searchsorted(b, both, right=True)
        assert float(distance.abs().max()) / count < 0.0436


def test_an_image_that_no_crop_fits_is_cut_in_its_centre():
    spec = CropSpec(size=8, scale=(0.99, 1.0))
    heights, widths = torch.tensor([10, 60, 30]), torch.tensor([60, 10, 30])
    boxes = crop_boxes(heights, widths, torch.arange(3), resampling(spec, 1), spec=spec, seed=0, epoch=0)
    expected = {0: (0, 23, 10, 13), 1: (23, 0, 13, 10)}
    for i, box in expected.items():
        assert tuple(int(side[i]) for side in boxes) == box


def test_evaluation_sees_the_centre():
    spec = CropSpec(size=224, centre=0.875)
    sides = torch.tensor([256]), torch.tensor([340])
    boxes = crop_boxes(*sides, torch.tensor([5]), resampling(spec, 1), spec=spec, seed=0, epoch=0)
    assert tuple(map(int, boxes)) == (16, 58, 224, 224)


def test_a_sample_does_not_depend_on_its_batch():
    images, tables = _ragged(40), resampling(ALL, LONGEST)
    arguments = dict(spec=ALL, seed=11, epoch=2, gather=True)
    whole = resized_crop(images, torch.arange(40), _bytes_table(), tables, **arguments)
    parts = [resized_crop(images, i, _bytes_table(), tables, **arguments) for i in torch.arange(40).split(7)]
    assert torch.equal(torch.cat(parts), whole)
    for change in (dict(seed=12), dict(epoch=3)):
        other = resized_crop(images, torch.arange(40), _bytes_table(), tables, **(arguments | change))
        assert not torch.equal(other, whole)


@pytest.mark.parametrize(("place", "enhance"), [
    (0, ImageEnhance.Brightness), (1, ImageEnhance.Contrast), (2, ImageEnhance.Color),
])  # fmt: skip
@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
def test_colours_change_as_pillows(place, enhance, factor):
    """Pillow cuts off where we round: a level's difference."""
    pixels = _image(_ragged(1, seed=5, shortest=50), 0)
    factors = torch.full((3,), UNIT)
    factors[place] = round(factor * UNIT)
    theirs = np.asarray(enhance(Image.fromarray(pixels.numpy())).enhance(factor)).astype(int)
    assert np.abs(change_colours(pixels, factors).numpy().astype(int) - theirs).max() <= 1


def test_erasing_is_as_often_and_as_large_as_torchvisions():
    count, spec = 4000, CropSpec(size=50, erase=0.25)
    boxes = erased_boxes(torch.arange(count), resampling(spec, 1), spec=spec, seed=3, epoch=1)
    erased = boxes.height > 0
    assert float(erased.double().mean()) == pytest.approx(0.25, abs=0.028)  # four standard deviations
    torch.manual_seed(0)
    picture = torch.empty(3, 50, 50)
    theirs = [RandomErasing.get_params(picture, (0.02, 0.33), (0.3, 3.3))[2:4] for _ in range(1000)]
    area = (boxes.height * boxes.width)[erased].double()
    assert float(area.mean()) == pytest.approx(np.mean([h * w for h, w in theirs]), rel=0.1)


@pytest.mark.parametrize("arguments", [
    dict(size=0), dict(size=5000), dict(scale=(0.5, 0.1)), dict(scale=(0.0, 1.0)), dict(ratio=(2.0, 1.0)),
    dict(centre=0.0), dict(brightness=1.5), dict(erase=-0.1),
])  # fmt: skip
def test_bad_spec(arguments):
    with pytest.raises(ValueError, match="give"):
        CropSpec(**{"size": 8, **arguments})


@pytest.mark.parametrize("change", [
    dict(data=torch.zeros(10)), dict(heights=torch.ones(4, dtype=torch.int64)),
    dict(widths=torch.ones(3, dtype=torch.int32)), dict(indices=torch.arange(3)),
    dict(indices=torch.zeros(4, dtype=torch.int32)), dict(table=torch.zeros(3, 256).T),
    dict(table=torch.zeros(256, 1)), dict(spec=CropSpec(size=9)),
])  # fmt: skip
def test_bad_inputs(change):
    images, spec = _ragged(4), CropSpec(size=8, saturation=0.5)
    arguments = dict(images._asdict(), indices=torch.arange(4), table=_bytes_table(), spec=spec) | change
    ragged = Ragged(*(arguments.pop(name) for name in Ragged._fields))
    tables = resampling(spec, LONGEST)
    with pytest.raises(ValueError, match=r"must|numbers for|images for|need|make them"):
        resized_crop(
            ragged, arguments["indices"], arguments["table"], tables, spec=arguments["spec"], seed=0, epoch=0
        )  # fmt: skip


def _crop_two(indices):
    tables = resampling(ALL, LONGEST)
    return resized_crop(_ragged(2), indices, _bytes_table(), tables, spec=ALL, seed=0, epoch=0, gather=True)


def test_an_empty_batch_has_no_crops():
    assert _crop_two(torch.empty(0, dtype=torch.int64)).shape == (0, 3, ALL.size, ALL.size)


@pytest.mark.parametrize("index", [-1, 2])
def test_an_index_beyond_the_images_is_refused(index):
    """Compiled code would read other memory."""
    indices = torch.tensor([0, index])
    with pytest.raises(IndexError, match="the images from 0 to 1"):
        _crop_two(indices)
