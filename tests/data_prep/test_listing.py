"""Which files of a folder make which class of which split; none of them is opened."""

import os
import sys
import traceback
from collections import Counter

import pytest

from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.sources.listing import draw_split, linked_files, list_folder

NFC, NFD = "caf\u00e9", "cafe\u0301"


@pytest.fixture
def make(tmp_path):
    """Builds a folder: {"train/ant": 5, ...} gives so many empty files."""

    def build(counts):
        for folder, count in counts.items():
            (tmp_path / "images" / folder).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                (tmp_path / "images" / folder / f"{i:03}.png").touch()
        return tmp_path / "images"

    return build


def _counts(listing):
    return dict(Counter((file.split, file.class_name) for file in listing.files))


@pytest.mark.parametrize(
    "folders, splits, noted",
    [
        (("train", "test"), ("train", "test"), []),
        (("Training", "Testing", "Validation"), ("train", "test", "validation"), []),
        (("TRAIN", "valid"), ("train", "validation"), []),
        (("train", "val", "TEST"), ("train", "validation", "test"), []),
        (("train", "Validation", "more"), ("train", "validation"), ["ignored beside train and Validation: more"]),
    ],
)
def test_splits_go_by_their_usual_names(make, folders, splits, noted):
    train, *held_out = folders
    listing = list_folder(make({f"{train}/a": 3, f"{train}/b": 2, **{f"{folder}/a": 1 for folder in held_out}}))
    assert _counts(listing) == {("train", "a"): 3, ("train", "b"): 2, **{(split, "a"): 1 for split in splits[1:]}}
    assert set(listing.splits) == set(splits)
    assert listing.notes == noted


def test_images_for_testing_without_class_folders_have_no_labels(make):
    listing = list_folder(make({"train/a": 3, "train/b": 2, "val/a": 1, "test": 7}))
    assert _counts(listing) == {("train", "a"): 3, ("train", "b"): 2, ("validation", "a"): 1}
    assert listing.notes == [
        "test/ holds no class folders, so its images have no labels",
        "ignored beside train and val: test",
    ]


def test_images_for_testing_whose_one_folder_is_no_class_have_no_labels(make):
    listing = list_folder(make({"train/a": 3, "train/b": 2, "val/b": 1, "test/unknown": 5}))
    assert _counts(listing) == {("train", "a"): 3, ("train", "b"): 2, ("validation", "b"): 1}


def test_without_labels_to_test_on_there_is_one_split(make):
    listing = list_folder(make({"train/a": 3, "train/b": 2, "test": 5}))
    assert listing.splits == ("train",)
    assert _counts(listing) == {("train", "a"): 3, ("train", "b"): 2}
    assert listing.notes == [
        "test/ holds no class folders, so its images have no labels",
        "ignored beside train: test",
    ]


@pytest.mark.parametrize(
    "folders, said",
    [
        ({"Train/a": 1, "train/a": 1}, "has both Train/ and train/; keep one"),
        ({"train/a": 1, "val/a": 1, "valid/a": 1}, "has both val/ and valid/; keep one"),
        ({"Testing/a": 1, "Validation/a": 1}, "has Testing/ but no train/"),
        ({"Learn/a": 2, "Learn/b": 2, "Check/a": 1, "Check/b": 1}, "Check and Learn in .* are no classes"),
        ({"Learn/a": 2, "Learn/b": 2, "Learn/c": 1, "Check/a": 1, "Check/b": 1}, "call them train and test"),
        ({"train/x/a": 2, "train/x/b": 2, "train/y/a": 1, "train/y/b": 1, "test/x": 1}, "x and y in .* are no classes"),
        ({"more/images/train/a": 2, "more/images/test/a": 2}, r"did you mean --dataset folder:\S*more/images\?"),
        ({"train/images/a": 2, "train/images/b": 2}, "move up the folders of train/images/"),
        ({"a\u2028": 1, "b": 1}, r"a\\u2028 does not print; rename it"),
        ({"a\u202eb": 1, "b": 1}, r"a\\u202eb does not print"),
        ({os.fsdecode(b"\xff"): 1, "b": 1}, r"\\xff does not print"),
    ],
)
def test_folders_that_are_no_classes(make, folders, said):
    with pytest.raises(PreparedSetError, match=said):
        list_folder(make(folders))


@pytest.mark.parametrize(
    "folders",
    [
        {"a/images": 2, "b/images": 2},
        {"a/left": 1, "a/right": 1, "b/left": 1, "b/right": 1, "b": 1},
        {f"{person}/{view}": 1 for person in "abcd" for view in ("left", "right")},
    ],
)
def test_classes_may_hold_folders_of_the_same_names(make, folders):
    assert list_folder(make(folders)).classes == tuple(sorted({folder.split("/")[0] for folder in folders}))


def test_what_systems_leave_is_left_out_at_every_depth_and_counted_once(make):
    root = make({"cat": 3, "dog": 2, "lost+found": 0, "$RECYCLE.BIN/S-1": 4, "__MACOSX/cat": 1, "RECYCLER": 1})
    for name in (
        "cat/x/@eaDir/000.png",
        "dog/System Volume Information",
        "dog/Icon\r",
        "cat/x/ehthumbs.db",
        ".a",
        "cat/.b",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "README.md").touch()
    listing = list_folder(root)
    assert _counts(listing) == {("train", "cat"): 3, ("train", "dog"): 2}
    assert listing.stray == ["README.md"]
    assert listing.notes == ["ignored hidden files and what systems leave: 10"]


def test_one_look_is_one_class(make):
    listing = list_folder(make({f"train/{NFC}": 1, f"train/{NFD}": 2, "train/b": 1, f"test/{NFD}": 1}))
    assert _counts(listing) == {("train", NFC): 3, ("train", "b"): 1, ("test", NFC): 1}


def test_names_that_only_look_the_same_are_told_apart(make, tmp_path):
    with pytest.raises(PreparedSetError, match=r"which has 'a b' and not 'a\\xa0b'"):
        list_folder(make({"train/a b": 1, "train/c": 1, "test/a\u00a0b": 1}))
    (tmp_path / "images" / "train" / "a\u00a0b").mkdir()
    (tmp_path / "images" / "train" / "a\u00a0b" / "x.png").touch()
    assert r"two classes look the same: 'a b' and 'a\xa0b'" in list_folder(tmp_path / "images").notes


def test_pairs_of_links_multiply_no_file(make):
    root = make({"a": 1, "b": 1})
    place = root / "a"
    for i in range(14):
        (place / f"d{i}").mkdir()
        (place / f"c{i}").symlink_to(f"d{i}")
        place = place / f"d{i}"
    (place / "x.png").touch()
    files = [file.name for file in list_folder(root).files]
    assert files == ["a/000.png", "/".join(["a", *(f"d{i}" for i in range(14)), "x.png"]), "b/000.png"]


def test_a_file_in_two_splits_or_classes_is_told(make):
    root = make({"train/a": 2, "train/b": 1, "test/a": 1})
    assert not list_folder(root).again
    (root / "test" / "a" / "link.png").symlink_to(root / "train" / "a" / "000.png")
    os.link(root / "train" / "b" / "000.png", root / "train" / "a" / "zz.png")
    (root / "train" / "a" / "same.png").symlink_to("000.png")
    listing = list_folder(root)
    assert linked_files(listing.files, listing.again) == [
        ("train/a/zz.png", "train/b/000.png"),
        ("train/a/000.png", "test/a/link.png"),
    ]


def test_a_file_is_drawn_once_whatever_links_lead_to_it(make):
    root = make({"a": 6, "b": 2})
    without = draw_split(list_folder(root).files, {}, "test", fraction=0.5, seed=0)
    for i in range(6):
        os.link(root / "a" / f"{i:03}.png", root / "a" / f"again{i}.png")
    (root / "b" / "of a.png").symlink_to(root / "a" / "000.png")
    listing = list_folder(root)
    files = draw_split(listing.files, listing.again, "test", fraction=0.5, seed=0)
    splits = {file.name: file.split for file in files}
    assert {name: splits[name] for name in splits if name not in listing.again} == {f.name: f.split for f in without}
    assert all(splits[f"a/{i:03}.png"] == splits[f"a/again{i}.png"] for i in range(6))
    # Two classes of one image remain.
    assert linked_files(files, listing.again) == [("a/000.png", "b/of a.png")]


def test_folders_may_lie_deeper_than_calls_may(make):
    root = make({"a": 1, "b": 1, "a/" + "/".join("d" * 200): 1})
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(traceback.extract_stack()) + 100)
    try:
        assert [len(file.name) for file in list_folder(root).files] == [9, 409, 9]
    finally:
        sys.setrecursionlimit(limit)
