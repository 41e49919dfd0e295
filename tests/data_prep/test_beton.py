"""The .beton files, read by the FFCV library itself and compared with what its own writer writes."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inputs import make_set

from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.formats import FormatOptions, beton
from fast_train.data_prep.formats.beton import BetonWriter, open_beton
from fast_train.data_prep.manifest import PreparedSet

# By our module, which keeps FFCV from changing torch's threads and Numba's types for the whole process.
_READER = "fast_train.pipeline.loaders.ffcv_reader"
pytest.importorskip(_READER, reason="FFCV is not installed: pip install 'fast-train[ffcv]'")
import ffcv.types  # noqa: E402
from ffcv.fields import IntField, RGBImageField  # noqa: E402
from ffcv.loader import Loader, OrderOption  # noqa: E402
from ffcv.reader import Reader  # noqa: E402
from ffcv.writer import DatasetWriter  # noqa: E402


def _write(folder, images, labels, *, capacity=None, step=7, **options):
    folder.mkdir(exist_ok=True)
    writer = BetonWriter(folder, "train", capacity or len(images), images.shape[1:], FormatOptions(**options))
    for i in range(0, len(images), step):
        writer.write(images[i : i + step], labels[i : i + step])
    (name,) = writer.close()
    return folder / name


def _read(path, batch_size=8):
    """(images, labels, indices) by FFCV's own loader."""
    loader = Loader(
        str(path),
        batch_size=batch_size,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        os_cache=True,
    )
    parts = [[field.clone() for field in batch] for batch in loader]
    images, labels, indices = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return images, labels[:, 0], indices[:, 0]


@pytest.fixture
def some():
    generator = np.random.default_rng(5)
    return generator.integers(0, 256, (50, 12, 9, 3), dtype=np.uint8), generator.integers(0, 10, 50)


def test_the_layout_is_ffcvs():
    assert ffcv.types.HeaderType == beton.HEADER
    assert ffcv.types.FieldDescType == beton.FIELD
    assert beton.ALLOCATION == ffcv.types.ALLOC_TABLE_TYPE
    assert ffcv.types.CURRENT_VERSION == beton.VERSION
    handlers = [RGBImageField(), IntField(), IntField()]
    assert ffcv.types.get_metadata_type(handlers) == beton.SAMPLE
    for (_, number), handler in zip(beton.FIELDS, handlers, strict=True):
        assert ffcv.types.TYPE_ID_HANDLER[number] is type(handler)


def test_ffcv_reads_what_was_written(tmp_path, some):
    images, labels = some
    read = _read(_write(tmp_path, images, labels))
    assert np.array_equal(read[0], images)
    assert np.array_equal(read[1], labels)
    assert np.array_equal(read[2], np.arange(50))


@pytest.mark.parametrize("os_cache", [True, False])
def test_many_pages(tmp_path, os_cache):
    """Both of FFCV's ways to read: the file mapped whole, and page by page."""
    images = np.random.default_rng(0).integers(0, 256, (30, 300, 300, 3), dtype=np.uint8)
    path = _write(tmp_path, images, np.arange(30))
    open_beton(path, images.shape)
    pointers = np.sort(Reader(str(path)).alloc_table["ptr"])
    assert len(np.unique(pointers // Reader(str(path)).page_size)) > 3
    loader = Loader(str(path), batch_size=5, num_workers=1, os_cache=os_cache, drop_last=False)
    read = torch.cat([batch[0].clone() for batch in loader])
    assert np.array_equal(read.numpy(), images)


def test_the_same_as_ffcvs_own_writer(tmp_path, some):
    images, labels = some
    rows = [(image, int(label), i) for i, (image, label) in enumerate(zip(images, labels, strict=True))]
    fields = {"image": RGBImageField("raw"), "label": IntField(), "index": IntField()}
    writer = DatasetWriter(str(tmp_path / "theirs.beton"), fields, page_size=2 << 20, num_workers=1)
    writer.from_indexed_dataset(rows)
    ours, theirs = Reader(str(_write(tmp_path, images, labels))), Reader(str(tmp_path / "theirs.beton"))
    for name in ("num_samples", "page_size", "num_fields"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert np.array_equal(ours.field_descriptors, theirs.field_descriptors)
    assert np.array_equal(ours.metadata, theirs.metadata)
    assert np.array_equal(ours.alloc_table, theirs.alloc_table)


@pytest.mark.parametrize("options", [{"ffcv_mode": "jpg"}, {"ffcv_mode": "proportion", "jpeg_share": 0.4}])
def test_jpeg_is_near_and_the_rest_exact(tmp_path, options):
    ramp = np.linspace(0, 200, 64 * 64 * 3).reshape(64, 64, 3)
    images = (ramp + np.arange(40)[:, None, None, None]).astype(np.uint8)
    path = _write(tmp_path, images, np.arange(40), **options, jpeg_quality=95)
    open_beton(path, images.shape)
    raw = Reader(str(path)).metadata["f0"]["mode"] == 1
    assert raw.sum() == 0 if options["ffcv_mode"] == "jpg" else 10 < raw.sum() < 38
    read, _, indices = _read(path)
    assert np.array_equal(indices, np.arange(40))
    assert np.array_equal(read[raw], images[raw])
    assert abs(read.astype(int) - images).mean() < 4
    assert (
        path.read_bytes() == _write(tmp_path / "again", images, np.arange(40), **options, jpeg_quality=95).read_bytes()
    )


def test_fewer_images_than_announced(tmp_path, some):
    images, labels = some
    path = _write(tmp_path, images, labels, capacity=90)
    assert np.array_equal(open_beton(path, images.shape).labels, labels)
    assert np.array_equal(_read(path)[0], images)


def test_the_estimate_is_enough(tmp_path, some):
    images, labels = some
    for mode in ("raw", "jpg"):
        path = _write(tmp_path / mode, images, labels, ffcv_mode=mode)
        estimate = BetonWriter.estimate_bytes(50, images.shape[1:], FormatOptions(ffcv_mode=mode))
        assert path.stat().st_size <= estimate


def test_only_colour_images(tmp_path):
    with pytest.raises(PreparedSetError, match="FFCV can't hold images of 4x4x1"):
        BetonWriter(tmp_path, "train", 3, (4, 4, 1), FormatOptions())


def test_writer_refuses_what_does_not_fit(tmp_path, some):
    images, labels = some
    writer = BetonWriter(tmp_path, "train", 50, images.shape[1:], FormatOptions())
    for wrong in (images[:, :3], images.astype(np.int16), images[:-1], np.concatenate([images, images])):
        with pytest.raises(ValueError, match="takes uint8 images"):
            writer.write(wrong, labels)
    with pytest.raises(ValueError, match="no image"):
        writer.close()
    writer.abort()


@given(data=st.data())
def test_a_file_that_passes_is_safe_for_ffcv(tmp_path_factory, data):
    """Damage anywhere but in the pixels: refused in one line, or every number that FFCV trusts is as it was."""
    images = np.arange(6 * 4 * 4 * 3, dtype=np.uint8).reshape(6, 4, 4, 3)
    path = _write(tmp_path_factory.mktemp("beton"), images, np.arange(6))
    raw = bytearray(path.read_bytes())
    tables = [*range(beton.METADATA_AT + 6 * beton.SAMPLE.itemsize), *range(len(raw) - 6 * 24, len(raw))]
    for _ in range(data.draw(st.integers(0, 2))):
        raw[tables[data.draw(st.integers(0, len(tables) - 1))]] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(raw), 0, 10, beton.METADATA_AT, len(raw) - 24]) | st.integers(0, len(raw)))
    path.write_bytes(raw[:cut])
    try:
        open_beton(path, images.shape)
    except PreparedSetError as error:
        message = str(error)
    else:
        message = None
    if message is not None:
        assert str(path) in message
        assert len(message.splitlines()) == 1
        return
    assert cut == len(raw)
    assert np.array_equal(_read(path)[0], images)


def test_another_files_shape_or_count_is_named(tmp_path, some):
    images, labels = some
    path = _write(tmp_path, images, labels)
    for shape in ((49, 12, 9, 3), (51, 12, 9, 3), (50, 9, 12, 3), (50, 12, 10, 3)):
        with pytest.raises(PreparedSetError, match=r"train\.beton is not a whole FFCV file"):
            open_beton(path, shape)


def _overwrite(path, at, number, width=8):
    raw = bytearray(path.read_bytes())
    raw[at : at + width] = int(number).to_bytes(width, "little")
    path.write_bytes(raw)


def test_ffcv_gets_images_of_three_channels_alone(tmp_path, some):
    """It makes room for three, and copies what the file says."""
    images, labels = some
    path = _write(tmp_path, images, labels)
    with pytest.raises(PreparedSetError, match=r"train\.beton .* 3 channels, not 324"):
        open_beton(path, (50, 1, 1, 324))


def test_pointers_that_wrap_around_are_refused(tmp_path, some):
    images, labels = some
    path = _write(tmp_path, images, labels)
    table = path.stat().st_size - 50 * beton.ALLOCATION.itemsize
    for row, pointer, size in ((49, 2**64 - 324, 324), (49, 2**64 - 1, 2), (0, 2**63, 2**63), (3, 2 << 20, 2**64 - 1)):
        good = path.read_bytes()
        _overwrite(path, table + row * 24 + 8, pointer)
        _overwrite(path, beton.METADATA_AT + row * beton.SAMPLE.itemsize + 8, pointer)
        _overwrite(path, table + row * 24 + 16, size)
        with pytest.raises(PreparedSetError, match="its pointers do not fit its pages"):
            open_beton(path, images.shape)
        path.write_bytes(good)


@pytest.mark.parametrize("format", ["ffcv", "dali"])
@pytest.mark.parametrize(
    "at, bytes_there",
    [
        (5, (11).to_bytes(2, "big")),
        (7, (60_000).to_bytes(2, "big")),
        (9, b"\x01"),
        (4, b"\x0c"),
        (1, b"\xc2"),
        (-2, b"\xff\xe1"),
    ],
    ids=["height", "width", "channels", "bits", "progressive", "no frame"],
)
def test_jpeg_files_are_what_the_manifest_says(tmp_path, format, at, bytes_there):
    """FFCV leaves what it can't decode as it was in the memory before, DALI decodes any size."""
    make_set(tmp_path / "set", format, "jpg")
    prepared = PreparedSet.open(tmp_path / "set")
    _opened(prepared, format)
    entry = next(entry for entry in prepared.manifest.files if entry.split == "train")
    raw = bytearray((tmp_path / "set" / entry.path).read_bytes())
    frame = raw.rindex(b"\xff\xc0") + (at if at > 0 else 0)
    raw[frame : frame + len(bytes_there)] = bytes_there
    (tmp_path / "set" / entry.path).write_bytes(raw)
    manifest = tmp_path / "set" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(entry.sha256, hashlib.sha256(raw).hexdigest()))
    with pytest.raises(PreparedSetError, match="its JPEG files are not all of 8x10x3"):
        _opened(PreparedSet.open(tmp_path / "set"), format)


def _opened(prepared, format):
    return prepared.beton("train") if format == "ffcv" else prepared.tfrecords("train")
