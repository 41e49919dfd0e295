"""`--dataset parquet:PATH`."""

import json
import os
import shutil
import sys
from dataclasses import replace

import pytest
from PIL import Image

import fast_train
from fast_train.data_prep.manifest import PreparedSet


@pytest.fixture
def write():
    """Writes rows of (encoded image or None, label) as the library datasets does."""
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'fast-train[parquet]'")
    from pyarrow import parquet

    forms = {
        "struct": (pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}), True),
        "never null": (pyarrow.struct([pyarrow.field("bytes", pyarrow.large_binary(), nullable=False)]), True),
        "plain": (pyarrow.binary(), False),
    }

    def run(path, rows, classes=None, columns=("image", "label"), form="struct", **more):
        kind, nested = forms[form]
        images = pyarrow.array([{"bytes": content} if nested else content for content, _ in rows], kind)
        table = pyarrow.table({columns[0]: images, columns[1]: [label for _, label in rows], **more})
        if classes:
            features = {columns[1]: {"names": list(classes), "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, path, row_group_size=3)

    return run


def _rows(folder, classes):
    return [
        (file.read_bytes(), label) for label, name in enumerate(classes) for file in sorted(folder.glob(f"{name}/*"))
    ]


@pytest.mark.parametrize("columns", [("image", "label"), ("img", "fine_label")])
@pytest.mark.parametrize("flags", [[], ["--size", "5"]])
def test_the_set_is_that_of_a_folder(make_folder, write, prep, tmp_path, columns, flags):
    images = make_folder({"train/ant": 5, "train/bee": 4, "val/bee": 1, "test/ant": 2, "test/bee": 1})
    if not flags:
        # Images of two sizes keep their shapes.
        Image.new("RGB", (40, 30), "red").save(images / "train" / "ant" / "big.jpg")
    train = _rows(images / "train", ("ant", "bee"))
    place = tmp_path / "hub"
    write(place / "data" / "train-00000-of-00002.parquet", train[:4], ("ant", "bee"), columns)
    write(place / "data" / "train-00001-of-00002.parquet", train[4:], ("ant", "bee"), columns)
    write(
        place / "data" / "validation-00000-of-00001.parquet",
        _rows(images / "val", ("ant", "bee")),
        ("ant", "bee"),
        columns,
    )
    write(place / "test" / "0000.parquet", _rows(images / "test", ("ant", "bee")), ("ant", "bee"), columns)
    for name, dataset in (("one", f"parquet:{place}"), ("other", f"folder:{images}")):
        result = prep("--dataset", dataset, "--out", tmp_path / name, *flags)
        assert result.status == 0, result.err
    one, other = (PreparedSet.open(tmp_path / name, verify=True).manifest for name in ("one", "other"))
    # All but the files' names, and so their sums.
    assert replace(one, source={}, name_files=()) == replace(other, source={}, name_files=())
    assert PreparedSet.open(tmp_path / "one").names("train")[4] == "data/train-00001-of-00002/0000000"
    assert "whole already" in prep("--dataset", f"parquet:{place}", "--out", tmp_path / "one", *flags).out
    shutil.copy(place / "data" / "train-00000-of-00002.parquet", place / "data" / "train-2.parquet")
    assert "have changed" in prep("--dataset", f"parquet:{place}", "--out", tmp_path / "one", *flags).err


def test_one_file_is_parted_and_its_numbers_are_classes(make_folder, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (content, _), *_ = _rows(make_folder({"a": 1}), "a")
    write(tmp_path / "digits.parquet", [(content, label) for label in (10, 2, 3) * 5])
    prepared = fast_train.prepare("parquet:digits.parquet")
    assert prepared.root.name == prepared.source_name == "digits"
    assert prepared.manifest.classes == ("2", "3", "10")
    assert prepared.manifest.counts == {"train": (4, 4, 4), "test": (1, 1, 1)}


@pytest.mark.parametrize("form", ["never null", "plain"])
def test_images_are_bytes_in_any_form(make_folder, write, prep, tmp_path, form):
    rows = _rows(make_folder({"a": 5, "b": 5}), "ab")
    write(tmp_path / "a.parquet", rows, "ab")
    assert prep("--dataset", f"parquet:{tmp_path / 'a.parquet'}", "--out", tmp_path / "one").status == 0
    # A column of paths is none of images.
    write(tmp_path / "a.parquet", rows, "ab", ("img", "labels"), form, image=["x.png"] * len(rows))
    result = prep("--dataset", f"parquet:{tmp_path / 'a.parquet'}", "--out", tmp_path / "other")
    assert result.status == 0, result.err
    one, other = (PreparedSet.open(tmp_path / name).manifest for name in ("one", "other"))
    assert replace(one, source={}) == replace(other, source={})


def test_what_has_no_labels_or_no_image_is_left_out_with_a_word(make_folder, write, prep, tmp_path):
    rows = _rows(make_folder({"a": 5, "b": 5}), "ab")
    write(tmp_path / "hub" / "train.parquet", [*rows, (None, 1)], "bac")
    write(tmp_path / "hub" / "test.parquet", [(rows[0][0], -1)], "bac")
    arguments = ("--dataset", f"parquet:{tmp_path / 'hub'}", "--out", tmp_path / "set")
    refused = prep(*arguments)
    assert refused.status == 2
    assert "the first is train/0000010" in refused.err
    skipped = prep(*arguments, "--skip-bad")
    assert "test.parquet has no labels and is left out" in skipped.out
    assert "unpacking: 11 in " in skipped.out
    assert "1 of 3 classes have no training images" in skipped.out
    manifest = PreparedSet.open(tmp_path / "set").manifest
    assert (manifest.classes, manifest.counts) == (("b", "a"), {"train": (4, 4), "test": (1, 1)})


def test_which_files_are_read(make_folder, write, prep, tmp_path):
    rows = _rows(make_folder({"a": 5, "b": 5}), "ab")
    place = tmp_path / "hub"
    for name in ("train-2-of-12", "train-10-of-12", "train/validation"):
        write(place / f"{name}.PARQUET", rows, "ab")
    for name in ("._train-2-of-12.parquet", ".cache/train.parquet"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("what systems and programs leave")
    result = prep("--dataset", f"parquet:{place}", "--out", tmp_path / "set")
    assert result.status == 0, result.err
    assert "train-*-of-12: 2 of 12 files are there" in result.out
    prepared = PreparedSet.open(tmp_path / "set")
    assert prepared.splits == ("train", "validation")
    assert list(dict.fromkeys(map(os.path.dirname, prepared.names("train")))) == ["train-2-of-12", "train-10-of-12"]


@pytest.mark.parametrize(
    "files, fault",
    [
        ({}, "holds no parquet file"),
        ({"train": ([0, 1], "ab"), "more": ([0, 1], "ab")}, "more.parquet is of no split, others are"),
        ({"train": ([0, 1], "ab"), "test": ([0, 1], "ac")}, "name different classes"),
        (
            {"a/train": ([0, 1], "ab"), "b/train": ([0, 1], "ab")},
            "{hub}/a and {hub}/b each have a train split",
        ),
        ({"train": ([0, 2], "ab")}, "train.parquet, row 1: label 2 is no class; each row needs one, a number below 2"),
        ({"train": ([0, None], "ab")}, "train.parquet, row 1: label None is no class"),
        ({"train": ([[0, 1], [1]],)}, "row 0: label [0, 1] is no class; each row needs one, a whole number or text"),
        ({"train-0": ([0, 1],), "train-1": (["a", "b"],)}, "the labels of {hub} are text and numbers"),
        ({"train": ([0, 0], "ab")}, "holds 1 classes for training"),
        ({"train": ([0, 1], "abc"), "test": ([2], "abc")}, "has images of class 'c', but none for training"),
        ({"train": ([0, 1], "ab", ("image", "target"))}, "it has image, target; rename them, or move the file away"),
        ({"train": b"PAR1 and no more"}, "train.parquet can't be read"),
    ],
)
def test_what_can_not_be_used_is_one_line(write, prep, tmp_path, files, fault):
    place = tmp_path / "hub"
    place.mkdir()
    for name, content in files.items():
        if isinstance(content, bytes):
            (place / f"{name}.parquet").write_bytes(content)
        else:
            labels, *rest = content
            write(place / f"{name}.parquet", [(b"", label) for label in labels], *rest)
    result = prep("--dataset", f"parquet:{place}", "--out", tmp_path / "refused")
    assert result.status == 2
    assert fault.format(hub=place) in result.err
    assert len(result.err.splitlines()) == 1
    assert not list(tmp_path.glob("*refused*"))


def test_damaged_text_is_one_line(write, prep, tmp_path):
    path = tmp_path / "a.parquet"
    write(path, [(b"", "strange"), (b"", "b")])
    path.write_bytes(path.read_bytes().replace(b"strange", b"strang\xff"))
    result = prep("--dataset", f"parquet:{path}", "--out", tmp_path / "set")
    assert result.status == 2
    assert result.err.startswith(f"prep-data: error: {path} can't be read: 'utf-8' codec can't decode byte 0xff")


def test_without_pyarrow_it_is_one_line(prep, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = prep("--dataset", f"parquet:{tmp_path}", "--out", tmp_path / "set")
    assert result.err == "prep-data: error: parquet files need pyarrow: pip install 'fast-train[parquet]'\n"
