"""What is measured on images that keep their own shapes, and others' recipes for them."""

import importlib.util
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from inputs import make_ragged_set, smooth_image

from fast_train.benchmarks.instrument.feeds import FeedOptions
from fast_train.benchmarks.instrument.records import Details
from fast_train.benchmarks.instrument.result import Row
from fast_train.benchmarks.peers import peer_entries
from fast_train.benchmarks.peers.ffcv_imagenet import FfcvImagenet
from fast_train.benchmarks.peers.written import class_folders
from fast_train.benchmarks.throughput import cli
from fast_train.benchmarks.throughput.compare import read_result
from fast_train.benchmarks.throughput.records import DecodeDetails, EndToEndDetails, LoaderDetails
from fast_train.benchmarks.throughput.suites import decode
from fast_train.benchmarks.throughput.suites.end_to_end import AUGMENTATION, DECODING, LOADER, STEP, judge
from fast_train.data_prep import cli as prep_cli
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.config.settings import Config

# A peer's recipe calls it; only pytest shows it.
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")

SIZE, BATCH = 16, 8
_OPTIONAL = {
    "FFCV's ImageNet pipeline": "ffcv",
    "DALI's ResNet-50 pipeline": "nvidia.dali",
    "webdataset": "webdataset",
    "mosaicml-streaming": "streaming",
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """JPEG files, and one PNG file a class, of 20 to 60 pixels a side, in every format."""
    root, generator = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 4)):
        for name in ("ant", "bee"):
            folder = root / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = smooth_image(generator, *generator.integers(20, 61, 2))
                image.save(folder / f"{i}.{'jpg' if i else 'png'}", quality=90)
    flags = ["--dataset", f"folder:{root / 'images'}", "--out", str(root / "set"), "--formats", "packed,ffcv,dali"]
    assert prep_cli.main(flags) == 0
    return PreparedSet.open(root / "set")


def _options(prepared, scratch, **crop):
    config = Config.from_dict({"data": {"batch_size": BATCH}, "crop": {"size": SIZE, **crop}, "run": {"device": "cpu"}})
    runtime = SimpleNamespace(device=torch.device("cpu"), image_dtype=torch.float32)
    return FeedOptions(prepared=prepared, config=config, runtime=runtime, workers=1, scratch=scratch)


def _entries():
    for entry in peer_entries(ragged=True):
        # It takes Numba many seconds to compile.
        yield pytest.param(entry, id=entry.name, marks=pytest.mark.slow if entry.name == FfcvImagenet.name else ())


@pytest.mark.parametrize("entry", list(_entries()))
def test_a_recipe_gives_crops_of_our_size_in_our_batches(entry, photographs, tmp_path):
    library = _OPTIONAL.get(entry.name)
    if library is not None and importlib.util.find_spec(library) is None:
        with pytest.raises(ValueError, match=r"is not installed; pip install 'fast-train\[.*\]'"):
            entry.open(_options(photographs, tmp_path))
        return
    feed = entry.open(_options(photographs, tmp_path))
    try:
        example = feed.example()
        for count in (1, 5):
            batches = [batch.images for batch in feed.batches(count)]
            assert [tuple(images.shape) for images in batches] == [(BATCH, 3, SIZE, SIZE)] * count
            assert {images.dtype for images in batches} == {example.images.dtype}
        # Normalised by the set's own mean and deviation, and of varied crops.
        assert abs(float(torch.cat(batches).mean())) < 1
        assert 0.3 < float(torch.cat(batches).std()) < 2
    finally:
        feed.close()


def test_recipes_read_the_files_of_the_set(photographs, tmp_path):
    folder = class_folders(photographs, tmp_path)
    for split in photographs.splits:
        encoded = photographs.encoded(split)
        files = sorted((path.stem, path) for path in (folder / split).rglob("*.*"))
        assert [path.read_bytes() for _, path in files] == [encoded.file(i).tobytes() for i in range(len(files))]
        assert [int(path.parent.name) for _, path in files] == encoded.labels.tolist()
        assert {path.suffix for _, path in files} == {".jpg", ".png"}


def test_a_disk_without_room_is_named_before_it_is_full(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(ValueError, match=r"its files take .* where 10 B are free; set TMPDIR"):
        class_folders(photographs, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a quick report; no figure is looked at. Its set has no file for FFCV, which takes long to
    compile."""
    root = tmp_path_factory.mktemp("reports")
    folder = root / "report"
    make_ragged_set(root / "set", counts={"train": 64, "test": 6})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fast_train.benchmarks.throughput.suites.repeat_seconds", lambda **_: 0.01)
        flags = ["--data", str(root / "set"), "--device", "cpu", "--quick", "--workers", "1"]
        only = "decode,augmentation,loaders,ladder,end-to-end"
        # A share of more than all is possible in repeats this short.
        flags += ["--repeats", "1", "--arch", "resnet8"]
        flags += ["--recipe", "photos-cpu", "--image-size", str(SIZE), "--only", only, "--out", str(folder)]
        assert cli.main(flags) in (0, 1)
    return folder


def test_a_report_has_decoders_loaders_and_recipes(report):
    result = read_result(report)
    decoders = {(row.details.decoder, row.details.threads) for row in result.about(DecodeDetails)}
    assert {("Pillow", 1), ("resident", 1), ("torchvision.io", 1)} <= decoders
    measured = {row.details.entry for row in result.about(LoaderDetails)}
    assert {"resident", "torch", "ImageFolder", "torchvision.io"} <= measured
    listed = {skipped.name.partition(",")[0] for skipped in result.skipped}
    assert all(entry.name in measured | listed for entry in peer_entries(ragged=True))
    assert {row.details.entry for row in result.about(EndToEndDetails)} == {"resident", "torch", "ImageFolder"}


def test_a_report_says_what_the_images_are(report):
    text = (report / "report.md").read_text()
    assert f"in crops of {SIZE} px" in text
    assert "px high, files of" in text
    assert "ImageFolder: pytorch/examples, imagenet/main.py" in text
    assert {path.name for path in report.glob("*.png")} == {
        f"{name}.png" for name in ("decode", "end-to-end", "ladder", "loaders", "roofline")
    }


def test_images_of_one_shape_are_not_decoded():
    skipped = []
    bench = SimpleNamespace(
        prepared=SimpleNamespace(manifest=SimpleNamespace(ragged=None)), skip=lambda *what: skipped.append(what)
    )
    decode.run(bench)
    assert skipped == [(decode.SUITE, "the suite", "the images of this set have one shape and are stored as pixels")]


def _row(value):
    return Row(suite="s", name="r", unit="images/s", repeats=(value, value), details=Details())


@pytest.mark.parametrize(
    ("loader", "step", "decoding", "augmentation", "bound", "said"),
    [
        (100, 300, 150, None, DECODING, "decoding bounds it. .* Decoding alone takes 67% of the loader's time."),
        (100, 300, 900, None, AUGMENTATION, "the augmentation bounds it. .* takes 11% of the loader's time."),
        (300, 100, 900, 150, AUGMENTATION, "the augmentation bounds it. .* takes 67% of the step's time."),
        (300, 100, 900, 900, STEP, "the step bounds it. .* The augmentation takes 11% of the step's time."),
        (100, 300, None, None, LOADER, "the loader bounds it."),
    ],
)
def test_what_bounds_the_rate_is_the_larger_part_of_the_slower_one(loader, step, decoding, augmentation, bound, said):
    details = EndToEndDetails(
        entry="torch", step="the step", batch_size=8, workers=1, step_alone_row="", loader_alone_row=""
    )
    row = Row(suite="end-to-end", name="r", unit="images/s", repeats=(90, 90), details=details)
    parts = {"decoding": decoding, "augmentation": augmentation}
    judged = judge(row, _row(step), _row(loader), **parts, share_cores=False)
    assert judged.bound == bound
    assert re.search(said, judged.sentence)
