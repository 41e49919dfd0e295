"""Sets of images that keep their own shapes: what is stored of each file, and the three formats of them."""

import hashlib
import io
import json

import numpy as np
import pytest
from inputs import encoded_image, make_ragged_set, smooth_image
from PIL import Image

from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.formats import RAGGED_WRITERS
from fast_train.data_prep.formats.decode import decode_rgb
from fast_train.data_prep.formats.ragged import LONGEST_SIDE
from fast_train.data_prep.images import Files, Reading
from fast_train.data_prep.keep import Keeping, keep
from fast_train.data_prep.manifest import MANIFEST_NAME, PreparedSet
from fast_train.data_prep.stats import PixelHash, pixel_digest

FORMATS = ("packed", "ffcv", "dali")


def _photograph(width, height, seed=0):
    return smooth_image(np.random.default_rng(seed), height, width)


def _kept(path, *, side=40, store="png", quality=95):
    """What is stored of one file: (image, job's result)."""
    kept = keep(Files([str(path)], ["name"], [1]), Keeping(side, store, quality), Reading())
    assert not kept.bad
    return kept.images[0], kept


def _open(encoded):
    return Image.open(io.BytesIO(encoded.data))


@pytest.mark.parametrize(
    "size, stored",
    [
        ((40, 70), (40, 70)),
        ((30, 20), (30, 20)),
        ((80, 100), (40, 50)),
        ((41, 41), (40, 40)),
        ((3, LONGEST_SIDE + 1), (3, LONGEST_SIDE)),
        ((80, 20_000), (16, LONGEST_SIDE)),
        ((1, 100_000), (1, LONGEST_SIDE)),
        ((200, 250), (40, 50)),
        ((43, 100), (40, 93)),
    ],
)
def test_what_is_larger_is_scaled_down_and_nothing_up(size, stored):
    keeping = Keeping(40, "png", 95)
    assert keeping.stored_shape(*size) == stored
    assert keeping.stored_shape(*size[::-1]) == stored[::-1]


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"quality": 40, "subsampling": 0}, {"comment": b"by me"}, {"icc_profile": b"x" * 900}],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_that_fits_is_copied(tmp_path, mode, options):
    _photograph(50, 40).convert(mode).save(tmp_path / "a.jpg", **options)
    image, kept = _kept(tmp_path / "a.jpg")
    assert image == ((tmp_path / "a.jpg").read_bytes(), 40, 50)
    assert kept.copied == 1
    assert kept.pixels == [pixel_digest(decode_rgb(*image))]


def _with_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


def _without_end(path):
    path.write_bytes(path.read_bytes() + b"more after the end")


def _relabelled(path):
    """Channels called R, G and B, which some decoders take for these colours."""
    raw = bytearray(path.read_bytes())
    frame, scan = raw.index(b"\xff\xc0") + 10, raw.index(b"\xff\xda") + 5
    for number, name in enumerate(b"RGB"):
        raw[frame + 3 * number] = raw[scan + 2 * number] = name
    path.write_bytes(raw)


@pytest.mark.parametrize(
    "mode, options, change",
    [
        ("CMYK", {}, None),
        ("RGB", {"exif": b"Exif\0\0" + b"x" * 30_000, "comment": b"y" * 60_000}, None),
        ("RGB", {}, _without_end),
        ("RGB", {}, _relabelled),
    ],
)
def test_a_jpeg_that_not_all_decoders_read_alike_is_encoded(tmp_path, mode, options, change):
    path = tmp_path / "a.jpg"
    _photograph(50, 40).convert(mode).save(path, **options)
    if change:
        change(path)
    image, kept = _kept(path)
    assert kept.copied == 0
    assert (_open(image).format, _open(image).mode, _open(image).size) == ("JPEG", "RGB", (50, 40))
    whole = np.asarray(Image.open(path).convert("RGB"), dtype=int)
    assert np.abs(whole - np.asarray(_open(image))).mean() < 2
    # Nothing but pixels comes along.
    assert len(image.data) < 5000


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_jpeg_is_stored_upright(tmp_path, orientation):
    from PIL import ImageOps

    _photograph(50, 44).save(tmp_path / "a.jpg", **_with_exif(orientation))
    image, _ = _kept(tmp_path / "a.jpg", side=44)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg"))
    assert (image.width, image.height) == upright.size == _open(image).size
    assert not _open(image).getexif()
    assert np.abs(np.asarray(upright, dtype=int) - np.asarray(_open(image))).mean() < 2


def test_a_larger_jpeg_is_scaled_down_antialiased(tmp_path):
    _photograph(90, 60).save(tmp_path / "a.jpg", quality=95)
    image, kept = _kept(tmp_path / "a.jpg")
    assert (image.height, image.width, kept.resized) == (40, 60, 1)
    wanted = Image.open(tmp_path / "a.jpg").resize((60, 40), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(wanted, dtype=int) - np.asarray(_open(image))).mean() < 1
    # Colours as fine as brightness.
    assert [layer[1:3] for layer in _open(image).layer] == [(1, 1)] * 3
    assert len(_kept(tmp_path / "a.jpg", quality=50)[0].data) < len(image.data)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_others_are_stored_without_loss_unless_asked(tmp_path, mode):
    _photograph(50, 40).convert(mode).save(tmp_path / "a.png")
    image, _ = _kept(tmp_path / "a.png")
    assert (_open(image).format, _open(image).mode) == ("PNG", "RGB")
    assert np.array_equal(decode_rgb(*image), Image.open(tmp_path / "a.png").convert("RGB"))
    jpeg, _ = _kept(tmp_path / "a.png", store="jpeg")
    assert (_open(jpeg).format, _open(jpeg).mode, jpeg.height, jpeg.width) == ("JPEG", "RGB", 40, 50)


@pytest.fixture
def photographs(tmp_path):
    """A folder: JPEG files of 30 to 90 pixels, two PNG files, in three splits."""
    generator = np.random.default_rng(3)
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        for name in "ab":
            folder = tmp_path / "photographs" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                width, height = (int(side) for side in generator.integers(30, 91, 2))
                smooth_image(generator, height, width).save(folder / f"{number}.jpg", quality=90)
    smooth_image(generator, 35, 70).save(tmp_path / "photographs" / "train" / "a" / "6.png")
    smooth_image(generator, 80, 70).save(tmp_path / "photographs" / "test" / "b" / "6.png")
    return tmp_path / "photographs"


@pytest.fixture
def prepare(prep, photographs, tmp_path):
    def run(*arguments, out="set"):
        result = prep("--dataset", f"folder:{photographs}", "--out", tmp_path / out, *arguments)
        assert result.status == 0, result.err
        return PreparedSet.open(tmp_path / out, verify=True), result.out

    return run


def _stored(prepared, split):
    """(file, label) of each image of a packed split."""
    encoded = prepared.encoded(split)
    return [
        (bytes(encoded.file(i)), int(encoded.heights[i]), int(encoded.widths[i]), int(encoded.labels[i]))
        for i in range(len(encoded.labels))
    ]


def test_a_folder_of_several_sizes_keeps_them(prepare, photographs):
    prepared, out = prepare("--shorter-side", 50)
    manifest = prepared.manifest
    assert manifest.counts == {"train": (7, 6), "validation": (2, 2), "test": (3, 4)}
    assert "keep their shapes" in out
    assert "13 train, 4 validation and 7 test images of their own shapes, shorter side" in out
    stored = [image for split in prepared.splits for image in _stored(prepared, split)]
    names = [name for split in prepared.splits for name in prepared.names(split)]
    copied = 0
    for name, (data, height, width, label) in zip(names, stored, strict=True):
        path = photographs / name
        with Image.open(path) as source:
            assert (height, width) == Keeping(50, "png", 95).stored_shape(source.height, source.width)
            copied += data == path.read_bytes()
            assert Image.open(io.BytesIO(data)).format == source.format
        assert label == "ab".index(path.parent.name)
    assert manifest.source["copied"] == copied > 0
    assert manifest.source["resized"] == sum(f.suffix == ".jpg" for f in photographs.rglob("*.*")) + 1 - copied
    assert manifest.ragged.height == max(image[1] for image in stored)
    assert manifest.ragged.width == max(image[2] for image in stored)
    assert manifest.ragged.pixels == max(image[1] * image[2] for image in stored)
    assert manifest.ragged.side == sorted(min(image[1:3]) for image in stored)[(len(stored) - 1) // 2]


def test_statistics_and_hash_are_of_the_stored_pixels(prepare):
    manifest = (prepared := prepare("--shorter-side", 50)[0]).manifest
    for split in prepared.splits:
        digest = PixelHash()
        decoded = [decode_rgb(*image[:3]) for image in _stored(prepared, split)]
        digest.update(map(pixel_digest, decoded), prepared.encoded(split).labels)
        assert manifest.pixels[split] == digest.hexdigest()
        if split == "train":
            pixels = np.concatenate([image.reshape(-1, 3) for image in decoded]) / 255
            assert np.allclose(manifest.mean, pixels.mean(axis=0))
            assert np.allclose(manifest.std, pixels.std(axis=0))


def test_all_formats_hold_the_same_files(prepare):
    prepared, _ = prepare("--shorter-side", 50, "--formats", "packed,ffcv,dali")
    for split in prepared.splits:
        beton, shards = prepared.beton(split), prepared.tfrecords(split)
        raw = np.fromfile(beton.path, dtype=np.uint8)
        jpegs = zip(beton.jpeg_begins, beton.jpeg_sizes, strict=True)
        for number, (data, height, width, label) in enumerate(_stored(prepared, split)):
            for opened in (beton, shards):
                assert (opened.heights[number], opened.widths[number]) == (height, width)
                assert opened.labels[number] == label
            assert bytes(shards.blob(number)) == data
            assert beton.is_jpeg[number] == data.startswith(b"\xff\xd8")
            if beton.is_jpeg[number]:
                begin, size = next(jpegs)
                assert bytes(raw[begin : begin + size]) == data


def test_another_request_is_told_apart(prepare, prep, photographs):
    prepared, _ = prepare("--shorter-side", 50)
    same = ["--dataset", f"folder:{photographs}", "--out", prepared.root]
    assert "whole already" in prep(*same, "--shorter-side", 50, "--jpeg-quality", 95).out
    for change, said in (
        (["--shorter-side", 60], "shorter_side 50, not 60"),
        (["--shorter-side", 50, "--store", "jpeg"], "store unset, not jpeg"),
        (["--shorter-side", 50, "--jpeg-quality", 80], "encoded quality 95, not encoded quality 80"),
        (["--size", 8], "size unset, not 8"),
        (["--shorter-side", 50, "--formats", "packed,dali"], "without dali files"),
        (["--shorter-side", 50, "--formats", "packed,ffcv", "--ffcv-mode", "jpg"], "--ffcv-mode means nothing"),
    ):
        result = prep(*same, *change)
        assert (result.status, said in result.err) == (2, True), result.err
        assert len(result.err.splitlines()) == 1


def test_squares_of_an_earlier_version_are_told_apart(prepare, prep, photographs):
    """One that made squares of 64 pixels of images that differ."""
    prepared, _ = prepare("--size", 64)
    path = prepared.root / MANIFEST_NAME
    data = json.loads(path.read_text())
    data["source"]["size"] = None
    path.write_text(json.dumps(data))
    result = prep("--dataset", f"folder:{photographs}", "--out", prepared.root)
    assert "holds another set (images of 64x64 pixels, not of their own shapes)" in result.err
    assert prep("--dataset", f"folder:{photographs}", "--out", prepared.root, "--overwrite").status == 0
    assert PreparedSet.open(prepared.root).manifest.ragged


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--fit", "pad"], "--fit means nothing without --size"),
        (["--size", 8, "--store", "jpeg"], "--store means nothing with --size"),
        (["--size", 8, "--shorter-side", 9], "--shorter-side means nothing with --size"),
        (["--shorter-side", 0], "--shorter-side 0 is out of range; give 1 to 4096"),
        (["--store", "webp"], "--store webp is not known; choose from png, jpeg"),
        (["--formats", "dali", "--dali-mode", "jpg"], "--dali-mode means nothing to images that keep their shapes"),
        (["--formats", "ffcv", "--ffcv-mode", "jpg"], "--ffcv-mode means nothing to images that keep their shapes"),
        (["--ffcv-mode", "jpg"], "--ffcv-mode means nothing to --formats packed"),
        (["--formats", "ffcv", "--jpeg-share", "0.2"], "--jpeg-share means nothing to --formats ffcv"),
        (["--jpeg-quality", 0], "--jpeg-quality 0 is out of range"),
    ],
)
def test_flags_that_mean_nothing_are_refused(prep, photographs, tmp_path, flags, said):
    result = prep("--dataset", f"folder:{photographs}", "--out", tmp_path / "none", *flags)
    assert result.status == 2
    assert said in result.err
    assert "keep their shapes" not in result.out, "refused only after all images were looked at"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("flags", [["--shorter-side", 9], ["--store", "jpeg"], ["--jpeg-quality", 80]])
def test_small_images_of_one_size_are_pixels(make_folder, prep, tmp_path, flags):
    root = make_folder({"a": 3, "b": 3}, size=(128, 100))
    assert prep("--dataset", f"folder:{root}", "--out", tmp_path / "set").status == 0
    assert PreparedSet.open(tmp_path / "set").manifest.image_shape == (100, 128, 3)
    result = prep("--dataset", f"folder:{root}", "--out", tmp_path / "other", *flags)
    assert result.status == 2
    assert f"{flags[0]} means nothing" in result.err


def test_large_images_of_one_size_keep_their_shape(make_folder, prep, tmp_path):
    root = make_folder({"a": 3, "b": 3}, size=(129, 100))
    assert prep("--dataset", f"folder:{root}", "--out", tmp_path / "set").status == 0
    assert PreparedSet.open(tmp_path / "set").manifest.ragged.width == 129


def test_bad_files_are_left_out_as_if_they_were_not_there(prepare, photographs):
    without, _ = prepare("--shorter-side", 50)
    smooth_image(np.random.default_rng(0), 300, 400).save(photographs / "train" / "a" / "bad.jpg", quality=95)
    whole = (photographs / "train" / "a" / "bad.jpg").read_bytes()
    (photographs / "train" / "a" / "bad.jpg").write_bytes(whole[: len(whole) // 2])
    opened, out = prepare("--shorter-side", 50, "--skip-bad", out="other")
    assert "once more without 1 file" in out
    for part in ("shape", "counts", "mean", "std", "files", "pixels"):
        assert getattr(opened.manifest, part) == getattr(without.manifest, part)


def test_the_number_of_workers_changes_nothing(prepare):
    first, _ = prepare("--workers", 1, "--formats", "packed,ffcv,dali")
    second, _ = prepare("--workers", 3, "--formats", "packed,ffcv,dali", out="other")
    assert first.manifest == second.manifest


@pytest.mark.parametrize("format", FORMATS)
def test_fewer_images_than_announced_and_one_too_many(tmp_path, format):
    generator = np.random.default_rng(0)
    images = [encoded_image(generator, number) for number in (0, 4)]
    pixels = max(image.height * image.width for image in images)
    content = sum(len(image.data) for image in images)
    writer = RAGGED_WRITERS[format](tmp_path, "train", 5, pixels)
    writer.write(images, np.array([0, 1]))
    with pytest.raises(ValueError, match="takes 5 images of up to"):
        writer.write(images * 2, np.zeros(4, dtype=np.int64))
    with pytest.raises(ValueError, match="takes 5 images of up to"):
        writer.write([images[0]._replace(height=4000)], np.array([0]))
    size = sum((tmp_path / name).stat().st_size for name in writer.close())
    # The pixels of a PNG file may be more than its bytes.
    assert size <= RAGGED_WRITERS[format].estimate_bytes(5, content + 3 * pixels, pixels)
    empty = RAGGED_WRITERS[format](tmp_path, "test", 5, pixels)
    with pytest.raises(ValueError, match="would hold no image"):
        empty.close()
    empty.abort()


def _opened(prepared, format):
    how = {"packed": prepared.encoded, "ffcv": prepared.beton, "dali": prepared.tfrecords}
    return how[format]("train")


# What FFCV or DALI would take on trust: (what is looked for in a file, its bytes in place of those `after` it).
_HARM = {
    "height": (b"\xff\xc0", 5, b"\x0f\xff"),
    "width": (b"\xff\xc0", 7, b"\x0f\xff"),
    "bits": (b"\xff\xc0", 4, b"\x0c"),
    "channels": (b"\xff\xc0", 9, b"\x04"),
    "sampling": (b"\xff\xc0", 14, b"\x33"),
    "arithmetic": (b"\xff\xc0", 1, b"\xc9"),
    "start": (b"\xff\xd8\xff", 0, b"\x00"),
    "png height": (b"IHDR", 8, b"\0\0\x0f\xff"),
    "png kind": (b"IHDR", 13, b"\x06"),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("harm", _HARM)
def test_headers_are_what_the_file_says(tmp_path, format, harm):
    make_ragged_set(tmp_path / "set", formats=(format,))
    prepared = PreparedSet.open(tmp_path / "set")
    _opened(prepared, format)
    entry = prepared.entries("train", format)[0]
    marker, after, wrong = _HARM[harm]
    raw = bytearray((prepared.root / entry.path).read_bytes())
    if marker not in raw:
        # FFCV's files have the pixels of a PNG file.
        return
    at = raw.index(marker) + after
    raw[at : at + len(wrong)] = wrong
    (prepared.root / entry.path).write_bytes(raw)
    manifest = prepared.root / MANIFEST_NAME
    manifest.write_text(manifest.read_text().replace(entry.sha256, hashlib.sha256(raw).hexdigest()))
    with pytest.raises(PreparedSetError, match="its image files are not all of their heights and widths"):
        _opened(PreparedSet.open(prepared.root), format)


@pytest.mark.parametrize("format", FORMATS)
def test_images_larger_than_the_manifest_says_are_refused(tmp_path, format):
    make_ragged_set(tmp_path / "set", formats=(format,))
    path = tmp_path / "set" / MANIFEST_NAME
    data = json.loads(path.read_text())
    data["ragged"]["height"] -= 1
    path.write_text(json.dumps(data))
    with pytest.raises(PreparedSetError, match=r"larger than its manifest says|out of range"):
        _opened(PreparedSet.open(tmp_path / "set"), format)


def test_the_ways_into_a_set_of_the_other_kind_say_so(tmp_path, prepared):
    make_ragged_set(tmp_path / "ragged")
    with pytest.raises(PreparedSetError, match="differ in shape"):
        PreparedSet.open(tmp_path / "ragged").packed("train")
    with pytest.raises(PreparedSetError, match="holds images of one shape"):
        PreparedSet.open(prepared).encoded("train")


def test_an_interrupted_run_leaves_nothing(prep, photographs, tmp_path, monkeypatch):
    from fast_train.data_prep.sources.folder import ImageFolder

    def stop(source):
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageFolder, "outcome", stop)
    result = prep("--dataset", f"folder:{photographs}", "--out", tmp_path / "sets" / "set", "--formats", "ffcv,dali")
    assert result.status == 130
    assert not (tmp_path / "sets").exists()
