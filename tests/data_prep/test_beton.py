"""The .beton files, read by the FFCV library itself and compared with what its own writer writes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.formats import FormatOptions, beton
from fast_train.data_prep.formats.beton import BetonWriter, beton_labels, check_beton

threads = torch.get_num_threads()
pytest.importorskip("ffcv", reason="FFCV is not installed: pip install 'fast-train[ffcv]'")
import ffcv.types  # noqa: E402
from ffcv.fields import IntField, RGBImageField  # noqa: E402
from ffcv.loader import Loader, OrderOption  # noqa: E402
from ffcv.reader import Reader  # noqa: E402
from ffcv.writer import DatasetWriter  # noqa: E402

# Importing FFCV sets torch's threads for the whole process.
torch.set_num_threads(threads)


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
    check_beton(path, images.shape)
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
    check_beton(path, images.shape)
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
    check_beton(path, images.shape)
    assert np.array_equal(beton_labels(path, 50), labels)
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
        check_beton(path, images.shape)
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
            check_beton(path, shape)
