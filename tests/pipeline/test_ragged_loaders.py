"""The contract of loaders, held to a set whose images keep their own shapes."""

import gc
import io
import multiprocessing
import os
import warnings
from contextlib import contextmanager
from pathlib import Path

import inputs
import numpy as np
import pytest
import torch
from PIL import Image

from fast_train.data_prep.errors import ANEW, PreparedSetError
from fast_train.data_prep.formats.decode import decode_rgb
from fast_train.data_prep.manifest import PreparedSet
from fast_train.kernels.augment import normalisation_table
from fast_train.kernels.order import epoch_order
from fast_train.kernels.resized_crop import resampling, resized_crop
from fast_train.kernels.spec import CropSpec
from fast_train.pipeline.loaders import RaggedBatch, RaggedView, build_loader, turbojpeg

TRAIN, TEST, BATCH = 50, 11, 8
FORMATS = ("packed", "ffcv", "dali")


@pytest.fixture(scope="module")
def ragged(tmp_path_factory):
    root = tmp_path_factory.mktemp("ragged") / "set"
    inputs.make_ragged_set(root, counts={"train": TRAIN, "test": TEST}, formats=FORMATS)
    return PreparedSet.open(root)


def _build(name, prepared, split="train", **options):
    # FFCV compiles its code anew for each loader, for several threads twice as long.
    workers = 1 if name == "ffcv" else 2
    return build_loader(name, prepared, split, **{"batch_size": BATCH, "seed": 3, "workers": workers, **options})


@pytest.mark.parametrize("name", ["resident", "torch"])
def test_its_files_are_closed_with_it(ragged, name):
    gc.collect()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        with _build(name, ragged, workers=1 if name == "resident" else 0) as loader:
            next(iter(loader))
        del loader
        gc.collect()
    assert [str(line.message) for line in told if line.category is ResourceWarning] == []


def _pixels(batch):
    """The images of a batch or a view."""
    if isinstance(batch, RaggedView):
        batch = batch.gather()
    assert isinstance(batch, RaggedBatch)
    return [image.cpu().numpy() for image in batch.images_at(torch.arange(len(batch.indices)))]


def _check(batches, prepared, split="train"):
    """Every image, label and type is the file's; returns the indices that came."""
    encoded, seen = prepared.encoded(split), []
    for batch in batches:
        assert [column.dtype for column in batch] == [torch.uint8, torch.int64, torch.int32, torch.int32] + [
            torch.int64
        ] * 2
        for index, image in zip(batch.indices.tolist(), _pixels(batch), strict=True):
            expected = decode_rgb(encoded.file(index), int(encoded.heights[index]), int(encoded.widths[index]))
            assert np.array_equal(image, expected)
        assert np.array_equal(batch.targets().cpu(), encoded.labels[batch.indices.cpu()])
        seen += batch.indices.tolist()
    return seen


def _order(epoch, seed=3):
    return epoch_order(TRAIN, seed=seed, epoch=epoch)[: TRAIN // BATCH * BATCH].tolist()


def test_training_brings_the_files_pixels_in_our_order(name, ragged):
    """To the bit: every loader decodes by libjpeg-turbo on the CPU. Batches can be kept, and are those of `feed`."""
    with _build(name, ragged) as loader:
        example = loader.example()
        for epoch in (0, 2):
            loader.set_epoch(epoch)
            kept = list(loader)
            assert _check(kept, ragged) == _order(epoch)
            assert len(kept) == len(loader) == TRAIN // BATCH
        fed = 0
        for batch in loader.feed():
            assert type(batch) is type(example)
            assert _check([batch], ragged) == _order(2)[fed : fed + BATCH]
            fed += BATCH
        assert fed == len(_order(2))
        _check_example(example, loader.feed())
    assert _check(kept, ragged) == _order(2)


@pytest.mark.parametrize("name", ["resident", "torch"])
def test_without_the_system_library_pillow_makes_the_same_pixels(name, ragged, monkeypatch):
    monkeypatch.setattr(turbojpeg, "installed", lambda: None)
    with _build(name, ragged, workers=0) as loader:
        assert _check(loader, ragged) == _order(0)


def test_decoding_tells_how_far_it_is(ragged):
    told = []

    @contextmanager
    def progress(label, total):
        told.append((label, total))
        yield lambda count: told.append(count)
        told.append("over")

    _build("resident", ragged, progress=progress).close()
    first, *counts, last = told
    assert (first, sum(counts), last) == (("decoding train", TRAIN), TRAIN, "over")


def test_restart_in_the_middle_of_an_epoch(name, ragged):
    with _build(name, ragged) as loader:
        loader.set_epoch(4)
        begun = loader.feed()
        for _ in range(2):
            next(begun)
        state = loader.state_dict()
        # The same loader, and another pass of it, after a break.
        loader.load_state_dict(state)
        assert _check(loader, ragged) == _order(4)[2 * BATCH :]
        loader.set_epoch(0)
        assert _check(loader, ragged) == _order(0)
    with _build(name, ragged, workers=0) as resumed:
        resumed.load_state_dict(state)
        assert _check(resumed.feed(), ragged) == _order(4)[2 * BATCH :]


@pytest.mark.parametrize("name", ["resident", "torch"])
def test_ranks_share_a_batch_or_for_good_the_split(name, ragged):
    """A part of the split is a view as the whole is: its indices are the split's."""
    shards = (False, True) if name == "resident" else (False,)
    for shard in shards:
        seen = []
        for rank in range(2):
            with _build(name, ragged, rank=rank, ranks=2, shard=shard) as loader:
                fed = [_check([batch], ragged) for batch in loader.feed()]
                assert [index for batch in fed for index in batch] == _check(loader, ragged)
                assert {len(batch) for batch in fed} == {BATCH // 2}
                assert len(loader.example().indices) == BATCH // 2
                seen.append(fed)
        together = [index for parts in zip(*seen, strict=True) for part in parts for index in part]
        assert len(set(together)) == TRAIN // BATCH * BATCH
        assert shard or together == _order(0)


def test_evaluation_sees_each_image_exactly_once_in_order(name, ragged):
    with _build(name, ragged, "test", train=False, batch_size=4) as loader:
        for begin in (iter, type(loader).feed):
            assert _check(begin(loader), ragged, "test") == list(range(TEST))


def test_two_loaders_at_once_and_what_they_leave(name, ragged):
    before = len(multiprocessing.active_children())
    with _build(name, ragged) as first, _build(name, ragged, seed=5) as second:
        for ours, theirs in zip(first, second, strict=True):
            _check([ours, theirs], ragged)
        assert _check(first, ragged) == _order(0)
        next(second.feed())
    assert len(multiprocessing.active_children()) == before
    with pytest.raises(ValueError, match="closed; build a new one"):
        next(second.feed())


def _check_example(example, batches):
    """It can be cropped, and has as many bytes as any batch."""
    assert len(example.indices) == BATCH
    sizes = 3 * example.heights.long() * example.widths
    assert sizes.min() >= 3
    assert example.offsets.min() >= 0
    assert (example.offsets + sizes).max() <= len(example.data)
    assert len(example.data) >= max(len(batch.data) for batch in batches)


def _broken_set(root: Path, change):
    """A set that is whole, of JPEG files, one of which is changed before its checksum is taken."""
    file = io.BytesIO()
    inputs.smooth_image(np.random.default_rng(0), 40, 30).save(file, "JPEG")

    def encoded_image(generator, number, quality):
        return inputs.Encoded(change(file.getvalue()) if number == 7 else file.getvalue(), 40, 30)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "encoded_image", encoded_image)
        inputs.make_ragged_set(root, formats=FORMATS)
    return PreparedSet.open(root)


def _without_codes(file):
    """Its Huffman codes are none."""
    at = file.index(b"\xff\xc4") + 5
    return file[:at] + b"\xff" * 16 + file[at + 16 :]


def test_an_image_that_cant_be_decoded_is_told_and_never_replaced(name, tmp_path):
    prepared = _broken_set(tmp_path / "set", _without_codes)
    with pytest.raises(PreparedSetError, match="decode") as told, _build(name, prepared, batch_size=4) as loader:
        list(loader)
    assert str(tmp_path / "set") in str(told.value)
    assert str(told.value).endswith(ANEW)
    assert "\n" not in str(told.value)


def test_a_file_whose_scan_ends_early_is_what_pillow_makes_of_it(name, tmp_path):
    prepared = _broken_set(tmp_path / "set", lambda file: file[: len(file) - 60] + b"\xff\xd9")
    with _build(name, prepared, batch_size=4) as loader:
        assert len(_check(loader, prepared)) == 12


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resident", "torch"])
def test_memory_stays_flat_over_an_epoch_of_100_000_images(name, tmp_path, monkeypatch):
    """Neither pages of the file nor anything else add up, in this process or in its worker. -s shows the figures."""
    generator, files = np.random.default_rng(0), []
    for _ in range(100):
        file = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(file, "JPEG")
        files.append(inputs.Encoded(file.getvalue(), 60, 60))
    monkeypatch.setattr(inputs, "encoded_image", lambda generator, number, quality: files[number % len(files)])
    inputs.make_ragged_set(tmp_path / "set", counts={"train": 100_000, "test": 1})
    prepared, before, held = PreparedSet.open(tmp_path / "set"), _resident_bytes(), []
    with _build(name, prepared, workers=1, batch_size=250) as loader:
        for number, _ in enumerate(loader.feed()):
            if number % 50 == 25:
                held.append(_resident_bytes() - before)
    stored = (tmp_path / "set" / "train.safetensors").stat().st_size
    print(f"\n{name}: {stored / 1e6:,.0f} MB of files, more memory by", *(f"{size / 1e6:,.0f}" for size in held), "MB")
    assert max(held) - held[0] < 16 << 20


def _resident_bytes():
    """Of this process and its children."""
    pages = 0
    for process in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        with open(f"/proc/{process}/statm") as file:
            pages += int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.gpu
@pytest.mark.parametrize("memory", ["device", "host"])
def test_gpu_batches_are_the_cpus(name, ragged, memory):
    """nvJPEG, by which DALI decodes there, may differ by two levels."""
    options = {"device": "cuda", "resident_memory": memory}
    with _build(name, ragged, **options) as loader, _build("resident", ragged) as reference:
        lengths = set()
        for ours, theirs in zip(loader, reference, strict=True):
            lengths.add(len(ours.data))
            assert all(column.is_cuda for column in ours)
            assert torch.equal(ours.indices.cpu(), theirs.indices)
            assert torch.equal(ours.labels.cpu(), theirs.labels)
            for image, expected in zip(_pixels(ours), _pixels(theirs), strict=True):
                assert abs(image.astype(int) - expected).max() <= (2 if name == "dali" else 0)
        example = loader.example()
        assert lengths == {BATCH * loader.largest}
        assert isinstance(example, RaggedView) or len(example.data) in lengths


@pytest.mark.gpu
@pytest.mark.parametrize("memory", ["device", "host"])
def test_gpu_kernels_read_the_split_wherever_it_lies(ragged, memory):
    """Without a copy of it: what a captured step would read."""
    spec = CropSpec(size=24, scale=(0.2, 1.0), flip=True)
    made = []
    for device in ("cuda", "cpu"):
        table = normalisation_table((0.5,) * 3, (0.25,) * 3, torch.float32, torch.device(device))
        tables = resampling(spec, 60).to(device)
        with _build("resident", ragged, device=device, resident_memory=memory) as loader:
            view = next(loader.feed())
            assert view.data.data_ptr() == loader.example().data.data_ptr()
            crops = resized_crop(view.pixels(), view.indices, table, tables, spec=spec, seed=3, epoch=0, gather=True)
            made.append(crops.cpu())
    assert torch.equal(*made)
