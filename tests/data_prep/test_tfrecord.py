"""The TFRecord shards, read by DALI's own reader and by TensorBoard's, which checks the checksums."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.formats import FormatOptions, tfrecord
from fast_train.data_prep.formats.tfrecord import TFRecordWriter, open_tfrecords

pytest.importorskip("nvidia.dali", reason="DALI is not installed: pip install 'fast-train[dali]'")
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali import tfrecord as tfrec


def _write(folder, images, labels, *, capacity=None, step=7, **options):
    folder.mkdir(exist_ok=True)
    writer = TFRecordWriter(folder, "train", capacity or len(images), images.shape[1:], FormatOptions(**options))
    for i in range(0, len(images), step):
        writer.write(images[i : i + step], labels[i : i + step])
    return [folder / name for name in writer.close()]


@pytest.fixture
def some():
    generator = np.random.default_rng(5)
    return generator.integers(0, 256, (50, 12, 9, 3), dtype=np.uint8), generator.integers(0, 1000, 50)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(tfrecord, "SHARD_BYTES", 6000)


@pipeline_def(batch_size=10, num_threads=1, device_id=None)
def _stock_reader(paths, shape):
    """What DALI's documentation tells users to write."""
    shards, indices = paths[: len(paths) // 2], paths[len(paths) // 2 :]
    features = fn.readers.tfrecord(
        path=[str(path) for path in shards],
        index_path=[str(path) for path in indices],
        features={
            "image": tfrec.FixedLenFeature((), tfrec.string, ""),
            "label": tfrec.FixedLenFeature([1], tfrec.int64, -1),
            "index": tfrec.FixedLenFeature([1], tfrec.int64, -1),
            "shape": tfrec.FixedLenFeature([3], tfrec.int64, -1),
        },
        name="records",
    )
    image = features["image"]
    if shape is None:
        image = fn.decoders.image(image, device="cpu", output_type=types.RGB)
    else:
        image = fn.reshape(image, shape=shape)
    return image, features["label"], features["index"], features["shape"]


def _read_with_dali(paths, count, shape):
    pipe = _stock_reader(paths, shape)
    batches = [[np.array(output.as_array()) for output in pipe.run()] for _ in range(count // 10)]
    return [np.concatenate(column) for column in zip(*batches, strict=True)]


def test_dalis_reader_reads_the_shards(tmp_path, some, small_shards):
    images, labels = some
    paths = _write(tmp_path, images, labels)
    assert [path.name for path in paths[:2]] == ["train-00000-of-00005.tfrecord", "train-00001-of-00005.tfrecord"]
    read = _read_with_dali(paths, 50, [12, 9, 3])
    assert np.array_equal(read[0], images)
    assert np.array_equal(read[1][:, 0], labels)
    assert np.array_equal(read[2][:, 0], np.arange(50))
    assert (read[3] == [12, 9, 3]).all()


def test_dalis_decoder_decodes_the_jpegs(tmp_path):
    ramp = np.linspace(0, 200, 64 * 48 * 3).reshape(64, 48, 3)
    images = (ramp + np.arange(20)[:, None, None, None]).astype(np.uint8)
    paths = _write(tmp_path, images, np.arange(20), dali_mode="jpg", jpeg_quality=95)
    read = _read_with_dali(paths, 20, None)
    assert abs(read[0].astype(int) - images).mean() < 4
    assert np.array_equal(read[1][:, 0], np.arange(20))


def test_the_checksums_are_right(tmp_path, some, small_shards):
    images, labels = some
    paths = _write(tmp_path, images, labels)
    records = []
    for path in paths[:5]:
        reader = PyRecordReader_New(str(path))
        while True:
            try:
                reader.GetNext()
            except Exception as error:
                assert type(error).__name__ == "OutOfRangeError"  # noqa: PT017  # the file's end
                break
            records.append(reader.record())
    assert len(records) == 50
    assert all(image.tobytes() in record for image, record in zip(images, records, strict=True))


def test_our_reader(tmp_path, some, small_shards):
    images, labels = some
    opened = open_tfrecords(_write(tmp_path, images, labels), images.shape, raw=True)
    assert np.array_equal(opened.labels, labels)
    order = np.random.default_rng(1).permutation(50)
    assert np.array_equal(opened.take(order), images[order])
    assert np.array_equal(opened.take(order[:0]), images[:0])
    for index in (0, 17, 49):
        assert opened.blob(index).tobytes() == images[index].tobytes()


def test_our_reader_finds_the_jpegs(tmp_path, some, small_shards):
    images, labels = some
    paths = _write(tmp_path, images, labels, dali_mode="jpg")
    opened = open_tfrecords(paths, images.shape, raw=False)
    assert np.array_equal(opened.labels, labels)
    for index in range(50):
        assert Image.open(io.BytesIO(opened.blob(index).tobytes())).size == (9, 12)
    with pytest.raises(PreparedSetError, match="its images are not 9x12x3"):
        open_tfrecords(paths, images.shape, raw=True)


def test_fewer_images_than_announced(tmp_path, some):
    images, labels = some
    opened = open_tfrecords(_write(tmp_path, images, labels, capacity=90), images.shape, raw=True)
    assert np.array_equal(opened.take(np.arange(50)), images)


@pytest.mark.parametrize("mode", ["raw", "jpg"])
def test_the_estimate_is_enough(tmp_path, some, mode):
    images, labels = some
    paths = _write(tmp_path, images, labels, dali_mode=mode)
    estimate = TFRecordWriter.estimate_bytes(50, images.shape[1:], FormatOptions(dali_mode=mode))
    assert sum(path.stat().st_size for path in paths) <= estimate


def test_writer_refuses_what_does_not_fit(tmp_path, some):
    images, labels = some
    writer = TFRecordWriter(tmp_path, "train", 50, images.shape[1:], FormatOptions())
    for wrong in (images[:, :3], images.astype(np.int16), images[:-1], np.concatenate([images, images])):
        with pytest.raises(ValueError, match="takes uint8 images"):
            writer.write(wrong, labels)
    with pytest.raises(ValueError, match="no image"):
        writer.close()
    writer.abort()


@given(data=st.data())
def test_damage_is_named_or_harmless(tmp_path_factory, data):
    images = np.arange(6 * 4 * 4 * 3, dtype=np.uint8).reshape(6, 4, 4, 3)
    paths = _write(tmp_path_factory.mktemp("records"), images, np.arange(6))
    path = data.draw(st.sampled_from(paths))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 2))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(len(raw)) | st.integers(0, len(raw)))
    path.write_bytes(raw[:cut])
    try:
        opened = open_tfrecords(paths, images.shape, raw=True)
    except PreparedSetError as error:
        opened, message = None, str(error)
    if opened is None:
        assert str(path.parent) in message
        assert len(message.splitlines()) == 1
        return
    assert opened.take(np.arange(6)).shape == images.shape
    assert [opened.blob(index).size for index in range(6)] == [48] * 6


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [(0, 2**63 - 1), (2**63 - 1, lines[0][1] + lines[1][1] - 2**63 + 1), *lines[2:]],
        lambda lines: [(0, -(2**62)), (-(2**62), 2**62 + lines[1][0] + lines[1][1]), *lines[2:]],
        lambda lines: lines * 200,
        lambda lines: lines[:-1] + [(lines[-1][0], 2**70)],
        lambda lines: [],
    ],
    ids=["wraps", "before the shard", "too long", "too large", "empty"],
)
def test_an_index_that_makes_no_sense_is_named(tmp_path, change):
    images = np.zeros((6, 4, 4, 3), dtype=np.uint8)
    paths = _write(tmp_path, images, np.arange(6))
    lines = [tuple(map(int, line.split())) for line in paths[1].read_text().splitlines()]
    paths[1].write_text("".join(f"{offset} {size}\n" for offset, size in change(lines)))
    with pytest.raises(PreparedSetError, match=r"train-00000-of-00001\.idx is not a whole TFRecord file"):
        open_tfrecords(paths, images.shape, raw=True)


def test_a_shard_without_its_index_is_named(tmp_path, some, small_shards):
    images, labels = some
    paths = _write(tmp_path, images, labels)
    for there in (paths[:1], paths[:-1]):
        with pytest.raises(PreparedSetError, match="index files"):
            open_tfrecords(there, images.shape, raw=True)


def test_jpegs_of_two_channels_are_refused(tmp_path, some):
    images, labels = some
    with pytest.raises(PreparedSetError, match="2 channels"):
        open_tfrecords(_write(tmp_path, images, labels), (50, 12, 9, 2), raw=False)
