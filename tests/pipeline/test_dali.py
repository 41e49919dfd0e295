"""What only the DALI and FFCV loaders have: augmentation in DALI's graph, JPEG files, a library that may be missing."""

import sys

import numpy as np
import pytest
import torch
from inputs import make_ragged_set
from PIL import Image

from fast_train.data_prep import cli as prep_cli
from fast_train.data_prep.manifest import PreparedSet
from fast_train.kernels.augment import augment, normalisation_table
from fast_train.kernels.resized_crop import resampling, resized_crop
from fast_train.kernels.spec import AugmentSpec, CropSpec
from fast_train.pipeline import cli
from fast_train.pipeline.loaders import LOADERS, build_loader
from fast_train.pipeline.loaders.native import NativeAugment, NativeCrop

needs_dali = pytest.mark.skipif(LOADERS["dali"].missing() is not None, reason=str(LOADERS["dali"].missing()))


@needs_dali
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "spec",
    [
        AugmentSpec(),
        AugmentSpec(pad=4, flip=True),
        AugmentSpec(pad=8, flip=True, cutout=8),
        AugmentSpec(cutout=15),
        AugmentSpec(pad=2, flip=True, flip_mode="alternating"),
        AugmentSpec(pad=2, pad_mode="reflect", flip=True),
        AugmentSpec(pad=8, pad_mode="reflect", cutout=4),
    ],
)
def test_native_augmentation_is_the_kernels(prepared, spec, dtype, device):
    """The same crops, flips and cutouts; DALI's own arithmetic may round the last bit differently."""
    tolerance = 2e-6 if dtype == torch.float32 else 1e-3
    mean, std = prepared.manifest.mean, prepared.manifest.std
    native = NativeAugment(spec=spec, mean=mean, std=std, dtype=dtype, seed=5)
    table = normalisation_table(mean, std, native.output_dtype, torch.device(device))
    options = {"batch_size": 32, "seed": 5, "device": torch.device(device)}
    with (
        build_loader("dali", prepared, "train", native=native, **options) as ours,
        build_loader("dali", prepared, "train", **options) as plain,
    ):
        for epoch in (0, 3):
            ours.set_epoch(epoch)
            plain.set_epoch(epoch)
            for augmented, batch in zip(ours, plain, strict=True):
                expected = augment(batch.images, batch.indices, table, spec=spec, seed=5, epoch=epoch)
                assert augmented.images.dtype == native.output_dtype
                assert augmented.images.is_contiguous(memory_format=torch.channels_last)
                torch.testing.assert_close(augmented.images, expected, rtol=tolerance, atol=tolerance)
                assert torch.equal(augmented.indices, batch.indices)
                assert torch.equal(augmented.labels, batch.labels)


@needs_dali
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("crop", [{"size": 32}, {"size": 24, "scale": (0.2, 1.0), "flip": True}])
def test_native_crops_are_the_kernels_boxes(tmp_path, crop, dtype, device):
    """Resized in floating point, in one pass: within three levels of 255 on a CPU, a fifth of one on average; of what
    nvJPEG decodes within twice that."""
    spec, most = CropSpec(**crop), 3.1 if device == "cpu" else 6.1
    make_ragged_set(tmp_path / "set", counts={"train": 30, "test": 4}, formats=("packed", "dali"))
    prepared = PreparedSet.open(tmp_path / "set")
    native = NativeCrop(spec=spec, mean=(0.5,) * 3, std=(0.25,) * 3, dtype=dtype, seed=5)
    table = normalisation_table(native.mean, native.std, torch.float32, torch.device(device))
    tables = resampling(spec, 60).to(device)
    options = {"batch_size": 10, "seed": 5, "device": torch.device(device)}
    with (
        build_loader("dali", prepared, "train", native=native, **options) as ours,
        build_loader("resident", prepared, "train", **options) as plain,
    ):
        ours.set_epoch(3)
        plain.set_epoch(3)
        example = ours.example()
        for crops, batch in zip(ours, plain, strict=True):
            expected = resized_crop(batch.pixels(), batch.indices, table, tables, spec=spec, seed=5, epoch=3)
            levels = (crops.images.float() - expected).abs() * (255 * 0.25)
            assert levels.max() <= most
            assert levels.mean() < most / 15
            assert torch.equal(crops.indices, batch.indices)
            assert torch.equal(crops.labels, batch.labels)
            for fed, blank in zip(crops, example, strict=True):
                assert (fed.shape, fed.dtype, fed.stride()) == (blank.shape, blank.dtype, blank.stride())


@pytest.mark.parametrize("what", ["brightness", "contrast", "saturation", "erase"])
def test_native_crops_change_no_colours(what):
    with pytest.raises(
        ValueError, match="set brightness, contrast, saturation and erase to 0, or leave out --dali-augm"
    ):
        NativeCrop(spec=CropSpec(size=8, **{what: 0.5}), mean=(0.5,), std=(0.5,), dtype=torch.float32, seed=0)


@pytest.mark.parametrize("what", ["brightness", "contrast"])
def test_native_augmentation_changes_no_colours(what):
    with pytest.raises(ValueError, match="set brightness and contrast to 0, or leave out --dali-augment native"):
        NativeAugment(spec=AugmentSpec(**{what: 0.5}), mean=(0.5,), std=(0.5,), dtype=torch.float32, seed=0)


@needs_dali
def test_the_native_example_has_the_feeds_shape(prepared):
    native = NativeAugment(spec=AugmentSpec(), mean=(0.5,) * 3, std=(0.5,) * 3, dtype=torch.bfloat16, seed=0)
    with build_loader("dali", prepared, "train", batch_size=8, native=native) as loader:
        for ours, theirs in zip(loader.example(), next(loader.feed()), strict=True):
            assert (ours.shape, ours.dtype, ours.stride()) == (theirs.shape, theirs.dtype, theirs.stride())


@pytest.mark.parametrize(
    "flags",
    [["--loader", "resident"], pytest.param(["--loader", "dali", "--dali-augment", "native"], marks=needs_dali)],
)
def test_reflecting_more_pixels_than_there_are_is_refused_before_the_run(
    image_folder, tmp_path, monkeypatch, capsys, flags
):
    monkeypatch.chdir(tmp_path)
    formats = "packed,dali" if "dali" in flags else "packed"
    arguments = ["--dataset", f"folder:{image_folder}", "--size", "8", "--out", "tiny", "--formats", formats]
    assert prep_cli.main(arguments) == 0
    reflect = ["--set", "augment.pad=8", "--set", "augment.pad_mode=reflect"]
    assert cli.main(["--data", "tiny", "--out", "run", *flags, *reflect]) == 2
    assert "too small for a border of 8 reflected ones; set augment.pad=7" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_native_augmentation_is_told_of_alternating_flips():
    """Needs no DALI: what its graph will be fed."""
    spec = AugmentSpec(flip=True, flip_mode="alternating")
    native = NativeAugment(spec=spec, mean=(0.5,), std=(0.5,), dtype=torch.float32, seed=3)
    indices = torch.arange(200)
    even, odd = (native.draw(indices, epoch, 8, 8)[1] for epoch in (2, 3))
    assert np.array_equal(even + odd, np.ones(200))
    assert 0 < even.sum() < 200


def test_native_needs_the_dali_loader(prepared_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--data", str(prepared_path), "--dali-augment", "native"]) == 2
    assert "--dali-augment native does not fit --loader resident; add --loader dali" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["ffcv", "dali"])
def test_jpeg_files_are_near_the_pixels_and_all_there(name, tmp_path):
    if LOADERS[name].missing():
        pytest.skip(LOADERS[name].missing())
    ramp = np.linspace(0, 190, 64 * 48 * 3).reshape(64, 48, 3)
    for split, count in (("train", 4), ("test", 7)):
        for number in range(count):
            folder = tmp_path / "images" / split / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((ramp + 8 * number).astype(np.uint8)).save(folder / f"{number}.png")
    arguments = ["--dataset", f"folder:{tmp_path / 'images'}", "--out", str(tmp_path / "set")]
    arguments += ["--formats", "packed,ffcv,dali", "--ffcv-mode", "jpg", "--dali-mode", "jpg"]
    assert prep_cli.main(arguments) == 0
    prepared = PreparedSet.open(tmp_path / "set")
    pixels = prepared.packed("test")
    with build_loader(name, prepared, "test", batch_size=3, train=False) as loader:
        images, labels, indices = (torch.cat(column) for column in zip(*loader, strict=True))
    assert torch.equal(indices, torch.arange(7))
    assert np.array_equal(labels.numpy(), pixels.labels)
    # Image i differs from image i + 1 by 8 everywhere.
    assert abs(images.numpy().astype(int) - pixels.images).mean() < 3
    assert not np.array_equal(images.numpy(), pixels.images)


@pytest.mark.parametrize(
    ("name", "library", "module", "install"),
    [
        ("ffcv", "ffcv.loader", "fast_train.pipeline.loaders.ffcv_reader", "then pip install ffcv"),
        ("dali", "nvidia.dali", "fast_train.pipeline.loaders.dali_graph", "pip install nvidia-dali-cuda120"),
    ],
)
def test_a_missing_library_is_named_with_the_line_that_installs_it(
    name, library, module, install, prepared, prepared_path, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=install):
        build_loader(name, prepared, "train", batch_size=16)
    assert cli.main(["--list-loaders"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert set(lines) == set(LOADERS)
    assert install in lines[name]
    assert lines["resident"].startswith("ready")
    assert cli.main(["--data", str(prepared_path), "--loader", name]) == 2
    error = capsys.readouterr().err
    assert install in error
    assert len(error.splitlines()) == 1
