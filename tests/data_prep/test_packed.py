import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.formats import FormatOptions
from fast_train.data_prep.formats.packed import DATA_START, PackedWriter, open_packed

_SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(1, 7), st.integers(1, 4))


def _write(folder, images, labels, *, capacity=None, step=3):
    writer = PackedWriter(Path(folder), "train", capacity or len(images), images.shape[1:], FormatOptions())
    for i in range(0, len(images), step):
        writer.write(images[i : i + step], labels[i : i + step])
    (name,) = writer.close()
    return Path(folder) / name


@pytest.fixture
def packed_file(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 3, 3), dtype=np.uint8)
    return _write(tmp_path, images, np.arange(7))


@given(images=hnp.arrays(np.uint8, _SHAPES), spare=st.integers(0, 3), step=st.integers(1, 4), data=st.data())
def test_round_trip(images, spare, step, data):
    labels = data.draw(hnp.arrays(np.int64, len(images)))
    with tempfile.TemporaryDirectory() as folder:
        path = _write(folder, images, labels, capacity=len(images) + spare, step=step)
        packed = open_packed(path)
        assert np.array_equal(packed.images, images)
        assert np.array_equal(packed.labels, labels)
        assert (packed.images.dtype, packed.labels.dtype) == (np.uint8, np.int64)
        assert path.stat().st_size == PackedWriter.estimate_bytes(len(images), images.shape[1:], FormatOptions())
        raw = path.read_bytes()
        begin, _ = json.loads(raw[8:DATA_START])["labels"]["data_offsets"]
        assert (DATA_START + begin) % 8 == 0
        assert raw[DATA_START : DATA_START + images.nbytes] == images.tobytes()


def test_safetensors_reads_the_same(packed_file):
    theirs, ours = safetensors.numpy.load_file(packed_file), open_packed(packed_file)
    assert np.array_equal(theirs["images"], ours.images)
    assert np.array_equal(theirs["labels"], ours.labels)


def test_reads_what_safetensors_writes(tmp_path):
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    safetensors.numpy.save_file({"images": images, "labels": np.array([3, 1])}, tmp_path / "x", {"made": "elsewhere"})
    packed = open_packed(tmp_path / "x")
    assert np.array_equal(packed.images, images)
    assert packed.labels.tolist() == [3, 1]


def test_pixels_are_read_only(packed_file):
    with pytest.raises(ValueError, match="read-only"):
        open_packed(packed_file).images[0] = 0


def test_writer_refuses_what_does_not_fit(tmp_path):
    writer = PackedWriter(tmp_path, "train", 2, (4, 4, 3), FormatOptions())
    good = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    for images, labels in (
        (good[:, :3], np.zeros(2)),
        (good.astype(np.int16), np.zeros(2)),
        (good, np.zeros(1)),
        (np.zeros((3, 4, 4, 3), dtype=np.uint8), np.zeros(3)),
    ):
        with pytest.raises(ValueError, match="takes uint8 images"):
            writer.write(images, labels.astype(np.int64))
    with pytest.raises(ValueError, match="no image"):
        writer.close()
    writer.abort()


@given(data=st.data())
def test_a_damaged_header_never_crashes(data):
    with tempfile.TemporaryDirectory() as folder:
        images = np.arange(6 * 5 * 3 * 3, dtype=np.uint8).reshape(6, 5, 3, 3)
        path = _write(folder, images, np.arange(6))
        raw = bytearray(path.read_bytes())
        text_end = 8 + len(bytes(raw[8:DATA_START]).rstrip())
        for _ in range(data.draw(st.integers(0, 3))):
            raw[data.draw(st.integers(0, text_end))] = data.draw(st.integers(0, 255))
        cut = data.draw(st.sampled_from([len(raw), 0, 5, 8, DATA_START]) | st.integers(0, len(raw)))
        path.write_bytes(raw[:cut])
        message = ""
        try:
            packed = open_packed(path)
        except PreparedSetError as error:
            message = str(error)
        if message:
            assert str(path) in message
            assert len(message.splitlines()) == 1
        else:
            assert packed.images.size == images.size
            assert len(packed.labels) == 6


_GOOD = {
    "images": {"dtype": "U8", "shape": [2, 4, 4, 3], "data_offsets": [0, 96]},
    "labels": {"dtype": "I64", "shape": [2], "data_offsets": [96, 112]},
}


def _with_header(path, header, *, size=112):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    return path


@pytest.mark.parametrize(
    "header",
    [
        [],
        b"[" * 100_000,
        b"\xff\xfe",
        {},
        {**_GOOD, "more": _GOOD["labels"]},
        {**_GOOD, "images": None},
        {**_GOOD, "images": {**_GOOD["images"], "shape": [2, 4, 4, -3]}},
        {**_GOOD, "images": {**_GOOD["images"], "shape": [2, 4, 12]}},
        {**_GOOD, "images": {**_GOOD["images"], "shape": [2, 4, 4, True]}},
        {**_GOOD, "images": {**_GOOD["images"], "dtype": "I8"}},
        {**_GOOD, "images": {**_GOOD["images"], "data_offsets": [0, 1 << 70]}},
        {**_GOOD, "labels": {**_GOOD["labels"], "dtype": "U8"}},
        {**_GOOD, "labels": {**_GOOD["labels"], "shape": [3], "data_offsets": [96, 120]}},
        {**_GOOD, "labels": {**_GOOD["labels"], "data_offsets": [88, 104]}},
        {**_GOOD, "labels": {**_GOOD["labels"], "data_offsets": [104, 120]}},
    ],
)
def test_a_header_that_makes_no_sense_is_named(tmp_path, header):
    assert open_packed(_with_header(tmp_path / "good", _GOOD)).images.shape == (2, 4, 4, 3)
    with pytest.raises(PreparedSetError, match=r"bad\.safetensors is not a whole packed file"):
        open_packed(_with_header(tmp_path / "bad.safetensors", header))


def test_bytes_missing_or_too_many_are_named(tmp_path):
    for size in (111, 113):
        with pytest.raises(PreparedSetError, match="bytes"):
            open_packed(_with_header(tmp_path / "x", _GOOD, size=size))
    with pytest.raises(PreparedSetError, match="can't be read"):
        open_packed(tmp_path / "absent")
