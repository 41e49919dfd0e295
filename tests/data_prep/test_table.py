"""`--dataset csv:FILE`."""

import csv
import os
from dataclasses import replace

import pytest

import fast_train
from fast_train.data_prep.manifest import PreparedSet
from fast_train.data_prep.sources import SourceOptions


@pytest.fixture
def images(make_folder):
    return make_folder({"train/ant": 3, "train/bee": 4, "val/ant": 1, "test/bee": 2})


def _rows(root):
    """Of each file below: path, class, split; not in the set's order."""
    files = sorted(root.rglob("*.png"), key=lambda file: (file.name, file))
    return [[str(file.relative_to(root)), file.parent.name, file.parent.parent.name] for file in files]


_HEADER = ("path", "label", "split")


def _write(path, rows, header=_HEADER, **dialect):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, **dialect).writerows([header, *rows])
    return path


@pytest.mark.parametrize("flags", [[], ["--size", "4", "--val-fraction", "0.4"]])
@pytest.mark.parametrize("parted", [True, False])
def test_a_csv_file_gives_the_set_of_the_folder(images, make_folder, prep, tmp_path, flags, parted):
    root = images if parted else make_folder({"ant": 10, "bee": 5}, name="unparted")
    rows = [row[: 2 + parted] for row in _rows(root)]
    table = _write(root / "list.csv", rows, _HEADER[: 2 + parted])
    listed = prep("--dataset", f"csv:{table}", "--out", root / "listed", *flags)
    assert listed.status == 0, listed.err
    os.rename(root / "listed", tmp_path / "listed")
    table.unlink()
    assert prep("--dataset", f"folder:{root}", "--out", tmp_path / "walked", *flags).status == 0
    # The SHA-256 of every file is in the manifest.
    one, other = (PreparedSet.open(tmp_path / name, verify=True).manifest for name in ("listed", "walked"))
    assert replace(one, source={}) == replace(other, source={})
    assert ("validation" in one.counts) == bool(parted or flags)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_quotes_and_marks_of_programs(images, tmp_path, separator, end):
    os.rename(images / "train" / "ant", images / "train" / f"a{separator}b")
    rows = [[path, "c,;|d" if label == "bee" else "cafe\u0301", split] for path, label, split in _rows(images)]
    table = _write(tmp_path / "list.csv", rows, (" File ", "Class", "SET"), delimiter=separator, lineterminator=end)
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes() + end.encode())
    prepared = fast_train.prepare(f"csv:{table}", out=tmp_path / "set", options=SourceOptions(csv_root=str(images)))
    assert prepared.manifest.classes == ("c,;|d", "caf\u00e9")
    assert prepared.manifest.counts == {"train": (4, 3), "validation": (0, 1), "test": (2, 0)}
    assert prepared.source_name == "set"


def test_columns_are_named_where_their_names_say_nothing(images, prep, tmp_path):
    table = _write(images / "list.csv", [[i, *row] for i, row in enumerate(_rows(images))], ("", "x", "target", "set"))
    refused = prep("--dataset", f"csv:{table}", "--out", tmp_path / "set")
    assert refused.status == 2
    assert "no column for the path; its first row has , x, target, set; choose with --csv-columns" in refused.err
    assert "is not understood" in prep("--dataset", f"csv:{table}", "--csv-columns", "x").err
    flags = ("--csv-columns", "path=x,split=")
    assert prep("--dataset", f"csv:{table}", "--out", tmp_path / "set", *flags).status == 0
    assert PreparedSet.open(tmp_path / "set").splits == ("train", "test")


def test_a_changed_file_or_row_makes_another_set(images, prep, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    table = _write(tmp_path / "insects.csv", [[f"images/{path}", *rest] for path, *rest in _rows(images)])
    assert prep("--dataset", "csv:insects.csv").status == 0
    assert "data/insects is whole already" in prep("--dataset", "csv:insects.csv").out
    table.write_text(table.read_text().replace("bee/000.png,bee,test", "bee/000.png,ant,test"))
    changed = prep("--dataset", "csv:insects.csv")
    assert changed.status == 2
    assert "the files in the csv have changed" in changed.err
    assert prep("--dataset", "csv:insects.csv", "--overwrite").status == 0
    (images / "train" / "ant" / "000.png").touch()
    assert "have changed" in prep("--dataset", "csv:insects.csv").err


@pytest.mark.parametrize("labels", [["0", "1", "2", "10", "11"], ["-1", "0.5", "3.0", "12"], ["1", "10", "2", "x"]])
def test_classes_that_are_numbers_are_in_their_order(make_folder, prep, tmp_path, labels):
    root = make_folder(dict.fromkeys(labels, 2))
    rows = [[f"{label}/{i:03}.png", label] for label in labels for i in range(2)]
    table = _write(root / "list.csv", rows, _HEADER[:2])
    assert prep("--dataset", f"csv:{table}", "--out", tmp_path / "set").status == 0
    prepared = PreparedSet.open(tmp_path / "set")
    assert prepared.manifest.classes == tuple(labels)
    folders = [name.split("/")[0] for name in prepared.names("train")]
    assert folders == [labels[label] for label in prepared.packed("train").labels]


def test_a_path_may_lack_its_ending_or_be_in_another_case(images, prep, tmp_path):
    rows = _rows(images)
    for name, change in (("whole", str), ("ids", lambda path: path.removesuffix(".png")), ("case", _in_capitals)):
        table = _write(images / "list.csv", [[change(path), *rest] for path, *rest in rows])
        result = prep("--dataset", f"csv:{table}", "--out", tmp_path / name)
        assert result.status == 0, result.err
    assert (tmp_path / "whole" / "train.names").read_bytes() == (tmp_path / "ids" / "train.names").read_bytes()
    first, *others = (PreparedSet.open(tmp_path / name).manifest for name in ("whole", "ids", "case"))
    assert all(replace(other, source={}) == replace(first, source={}) for other in others)
    (images / "train" / "ant" / "000.xml").touch()
    refused = prep("--dataset", f"csv:{_write(table, [['train/ant/000', 'ant', 'train']])}")
    assert "there is no file" in refused.err
    assert "000, but 000.png and 000.xml; " in refused.err


def _in_capitals(path):
    folder, name = os.path.split(path)
    return f"{folder}/{name.upper()}"


def test_rows_without_a_file_are_left_out_if_asked(images, prep, tmp_path):
    rows = _rows(images)
    arguments = ("--dataset", f"csv:{images / 'list.csv'}", "--out")
    _write(images / "list.csv", [*rows, ["train/ant/none.png", "ant", "train"]])
    skipped = prep(*arguments, tmp_path / "skipped", "--skip-bad")
    assert skipped.status == 0
    assert "skipped 1 file that can't be read as images: train/ant/none.png (No such file or directory)" in skipped.out
    _write(images / "list.csv", rows)
    assert prep(*arguments, tmp_path / "whole").status == 0
    one, other = (PreparedSet.open(tmp_path / name).manifest for name in ("skipped", "whole"))
    assert replace(one, source={}) == replace(other, source={})


def test_rows_of_separators_and_spaces_say_nothing(images, prep, tmp_path):
    rows = [[f" {cell} " for cell in row] for row in _rows(images)]
    rows += [["", "", ""], [" ", "", ""], [" "]]
    table = _write(images / "list.csv", rows, ("filepaths", "labels", "data set"))
    result = prep("--dataset", f"csv:{table}", "--out", tmp_path / "set")
    assert result.status == 0, result.err
    assert PreparedSet.open(tmp_path / "set").manifest.counts["train"] == (3, 4)


_MORE = "path,label,split\ntest/bee/000.png,ant,train\ntest/bee/001.png,bee,train\n"


@pytest.mark.parametrize(
    "content, fault",
    [
        (_MORE + "train/ant/none.png,ant,train", "row 4: there is no file {root}/train/ant/none.png; --csv-root says"),
        (_MORE + "train/ant,ant,train", "row 4: there is no file {root}/train/ant;"),
        (_MORE + r"train\ant\000.png,ant,train", r"row 4: there is no file {root}/train\ant\000.png; write / for"),
        (_MORE + "../list.png,ant,train", "row 4: {parent}/list.png lies outside of {root}"),
        (_MORE + "/list.png,ant,train", "row 4: /list.png lies outside of {root}"),
        (_MORE + "val/ant/000.png,,train", "row 4: the label is empty"),
        (_MORE + "val/ant/000.png,ant,fold3", "row 4: the split fold3 is not known; choose from train, training, val"),
        (_MORE + "val/ant/000.png,cow,test", "row 4: the class 'cow' of the test split has no row for training"),
        (_MORE + "val/ant/000.png,a\u2028b,train", "row 4: the class a\\u2028b does not print"),
        (_MORE + "val/ant/000.png,ant", "row 4: cells 2, names in the header 3"),
        (_MORE + "test/bee/000.png,ant,train", "row 4: test/bee/000.png is in row 2 already; keep one"),
        (_MORE + "./test/bee/000.png,bee,train", "test/bee/000.png is in row 2 already, as train 'ant'; keep one"),
        (_MORE + 'val/ant/000.png,"ant,train', "is not CSV in UTF-8 after row 3: unexpected end of data"),
        ("", "no column for the path; its first row has nothing"),
        ("path,label\n", "holds no images for training"),
        ("path,label\nval/ant/000.png,ant\n", "holds the single class 'ant' for training"),
        ("path,label,Class\n", "several columns for the label; its first row has path, label, Class"),
        ("path,caf\udce9\n", "is not CSV in UTF-8 after row 1"),
        (None, "list.csv: No such file or directory; give --dataset csv:FILE a CSV file"),
    ],
)
def test_what_can_not_be_used_is_one_line(images, prep, tmp_path, content, fault):
    if content is not None:
        (images / "list.csv").write_text(content, encoding="utf-8", errors="surrogateescape")
    result = prep("--dataset", f"csv:{images / 'list.csv'}", "--out", tmp_path / "refused")
    assert result.status == 2
    assert fault.format(root=images, parent=tmp_path) in result.err
    assert len(result.err.splitlines()) == 1
    assert not list(tmp_path.glob("*refused*"))
