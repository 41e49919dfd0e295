import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image, ImageOps

from fast_train.data_prep.manifest import PreparedSet
from fast_train.data_prep.sources import folder as folder_module


@pytest.fixture
def prepare(prep, tmp_path):
    """Prepares an image folder that must come out well; the opened set and what was printed."""

    def run(root, *arguments):
        out = tmp_path / "out" / f"set{len(list((tmp_path / 'out').glob('*')))}"
        result = prep("--dataset", f"folder:{root}", "--out", out, *arguments)
        assert result.status == 0, result.err
        return PreparedSet.open(out, verify=True), result.out

    return run


@pytest.fixture
def refused(prep, tmp_path):
    """Prepares an image folder that must be refused; what was printed as the error."""

    def run(root, *arguments):
        result = prep("--dataset", f"folder:{root}", "--out", tmp_path / "refused", *arguments)
        assert result.status == 2
        assert not list(tmp_path.glob("*refused*"))
        return result.err

    return run


def _pixels(path):
    return np.asarray(Image.open(path))


def test_splits_of_the_folder_are_kept(make_folder, prepare):
    root = make_folder({"train/bee": 3, "train/ant": 2, "test/ant": 1, "val/ant": 4, "test/bee": 1})
    opened, _ = prepare(root)
    assert opened.manifest.classes == ("ant", "bee")
    assert opened.manifest.counts == {"train": (2, 3), "validation": (4, 0), "test": (1, 1)}
    assert opened.evaluated_split == "validation"
    train = opened.packed("train")
    files = sorted((root / "train").rglob("*.png"))
    assert train.labels.tolist() == [("ant", "bee").index(file.parent.name) for file in files]
    for stored, file in zip(train.images, files, strict=True):
        assert np.array_equal(stored, _pixels(file))


def test_val_is_the_only_one_beside_train(make_folder, prepare):
    root = make_folder({"train/a": 8, "train/b": 4, "val/a": 2})
    assert prepare(root)[0].manifest.counts == {"train": (8, 4), "validation": (2, 0)}
    opened, _ = prepare(root, "--test-fraction", "0.25")
    assert opened.manifest.counts == {"train": (6, 3), "validation": (2, 0), "test": (2, 1)}


def test_a_validation_split_is_cut_from_train(make_folder, prepare, prep):
    root = make_folder({"train/a": 8, "train/b": 4, "test/a": 2})
    opened, _ = prepare(root, "--val-fraction", "0.25")
    assert opened.manifest.counts == {"train": (6, 3), "validation": (2, 1), "test": (2, 0)}
    again, _ = prepare(root, "--val-fraction", "0.25")
    assert again.names("validation") == opened.names("validation")
    other, _ = prepare(root, "--val-fraction", "0.25", "--split-seed", 3)
    assert other.names("validation") != opened.names("validation")
    result = prep("--dataset", f"folder:{root}", "--out", opened.root)
    assert "val_fraction 0.25, not unset" in result.err


def test_both_splits_are_drawn_where_there_are_none(make_folder, prepare):
    root = make_folder({"a": 20, "b": 10})
    opened, _ = prepare(root, "--val-fraction", "0.25")
    assert opened.manifest.counts == {"train": (12, 6), "validation": (4, 2), "test": (4, 2)}
    without, _ = prepare(root)
    assert without.names("test") == opened.names("test")


def test_flags_of_splits_that_are_there_are_not_used(make_folder, prepare):
    root = make_folder({"train/a": 2, "train/b": 2, "val/a": 1, "test/a": 1})
    opened, out = prepare(root, "--val-fraction", "0.5", "--test-fraction", "0.5")
    assert opened.manifest.counts == {"train": (2, 2), "validation": (1, 0), "test": (1, 0)}
    assert "the folder has its own validation split: --val-fraction is not used" in out
    assert "the folder has its own test split: --test-fraction is not used" in out


def test_images_in_two_splits_are_counted_and_told(make_folder, prepare):
    root = make_folder({"train/a": 2, "train/b": 2, "val/a": 1, "test/a": 1})
    for split, name in (("val", "again"), ("test", "once"), ("test", "more")):
        shutil.copy(root / "train" / "b" / "001.png", root / split / "a" / f"{name}.png")
    # Within a split it is nobody's loss.
    shutil.copy(root / "train" / "a" / "000.png", root / "train" / "a" / "twin.png")
    opened, out = prepare(root)
    assert "3 images in two splits, byte for byte the same, such as train/b/001.png and val/a/again.png" in out
    assert opened.manifest.source["in_two_splits"] == 3
    assert "two splits" not in prepare(make_folder({"a": 3, "b": 3}, name="others"))[1]


def test_files_below_a_class_count_at_any_depth(make_folder, prepare):
    opened, _ = prepare(make_folder({"train/a": 1, "train/a/x/y": 2, "train/b": 1, "test/a": 1}))
    assert opened.manifest.counts["train"] == (3, 1)


@pytest.mark.parametrize("below", ["", "train/"])
def test_an_unparted_folder_is_parted_by_class(make_folder, prepare, below):
    root = make_folder({f"{below}a": 10, f"{below}b": 20, f"{below}c": 2, f"{below}d": 1})
    opened, _ = prepare(root)
    assert opened.manifest.counts == {"train": (8, 16, 1, 1), "test": (2, 4, 1, 0)}
    stored = [image.tobytes() for split in ("train", "test") for image in opened.packed(split).images]
    assert sorted(stored) == sorted(_pixels(file).tobytes() for file in root.rglob("*.png"))


def test_the_part_depends_on_seed_and_names_alone(make_folder, prepare, tmp_path):
    root = make_folder({"a": 20, "b": 20})
    shutil.copytree(root, tmp_path / "copy")
    first, second = prepare(root, "--split-seed", 5)[0], prepare(tmp_path / "copy", "--split-seed", 5)[0]
    other = prepare(root, "--split-seed", 6)[0]
    assert np.array_equal(first.packed("test").images, second.packed("test").images)
    assert not np.array_equal(first.packed("test").images, other.packed("test").images)
    half = prepare(root, "--test-fraction", "0.5")[0]
    assert half.manifest.counts["test"] == (10, 10)


def test_sizes_that_differ_become_squares_on_request(make_folder, prepare):
    root = make_folder({"train/a": 3, "train/b": 2, "test/a": 1})
    Image.new("RGB", (64, 64), (9, 8, 7)).save(root / "train" / "b" / "own.png")
    opened, out = prepare(root, "--size", 64)
    assert opened.manifest.image_shape == (64, 64, 3)
    assert "resizing 6 of 7 images, 8x6 to 64x64, to 64x64" in out
    assert (opened.packed("train").images[-1] == [9, 8, 7]).all()
    assert opened.manifest.source["resized"] == 6


def test_size_is_what_was_asked_for(make_folder, prepare):
    root = make_folder({"train/a": 3, "train/b": 2, "test/a": 1})
    opened, out = prepare(root, "--size", 16)
    assert opened.manifest.image_shape == (16, 16, 3)
    assert "resizing 6 of 6 images, 8x6, to 16x16" in out


@pytest.mark.parametrize(
    "fit, said",
    [
        ("crop", "6 images of another shape, cropped at the centre (--fit pad or stretch keeps all of it)"),
        ("pad", "6 images of another shape, padded with 128,128,128 (--background chooses another)"),
        ("stretch", "6 images of another shape, stretched"),
    ],
)
def test_another_shape_is_fitted_as_asked(make_folder, prepare, prep, fit, said):
    root = make_folder({"train/a": 3, "train/b": 2, "test/a": 1})
    opened, out = prepare(root, "--size", 16, "--fit", fit)
    assert said in out
    stored, first = opened.packed("train").images[0], Image.open(root / "train" / "a" / "000.png")
    fitted = {
        "crop": ImageOps.fit(first, (16, 16), Image.Resampling.LANCZOS),
        "pad": ImageOps.pad(first, (16, 16), Image.Resampling.LANCZOS, color=(128,) * 3),
        "stretch": first.resize((16, 16), Image.Resampling.LANCZOS),
    }
    assert np.array_equal(stored, np.asarray(fitted[fit]))
    assert opened.manifest.source["reading"]["fit"] == fit
    # The same way is the same set, whether it is named or not; another way is another set.
    same = ["--dataset", f"folder:{root}", "--out", opened.root, "--size", 16]
    assert "whole already" in prep(*same, "--fit", fit).out
    assert prep(*same).status == (0 if fit == "crop" else 2)
    assert "fit" in prep(*same, "--fit", "pad" if fit == "crop" else "crop").err


def test_an_unknown_fit_is_refused(make_folder, refused):
    error = refused(make_folder({"a": 2, "b": 2}), "--size", 8, "--fit", "squash")
    assert "--fit squash is not known; choose from crop, pad, stretch" in error


def test_modes_and_formats_mix(make_folder, prepare):
    root = make_folder({"train/a": 1, "train/b": 1, "test/a": 1})
    for number, (mode, ending) in enumerate(
        [("L", "jpg"), ("RGBA", "webp"), ("P", "gif"), ("I;16", "png"), ("1", "bmp")]
    ):
        Image.new(mode, (8, 6)).save(root / "train" / "a" / f"{number + 1}.{ending}")
    opened, _ = prepare(root)
    assert opened.manifest.image_shape == (6, 8, 3)
    assert opened.size("train") == 7
    # Four are black, and one shows the background; they come after 000.png in the order of names.
    assert [image.max() for image in opened.packed("train").images[1:6]] == [0, 128, 0, 0, 0]


def _spoil(root):
    """Three files that are not images, in train/a; their names."""
    place = root / "train" / "a"
    (place / "notes.txt").write_text("not an image")
    (place / "empty.png").write_bytes(b"")
    whole = (place / "000.png").read_bytes()
    (place / "cut.png").write_bytes(whole[: len(whole) - 30])
    return ["train/a/notes.txt", "train/a/empty.png", "train/a/cut.png"]


def test_bad_files_are_named_counted_and_refused(make_folder, refused):
    root = make_folder({"train/a": 3, "train/b": 2, "test/a": 1})
    names = _spoil(root)
    error = refused(root)
    assert all(name in error for name in names)
    assert "3 of 9 files" in error
    assert error.splitlines()[-1].startswith("prep-data: error: ")
    assert "--skip-bad" in error


def test_bad_files_are_skipped_on_request(make_folder, prepare):
    root = make_folder({"train/a": 3, "train/b": 2, "test/a": 1})
    names = _spoil(root)
    opened, out = prepare(root, "--skip-bad")
    assert opened.manifest.counts == {"train": (3, 2), "test": (1, 0)}
    assert "skipped 3 files" in out
    assert all(name in out for name in names)
    assert opened.manifest.source["skipped"] == 3
    assert opened.names("train") == [f"train/{file}.png" for file in ("a/000", "a/001", "a/002", "b/000", "b/001")]
    assert np.array_equal(opened.packed("train").images[0], _pixels(root / "train" / "a" / "000.png"))


@pytest.mark.parametrize("name, size", [("a/!.png", (8, 6)), ("b/zz.png", (50, 50))])
def test_a_skipped_file_leaves_no_trace(make_folder, prepare, name, size):
    root = make_folder({"a": 10, "b": 7})
    without, _ = prepare(root, "--skip-bad")
    Image.effect_noise(size, 50).save(root / name)
    whole = (root / name).read_bytes()
    (root / name).write_bytes(whole[: len(whole) * 2 // 3])
    opened, out = prepare(root, "--skip-bad")
    assert f"skipped 1 file that can't be read as images: {name}" in out
    for part in ("classes", "image_shape", "counts", "mean", "std", "files", "name_files"):
        assert getattr(opened.manifest, part) == getattr(without.manifest, part)
    assert opened.manifest.source["skipped"] == 1
    assert opened.manifest.source["resized"] == 0


def _draw(root, ink):
    """Drawings on transparent ground."""
    root.mkdir(parents=True)
    for i in range(3):
        image = Image.new("RGBA", (8, 6))
        image.paste(ink, (i, i, i + 4, i + 3))
        image.save(root / f"{i}.png")


def test_neither_black_nor_white_drawings_vanish(tmp_path, prepare):
    for name, ink in (("black", (0, 0, 0, 255)), ("white", (255, 255, 255, 255))):
        _draw(tmp_path / "icons" / name, ink)
    opened, out = prepare(tmp_path / "icons")
    assert "6 images with transparent parts, laid on 128,128,128 (--background chooses another)" in out
    assert "one single colour" not in out
    assert opened.manifest.source["transparent"] == 6
    assert [sorted(np.unique(image)) for image in opened.packed("train").images] == [[0, 128]] * 2 + [[128, 255]] * 2


def test_the_background_is_what_was_asked_for(tmp_path, prepare, refused):
    for name, ink in (("black", (0, 0, 0, 255)), ("white", (255, 255, 255, 255))):
        _draw(tmp_path / "icons" / name, ink)
    opened, out = prepare(tmp_path / "icons", "--background", "white")
    assert "3 images of one single colour, such as white/" in out
    assert opened.manifest.source["one_colour"] == 3
    assert opened.manifest.source["reading"]["background"] == [255, 255, 255]
    blue, _ = prepare(tmp_path / "icons", "--background", "0,0,250")
    assert (blue.packed("train").images[0, -1, -1] == [0, 0, 250]).all()
    assert opened.manifest.source["background"] == "255,255,255"
    for colour in ("sky", "1,2", "0,0,256"):
        assert f"--background {colour} is no colour" in refused(tmp_path / "icons", "--background", colour)


def test_sixteen_bits_are_scaled_by_what_the_set_uses(tmp_path, prepare):
    for name, top in (("dark", 1000), ("light", 4095)):
        (tmp_path / "deep" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((6, 8), top - i, dtype=np.uint16)).save(tmp_path / "deep" / name / f"{i}.png")
    opened, out = prepare(tmp_path / "deep")
    assert "6 images of 16-bit greyscale use 12 bits: 0 to 4,095 becomes 0 to 255" in out
    assert opened.manifest.source["reading"]["bits"] == 12
    assert {round(top * 255 / 4095) for top in (1000, 4095)} == set(np.unique(opened.packed("train").images))


def test_ten_bad_files_are_shown_and_all_with_debug(make_folder, refused):
    root = make_folder({"train/a": 3, "train/b": 2, "test/a": 1})
    for i in range(14):
        (root / "train" / "b" / f"bad{i:02}.jpg").write_text("x")
    error = refused(root)
    assert sum(f"bad{i:02}.jpg:" in error for i in range(14)) == 10
    assert "4 more" in error
    everything = refused(root, "--debug")
    assert all(f"bad{i:02}.jpg:" in everything for i in range(14))


def test_a_class_left_without_images_is_named(make_folder, refused):
    root = make_folder({"train/a": 3, "train/b": 0, "test/a": 1})
    (root / "train" / "b" / "bad.png").write_text("x")
    assert "class 'b'" in refused(root, "--skip-bad")


def test_only_bad_files(make_folder, refused):
    root = make_folder({"train/a": 0, "train/b": 0})
    for name in "ab":
        (root / "train" / name / "bad.png").write_text("x")
    assert "2 of 2 files" in refused(root, "--skip-bad")


def test_what_a_desktop_leaves_is_ignored(make_folder, prepare):
    root = make_folder({"train/a": 3, "train/b": 2, "test/a": 1})
    for name in ("train/.DS_Store", "train/a/Thumbs.db", "train/b/._000.png", "README"):
        (root / name).write_text("x")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    opened, out = prepare(root)
    assert opened.size("train") == 5
    assert "ignored hidden files and what systems leave: 4" in out


def test_odd_names_are_no_obstacle(make_folder, prepare):
    root = make_folder({"train/ä [b]\u3000猫": 2, "train/-b": 2, "test/-b": 1})
    for name in ("new\nline.png", "$(x) ; '\"\\.png", os.fsdecode(b"\xff\xfe.png"), "no ending"):
        shutil.copy(root / "train" / "-b" / "000.png", root / "train" / "-b" / name)
    opened, _ = prepare(root)
    assert opened.manifest.classes == ("-b", "ä [b]\u3000猫")
    assert opened.manifest.counts["train"] == (6, 2)
    for split in opened.splits:
        for name, stored in zip(opened.names(split), opened.packed(split).images, strict=True):
            assert np.array_equal(_pixels(root / name), stored)


def test_bad_files_with_odd_names_stay_on_a_line(make_folder, refused):
    root = make_folder({"train/a": 2, "train/b": 2, "test/a": 1})
    (root / "train" / "a" / "new\nline.png").write_text("x")
    assert [line.split(":")[0].strip() for line in refused(root).splitlines()] == [
        "train/a/new\\nline.png",
        "prep-data",
    ]


def test_links_pipes_and_loops(make_folder, prepare, refused, tmp_path):
    root = make_folder({"train/a": 2, "other/b": 2, "test/a": 1})
    (root / "train" / "b").symlink_to(root / "other" / "b")
    for number, above in enumerate([root / "train" / "a", root / "train", root]):
        (root / "train" / "a" / f"loop{number}").symlink_to(above)
    assert prepare(root)[0].manifest.counts["train"] == (2, 2)
    (root / "train" / "a" / "nowhere.png").symlink_to(tmp_path / "nowhere")
    (root / "train" / "a" / "itself.png").symlink_to(root / "train" / "a" / "itself.png")
    os.mkfifo(root / "train" / "a" / "pipe.png")
    error = refused(root)
    assert "nowhere.png: No such file" in error
    assert "itself.png: Too many levels of symbolic links" in error
    assert "pipe.png: not a regular file" in error


@pytest.mark.parametrize(
    "folders, said",
    [
        ({"train/a": 2, "train/b": 2, "test/c": 1}, "class 'c' of"),
        ({"train/a": 2, "train/b": 0, "test/a": 1}, "train/b is empty"),
        ({"train/a": 2, "train/b": 2, "test/a": 0}, "test/a is empty"),
        ({"train/a": 2, "test/a": 1}, "single class 'a'"),
        ({"a": 5}, "single class 'a'"),
        ({"test/a": 2, "test/b": 2}, "test/ but no train/"),
        ({"test": 2, "bee": 2}, "no class is called test"),
        ({"train": 2, "test/a": 1}, "train holds no class folders"),
        ({"train": 2, "plane": 2}, "no class is called train"),
        ({"": 2}, "holds no class folders"),
        ({"a": 1, "b": 1}, "left for the test split"),
    ],
)
def test_folders_that_make_no_set(make_folder, refused, folders, said):
    error = refused(make_folder(folders))
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_file_in_no_class_is_named(make_folder, refused):
    root = make_folder({"train/a": 2, "train/b": 2, "train": 1, "test/a": 1})
    assert "train/000.png: in no class folder" in refused(root)


def test_a_file_that_links_carry_over_a_split_is_told(make_folder, prepare):
    root = make_folder({"train/a": 2, "train/b": 2, "test/a": 1})
    (root / "test" / "a" / "again.png").symlink_to(root / "train" / "a" / "000.png")
    _, out = prepare(root)
    assert "1 file in two splits or classes by links, such as train/a/000.png, also test/a/again.png" in out
    assert "in a class" not in out


def test_each_name_of_a_file_in_a_class_counts_and_is_told(make_folder, prepare):
    """As in other programs that read such folders."""
    root = make_folder({"train/a": 2, "train/b": 2, "test/a": 1})
    os.link(root / "train" / "a" / "000.png", root / "train" / "a" / "hard.png")
    (root / "train" / "a" / "soft.png").symlink_to("000.png")
    prepared, out = prepare(root)
    assert prepared.manifest.counts["train"] == (4, 2)
    assert "2 files counted again in a class by links, such as train/a/000.png, also train/a/hard.png" in out
    assert "two splits" not in out


@pytest.mark.parametrize(
    ("name", "said"),
    [("absent", "is not a folder"), ("~nobody/x", "is not a folder"), ("~", "there is no home folder")],
)
def test_no_such_folder(refused, tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))
    assert said in refused(name)


def test_a_folder_here_comes_before_a_home(make_folder, refused, tmp_path, monkeypatch):
    make_folder({"one": 1}, name="~root")
    make_folder({"another": 1}, name="home/images")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, found in (("~root", "one"), ("./~root", "one"), ("~/images", "another")):
        assert f"single class '{found}'" in refused(name)


@pytest.mark.parametrize(
    "flags", [("--test-fraction", "0"), ("--test-fraction", "1.5"), ("--size", "0"), ("--workers", "0")]
)
def test_flags_out_of_range(make_folder, refused, flags):
    assert flags[0] in refused(make_folder({"a": 2, "b": 2}), *flags)


def test_too_little_memory_is_one_line(make_folder, refused, tmp_path, monkeypatch):
    (tmp_path / "greedy.py").write_text("def decode(job, **how):\n    raise MemoryError\n")
    monkeypatch.syspath_prepend(tmp_path)
    import greedy

    monkeypatch.setattr(folder_module, "decode", greedy.decode)
    error = refused(make_folder({"a": 5, "b": 5}))
    assert error == "prep-data: error: not enough memory; give a smaller --size or fewer --workers\n"


def test_a_killed_decoder_is_one_line(make_folder, refused, tmp_path, monkeypatch):
    (tmp_path / "dying.py").write_text(
        f"import os\ndef decode(job, **how):\n    os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import dying

    monkeypatch.setattr(folder_module, "decode", dying.decode)
    error = refused(make_folder({"a": 5, "b": 5}))
    assert "was killed" in error
    assert len(error.splitlines()) == 1
