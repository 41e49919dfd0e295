import hashlib
import json
import os
import re
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
from inputs import make_ragged_set

from fast_train.data_prep import manifest as manifest_module
from fast_train.data_prep import whole
from fast_train.data_prep.manifest import MANIFEST_NAME, Manifest, PreparedSet, PreparedSetError


def _edit(root, change):
    path = root / MANIFEST_NAME
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_what_a_set_tells(prepared):
    opened = PreparedSet.open(prepared, verify=True)
    assert opened.splits == ("train", "test")
    assert (opened.size("train"), opened.size("test")) == (12, 6)
    assert opened.manifest.classes == ("ant", "bee", "cow")
    assert opened.manifest.image_shape == (6, 8, 3)
    assert opened.manifest.counts == {"train": (4, 4, 4), "test": (2, 2, 2)}
    assert not opened.synthetic
    assert opened.files("test", "packed")[0].is_file()
    pixels = opened.packed("train").images / 255
    np.testing.assert_allclose(opened.manifest.mean, pixels.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(opened.manifest.std, pixels.std(axis=(0, 1, 2)))


def test_json_round_trip(prepared, tmp_path):
    make_ragged_set(tmp_path / "ragged", formats=("packed", "ffcv", "dali"))
    for root in (prepared, tmp_path / "ragged"):
        manifest = PreparedSet.open(root).manifest
        assert Manifest.from_json(manifest.to_json(), where="here") == manifest


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda data: data["counts"].pop("test"), "neither 'validation' nor 'test'"),
        (lambda data: data["pixels"].update(val="0" * 64), "pixels are not the SHA-256"),
        (lambda data: data["pixels"].update(test="0"), "pixels are not the SHA-256"),
        (lambda data: data.update(image_shape="ragged"), "format_version is 1"),
        (lambda data: data.update(image_shape="ragged", format_version=2), "'ragged' is missing"),
    ],
)
def test_what_a_manifest_can_not_say(prepared, change, said):
    _edit(prepared, change)
    with pytest.raises(PreparedSetError, match=said):
        PreparedSet.open(prepared)


@pytest.mark.parametrize(
    "change", [{"side": 0}, {"height": 5000}, {"pixels": 1 << 40}, {"side": 61}, {"width": 0}, {"pixels": 10}]
)
def test_shapes_out_of_range_are_refused(tmp_path, change):
    make_ragged_set(tmp_path / "set")
    _edit(tmp_path / "set", lambda data: data["ragged"].update(change))
    with pytest.raises(PreparedSetError, match="ragged is out of range"):
        PreparedSet.open(tmp_path / "set")


def test_errors_name_what_there_is(prepared):
    opened = PreparedSet.open(prepared)
    with pytest.raises(PreparedSetError, match="no split 'val'; it has train, test"):
        opened.size("val")
    with pytest.raises(PreparedSetError, match=r"no 'ffcv' files .* only packed; .* --formats packed,ffcv --overwrite"):
        opened.files("train", "ffcv")


@pytest.mark.parametrize("name", ["my images", "data/images", "."])
def test_images_that_are_no_set_are_told_how_to_become_one(make_folder, prep, tmp_path, monkeypatch, name):
    """What the error says to type is typed, and makes a set where it says."""
    monkeypatch.chdir(make_folder({"a": 3, "b": 3}, name="images" if name == "." else name).parents[name.count("/")])
    if name == ".":
        monkeypatch.chdir("images")
    with pytest.raises(PreparedSetError) as caught:
        PreparedSet.open(name)
    start, command, typed = str(caught.value).partition("prep-data ")
    assert (start, command) == (f"{name} is not a prepared set; make one with ", "prep-data ")
    arguments = shlex.split(typed)
    assert arguments[:3] == ["--dataset", f"folder:{name}", "--out"]
    assert prep(*arguments).status == 0
    assert PreparedSet.open(arguments[3]).size("train") == 4


def test_no_set_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in ("absent", "file", "."):
        with pytest.raises(PreparedSetError, match="is not a prepared set; make one with prep-data"):
            PreparedSet.open(tmp_path / place)


def test_names_are_those_of_the_images_or_an_error(prepared, prep):
    assert PreparedSet.open(prepared).names("test") == [
        f"test/{c}/{i:03}.png" for c in ("ant", "bee", "cow") for i in (0, 1)
    ]
    path = prepared / "test.names"
    for content, said in (
        (b"x" * path.stat().st_size, "its SHA-256 is wrong"),
        (b"x", "1 bytes instead of"),
        (b"a\0bcdef\0g", "names 2 files for 6 images"),
    ):
        path.write_bytes(content)
        if "names" in said:
            entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            _edit(prepared, lambda data, entry=entry: data["name_files"][1].update(entry))
        with pytest.raises(PreparedSetError, match=rf"test\.names.* {said}.* --overwrite"):
            PreparedSet.open(prepared).names("test")
        assert said in prep("--out", prepared, "--verify").err


@pytest.mark.parametrize("change", ["shorter", "longer", "absent"])
def test_opening_notices_a_file_of_another_size(prepared, change):
    path = prepared / "test.safetensors"
    data = path.read_bytes()
    path.unlink()
    if change != "absent":
        path.write_bytes(data[:-1] if change == "shorter" else data + b"x")
    with pytest.raises(PreparedSetError, match=r"test\.safetensors"):
        PreparedSet.open(prepared)


def _damage(path):
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)


def test_a_changed_pixel_is_noticed_before_the_file_is_used(prepared):
    _damage(prepared / "train.safetensors")
    opened = PreparedSet.open(prepared)
    opened.packed("test")
    with pytest.raises(PreparedSetError, match=r"train\.safetensors is broken: its SHA-256 is wrong"):
        opened.packed("train")
    with pytest.raises(PreparedSetError, match=r"train\.safetensors is broken: its SHA-256 is wrong"):
        PreparedSet.open(prepared, verify=True)


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files whose SHA-256 was computed."""
    names = []
    sha256_of = whole.sha256_of
    monkeypatch.setattr(
        manifest_module, "sha256_of", lambda file: names.append(Path(file.name).name) or sha256_of(file)
    )
    return names


def _grow_old(path):
    """Let the file look as if it had been written an hour ago, as far as a program can: not its time of change."""
    an_hour_ago = time.time() - 3600
    os.utime(path, (an_hour_ago, an_hour_ago))


def test_a_file_is_hashed_once_until_it_changes(prepared, hashed, monkeypatch):
    monkeypatch.setattr(whole, "SETTLED_NS", -1)
    opened = PreparedSet.open(prepared)
    for _ in range(3):
        opened.packed("train")
    assert hashed == ["train.safetensors"]
    _damage(prepared / "train.safetensors")
    _grow_old(prepared / "train.safetensors")
    with pytest.raises(PreparedSetError, match="SHA-256"):
        opened.packed("train")


def test_a_file_that_was_just_written_is_hashed_again(prepared, hashed):
    opened = PreparedSet.open(prepared)
    (prepared / "train.safetensors").touch()
    for _ in range(2):
        opened.packed("train")
    assert hashed == ["train.safetensors"] * 2


@pytest.mark.parametrize("change", ["written", "replaced"])
def test_a_file_that_changes_while_it_is_hashed_is_not_taken_for_whole(prepared, monkeypatch, change):
    monkeypatch.setattr(whole, "SETTLED_NS", -1)
    path = prepared / "train.safetensors"
    good = path.read_bytes()
    sha256_of = whole.sha256_of

    def hash_then_damage(file):
        digest = sha256_of(file)
        if change == "replaced":
            path.unlink()
        path.write_bytes(good[:5000] + bytes([good[5000] ^ 1]) + good[5001:])
        return digest

    opened = PreparedSet.open(prepared)
    with monkeypatch.context() as patched:
        patched.setattr(manifest_module, "sha256_of", hash_then_damage)
        with pytest.raises(PreparedSetError, match=r"train\.safetensors changed while it was read"):
            opened.packed("train")
    with pytest.raises(PreparedSetError, match="SHA-256"):
        opened.packed("train")


def test_verifying_reads_every_byte_again(prepared, hashed, monkeypatch):
    monkeypatch.setattr(whole, "SETTLED_NS", -1)
    for _ in range(2):
        PreparedSet.open(prepared, verify=True)
    assert hashed == ["train.safetensors", "test.safetensors", "train.names", "test.names"] * 2
    PreparedSet.open(prepared).packed("train")
    assert len(hashed) == 8


@pytest.mark.parametrize("name", ["train.safetensors", MANIFEST_NAME])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_only_regular_files_of_the_folder_are_opened(prepared, tmp_path, name, kind):
    """A pipe would let the reader wait for ever, a link leads anywhere. The line says what to do."""
    path = prepared / name
    path.rename(tmp_path / "aside")
    if kind == "link":
        path.symlink_to(tmp_path / "aside")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(PreparedSetError, match=re.escape(str(path)) + ".*; (copy|mend|prepare) ") as caught:
        PreparedSet.open(prepared)
    assert "\n" not in str(caught.value)


def test_a_set_may_be_reached_by_a_link(prepared, tmp_path):
    (tmp_path / "link").symlink_to(prepared)
    assert len(PreparedSet.open(tmp_path / "link").packed("train").labels) == 12


def test_without_a_cache_folder_files_are_hashed_each_time(prepared, hashed, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(whole, "SETTLED_NS", -1)
    opened = PreparedSet.open(prepared)
    for _ in range(2):
        opened.packed("train")
    assert hashed == ["train.safetensors"] * 2


@pytest.mark.parametrize("label", [-1, 3, 1])
def test_labels_must_be_those_that_are_counted(prepared, label):
    path = prepared / "train.safetensors"
    data = path.read_bytes()
    assert data[-8 * 12 :][:8] == bytes(8)
    changed = data[: -8 * 12] + int(label).to_bytes(8, "little", signed=True) + data[-8 * 11 :]
    path.write_bytes(changed)
    manifest = prepared / MANIFEST_NAME
    sums = [hashlib.sha256(content).hexdigest() for content in (data, changed)]
    manifest.write_text(manifest.read_text().replace(*sums))
    opened = PreparedSet.open(prepared)
    with pytest.raises(PreparedSetError, match=r"the labels in .*train\.safetensors"):
        opened.packed("train")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("classes"),
        lambda m: m.pop("mean"),
        lambda m: m.pop("files"),
        lambda m: m.update(format_version=0),
        lambda m: m.update(format_version=True),
        lambda m: m.update(format_version="1"),
        lambda m: m.update(classes=["ant", "ant", "cow"]),
        lambda m: m.update(classes=["ant", "bee", 3]),
        lambda m: m.update(classes="abc"),
        lambda m: m.update(image_shape=[6, 8]),
        lambda m: m.update(image_shape=[6, 8, 0]),
        lambda m: m.update(mean=[0.5, 0.5]),
        lambda m: m.update(mean=[0.5, 0.5, float("nan")]),
        lambda m: m.update(mean=[0.5, 0.5, 10**400]),
        lambda m: m.update(std=[0.5, 0.5, -1]),
        lambda m: m.update(counts={}),
        lambda m: m.update(counts=[1, 2]),
        lambda m: m["counts"].pop("train"),
        lambda m: m["counts"].update(train=[4, 4]),
        lambda m: m["counts"].update(train=[4, 9, -1]),
        lambda m: m.update(source={}),
        lambda m: m.update(source="folder"),
        lambda m: m.update(files=[]),
        lambda m: m["files"].append(m["files"][0]),
        lambda m: m["files"][0].update(path="../train.safetensors"),
        lambda m: m["files"][0].update(path="/etc/passwd"),
        lambda m: m["files"][0].update(path="a/../../b"),
        lambda m: m["files"][0].update(path="a\0b"),
        lambda m: m["files"][0].update(path="\ud800"),
        lambda m: m["files"][0].update(path=""),
        lambda m: m["files"][0].update(split="val"),
        lambda m: m["files"][0].update(bytes="12"),
        lambda m: m["files"][0].update(bytes=-1),
        lambda m: m["files"][0].update(sha256="ABC"),
        lambda m: m["files"][0].update(bytes=0),
        lambda m: m["files"][0].update(format="\x1b[2J"),
        lambda m: m.update(classes=["ant", "bee", "\x1b]0;cow\x07"]),
        lambda m: m.update(classes=["ant", "bee", "\u202ewoc"]),
        lambda m: m.update(classes=["ant", "bee", "\ud800"]),
        lambda m: m["source"].update(kind="\x1b[2J"),
        lambda m: m["source"].update(more=[[[[[[[[[1]]]]]]]]]),
        lambda m: m.update(encodings={"dali": {"mode": "raw", "more": [[[[[[[[1]]]]]]]]}}),
        lambda m: m.update(image_shape=[10**9, 10**9, 3]),
        lambda m: m.update(image_shape=[65_000, 65_000, 3]),
        lambda m: m.update(mean=[0.5, 0.5, 1.5]),
        lambda m: m["counts"].update(train=[0, 0, 0]),
        lambda m: m["counts"].update(train=[10**18, 4, 4]),
        lambda m: m["counts"].update(more=[1, 1, 1]),
        lambda m: m["counts"].update({"\x1b": [1, 1, 1]}),
        lambda m: m["files"][0].pop("format"),
    ],
)
def test_a_manifest_out_of_order_is_one_line(prepared, change):
    _edit(prepared, change)
    with pytest.raises(PreparedSetError, match=r"manifest\.json is not a usable manifest") as caught:
        PreparedSet.open(prepared)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", [b"", b"{", b" " * (17 << 20), b"[]", b"null", b"\xff", b"[" * 100_000, b'{"format_version": 1}']
)
def test_a_manifest_that_is_no_json_is_one_line(prepared, text):
    (prepared / MANIFEST_NAME).write_bytes(text)
    with pytest.raises(PreparedSetError, match=r"manifest\.json is not a usable manifest") as caught:
        PreparedSet.open(prepared)
    assert "\n" not in str(caught.value)


def test_a_newer_version_asks_for_an_upgrade(prepared):
    _edit(prepared, lambda m: m.update(format_version=3, classes=None))
    with pytest.raises(PreparedSetError, match="version 3, this program reads up to 2; upgrade"):
        PreparedSet.open(prepared)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["counts"].update(train=[4, 4, 5]),
        lambda m: m.update(image_shape=[8, 6, 3]),
    ],
)
def test_counts_and_shape_must_be_the_files(prepared, change):
    _edit(prepared, change)
    with pytest.raises(PreparedSetError, match=r"train\.safetensors holds images of shape"):
        PreparedSet.open(prepared)
