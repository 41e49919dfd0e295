import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import pytest

from fast_train.data_prep import staging as staging_module
from fast_train.data_prep.formats.packed import PackedWriter
from fast_train.data_prep.manifest import MANIFEST_NAME, PreparedSet
from fast_train.data_prep.sources import synthetic
from fast_train.data_prep.sources.folder import ImageFolder


@pytest.fixture
def images(make_folder):
    return make_folder({"train/a": 4, "train/b": 4, "test/a": 2, "test/b": 2})


@pytest.fixture
def arguments(images, tmp_path):
    return ["--dataset", f"folder:{images}", "--out", tmp_path / "sets" / "set"]


def _everything(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_second_run_does_nothing(prep, arguments):
    assert prep(*arguments).status == 0
    place = arguments[-1]
    before = {path: path.stat().st_mtime_ns for path in [place, *place.iterdir()]}
    again = prep(*arguments)
    assert again.status == 0
    assert "whole already" in again.out
    assert {path: path.stat().st_mtime_ns for path in [place, *place.iterdir()]} == before


def test_the_same_request_gives_the_same_bytes(prep, arguments, tmp_path):
    prep(*arguments, "--workers", 1)
    prep(*arguments[:-1], tmp_path / "sets" / "other", "--workers", 3)
    assert _everything(arguments[-1]) == _everything(tmp_path / "sets" / "other")


@pytest.mark.parametrize(
    "change, said",
    [
        (["--size", 32], "size unset, not 32"),
        (["--skip-bad"], "skip_bad off, not on"),
        (["--dataset", "synthetic"], "of folder, not synthetic"),
    ],
)
def test_another_set_in_the_way_is_an_error_until_it_may_be_replaced(prep, arguments, change, said):
    prep(*arguments)
    before = _everything(arguments[-1])
    result = prep(*arguments, *change)
    assert result.status == 2
    assert said in result.err
    assert "--overwrite" in result.err
    assert _everything(arguments[-1]) == before
    assert prep(*arguments, *change, "--overwrite").status == 0
    PreparedSet.open(arguments[-1], verify=True)
    assert _everything(arguments[-1]) != before
    assert [path.name for path in arguments[-1].parent.iterdir()] == ["set"]


@pytest.mark.parametrize("change", ["added", "removed", "changed", "renamed"])
def test_a_changed_folder_is_noticed(prep, arguments, images, change):
    prep(*arguments)
    first, second = images / "train" / "a" / "000.png", images / "train" / "a" / "001.png"
    if change == "added":
        shutil.copy(first, first.with_name("new.png"))
    elif change == "removed":
        first.unlink()
    elif change == "changed":
        first.write_bytes(second.read_bytes())
    else:
        first.rename(first.with_name("new.png"))
    result = prep(*arguments)
    assert result.status == 2
    assert "the files in the folder have changed" in result.err


def test_a_set_whose_pixels_were_damaged_is_made_anew(prep, arguments):
    prep(*arguments)
    path = arguments[-1] / "train.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    result = prep(*arguments)
    assert result.status == 2
    assert "train.safetensors is broken" in result.err
    path.write_bytes(good[:5000] + b"xxxx" + good[5004:])
    assert "train.safetensors is broken" in prep(*arguments).err
    assert prep("--out", arguments[-1], "--verify").status == 2
    assert prep(*arguments, "--overwrite").status == 0
    assert path.read_bytes() == good


def test_a_set_of_an_earlier_version_is_found_whole(prep, arguments):
    """One that does not say how images were fitted, nor from which files they came."""
    prep(*arguments)
    place = arguments[-1]
    manifest = json.loads((place / MANIFEST_NAME).read_text())
    del manifest["name_files"], manifest["source"]["fit"], manifest["source"]["reading"]["fit"]
    (place / MANIFEST_NAME).write_text(json.dumps(manifest))
    for split in ("train", "test"):
        (place / f"{split}.names").unlink()
    assert "whole already" in prep(*arguments).out
    assert PreparedSet.open(place, verify=True).names("train") is None
    assert prep(*arguments, "--overwrite").status == 0
    assert len(PreparedSet.open(place).names("train")) == 8


@pytest.mark.parametrize("extra", [[], ["--overwrite"]])
def test_what_is_no_set_is_never_deleted(prep, arguments, extra):
    place = arguments[-1]
    place.mkdir(parents=True)
    (place / "thesis.txt").write_text("all my work")
    for manifest in (None, "{}", "not ours"):
        if manifest is not None:
            (place / MANIFEST_NAME).write_text(manifest)
        result = prep(*arguments, *extra)
        assert result.status == 2
        assert len(result.err.splitlines()) == 1
        assert (place / "thesis.txt").read_text() == "all my work"
    shutil.rmtree(place)
    place.write_text("a file")
    assert prep(*arguments, *extra).status == 2
    assert place.read_text() == "a file"


@pytest.fixture
def meanwhile(monkeypatch):
    """Has something done once the images are written, before the set would get its name."""

    def run(action):
        outcome = ImageFolder.outcome

        def act_once(source):
            monkeypatch.setattr(ImageFolder, "outcome", outcome)
            action()
            return outcome(source)

        monkeypatch.setattr(ImageFolder, "outcome", act_once)

    return run


@pytest.mark.parametrize("extra", [[], ["--overwrite"]])
def test_what_comes_into_the_way_meanwhile_is_never_deleted(prep, arguments, meanwhile, extra):
    place = arguments[-1]
    if extra:
        prep(*arguments)
    meanwhile(lambda: (place.mkdir(exist_ok=True), (place / "notes.txt").write_text("mine")))
    result = prep(*arguments, *extra)
    assert result.status == 2
    assert len(result.err.splitlines()) == 1
    assert (place / "notes.txt").read_text() == "mine"
    assert [path.name for path in place.parent.iterdir()] == ["set"]


def test_of_two_runs_at_once_the_second_finds_the_set(prep, arguments, meanwhile):
    command = [sys.executable, "-m", "fast_train.data_prep.cli", *map(str, arguments)]
    meanwhile(lambda: subprocess.run(command, check=True, capture_output=True))
    result = prep(*arguments)
    assert result.status == 0
    assert "whole already" in result.out
    PreparedSet.open(arguments[-1], verify=True)


def test_what_lies_in_a_set_is_never_deleted(prep, arguments):
    prep(*arguments)
    (arguments[-1] / "notes.txt").write_text("mine")
    result = prep(*arguments, "--overwrite")
    assert result.status == 2
    assert "notes.txt" in result.err
    assert (arguments[-1] / "notes.txt").exists()


@pytest.fixture
def few(monkeypatch, tmp_path):
    """As `arguments`, of few made-up images: no process is started for them."""
    monkeypatch.setattr(synthetic, "_COUNTS", {"train": 40, "test": 20})
    monkeypatch.setattr(synthetic, "_CHUNK", 20)
    return ["--dataset", "synthetic", "--out", tmp_path / "sets" / "set"]


@pytest.mark.parametrize("extra", [[], ["--overwrite"]])
def test_the_folder_that_one_is_in_is_never_replaced(prep, few, monkeypatch, extra):
    place = few[-1]
    if extra:
        prep(*few)
    place.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(place)
    before = _everything(place)
    for name in (".", place, "../set"):
        result = prep(*few, "--out", name, *extra)
        assert result.status == 2
        assert result.err.startswith(f"prep-data: error: {place} is the folder you are in")
        assert len(result.err.splitlines()) == 1
    assert place.samefile(".")
    assert _everything(place) == before
    if extra:
        assert ". is whole already" in prep(*few, "--out", ".").out


@pytest.mark.parametrize(
    "out, said",
    [
        ("", "--out is empty; give it a folder"),
        ("file", "file is there and is not a prepared set"),
        ("file/set", "/file: something else is in the way; name another place as --out"),
        ("file/more/set", "/file/more: something else is in the way"),
        ("loop", "loop is there and is not a prepared set"),
        ("loop/set", "/loop: something else is in the way"),
        ("..", "is there and is not a prepared set"),
        ("/", "/ is there and is not a prepared set"),
        ("n" * 250, ": File name too long; name another place"),
    ],
)
def test_places_where_no_set_can_be(prep, few, tmp_path, monkeypatch, out, said):
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    result = prep(*few, "--out", out)
    assert result.status == 2
    assert said in result.err
    assert "Errno" not in result.err
    assert len(result.err.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("out, place", [("link", "real"), ("dangling", "new"), ("absent/../x", "x"), ("~/x", "home/x")])
def test_places_by_another_name(prep, few, tmp_path, monkeypatch, out, place):
    for name in ("real", "home"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("new")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    result = prep(*few, "--out", out)
    assert (result.status, result.err) == (0, "")
    PreparedSet.open(tmp_path / place)
    assert (tmp_path / "link").is_symlink()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("call", ["mkdir", "rename"])
def test_what_the_system_refuses_is_told_in_words(prep, few, monkeypatch, call):
    """As in a folder that others own, or on a layered disk. Made up: root, who may run this, is refused nothing."""

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "somewhere")

    assert prep(*few).status == 0
    monkeypatch.setattr(staging_module.os, call, refuse)
    result = prep(*few, "--overwrite")
    assert result.status == 2
    assert "Permission denied; name another" in result.err
    assert "Errno" not in result.err
    assert len(result.err.splitlines()) == 1


def test_a_folder_that_may_not_be_listed_may_be_written(prep, few, monkeypatch):
    few[-1].parent.mkdir()
    scandir, listdir = os.scandir, os.listdir

    def but_for_the_parent(function):
        def listed(path="."):
            if str(path) == str(few[-1].parent):
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return function(path)

        return listed

    monkeypatch.setattr(os, "scandir", but_for_the_parent(scandir))
    monkeypatch.setattr(os, "listdir", but_for_the_parent(listdir))
    assert prep(*few).status == 0


def test_classes_are_shown_with_their_counts(prep, few, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "_CLASSES", 3)
    assert [line.split() for line in prep(*few).out.splitlines()[-4:]] == [
        ["train", "test", "class"],
        ["14", "7", "synthetic-0"],
        ["14", "7", "synthetic-1"],
        ["12", "6", "synthetic-2"],
    ]
    monkeypatch.setattr(synthetic, "_CLASSES", 21)
    monkeypatch.setattr(synthetic, "_CHUNK", 40)
    monkeypatch.setattr(synthetic, "_COUNTS", {"train": 40, "test": 40})
    last = prep(*few, "--out", tmp_path / "many").out.splitlines()[-1]
    assert last == "training images of a class: 1 (synthetic-19) to 2 (synthetic-9)"


def test_an_empty_folder_may_be_filled(prep, arguments):
    arguments[-1].mkdir(parents=True)
    assert prep(*arguments).status == 0
    PreparedSet.open(arguments[-1])


def test_a_set_from_a_newer_program_stays(prep, arguments):
    prep(*arguments)
    path = arguments[-1] / MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 9}))
    result = prep(*arguments, "--overwrite")
    assert result.status == 2
    assert "upgrade" in result.err


def test_a_failed_replacement_keeps_the_old_set(prep, arguments, images):
    prep(*arguments)
    before = _everything(arguments[-1])
    (images / "train" / "a" / "bad.png").write_text("x")
    assert prep(*arguments, "--overwrite").status == 2
    assert _everything(arguments[-1]) == before
    assert [path.name for path in arguments[-1].parent.iterdir()] == ["set"]


def test_a_refused_set_leaves_no_folder_that_was_not_there(prep, images, tmp_path):
    (images / "train" / "a" / "more.png").write_text("no image")
    (tmp_path / "there").mkdir()
    result = prep("--dataset", f"folder:{images}", "--out", tmp_path / "there" / "new" / "newer" / "set")
    assert result.status == 2
    assert list((tmp_path / "there").iterdir()) == []


def test_the_set_may_not_lie_among_the_images(prep, images):
    result = prep("--dataset", f"folder:{images}", "--out", images / "set")
    assert result.status == 2
    assert "lies in the image folder" in result.err


def test_a_full_disk_is_told_first(prep, arguments, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(staging_module.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    result = prep(*arguments)
    assert result.status == 2
    assert "the set needs 16.8 MB of disk" in result.err
    assert "has 1.0 kB free" in result.err
    assert not arguments[-1].parent.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_fills_up_is_one_line(prep, arguments, monkeypatch, number):
    def write(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(PackedWriter, "write", write)
    result = prep(*arguments)
    assert result.status == 2
    assert f"{arguments[-1].parent} can't take more: {os.strerror(number)}; make room" in result.err
    assert len(result.err.splitlines()) == 1
    assert not arguments[-1].parent.exists()


def test_a_disk_of_its_own_is_no_place(prep, arguments, monkeypatch):
    arguments[-1].mkdir(parents=True)
    monkeypatch.setattr(staging_module.os.path, "ismount", lambda path: path == arguments[-1])
    result = prep(*arguments)
    assert result.status == 2
    assert "name a folder in it" in result.err


def test_one_reading_feeds_every_format(prep, arguments, monkeypatch):
    read, once = [], ImageFolder.read
    monkeypatch.setattr(ImageFolder, "read", lambda source, split: read.append(split) or once(source, split))
    assert prep(*arguments, "--formats", "packed, ffcv,dali").status == 0
    assert read == ["train", "test"]
    opened = PreparedSet.open(arguments[-1], verify=True)
    assert {entry.path for entry in opened.manifest.files} == {
        f"{split}{ending}"
        for split in ("train", "test")
        for ending in (".safetensors", ".beton", "-00000-of-00001.tfrecord", "-00000-of-00001.idx")
    }
    assert [entry.path for entry in opened.manifest.name_files] == ["train.names", "test.names"]
    whole = prep(*arguments, "--formats", "dali").out
    assert "whole already" in whole
    assert "; packed, ffcv, dali, " in whole
    assert prep("--out", arguments[-1], "--verify").status == 0


def test_a_format_that_is_not_there_yet_asks_for_overwrite(prep, arguments):
    prep(*arguments)
    result = prep(*arguments, "--formats", "packed,ffcv")
    assert result.status == 2
    assert "without ffcv files" in result.err
    assert "whole already" in prep(*arguments, "--formats", "packed,").out


def test_another_way_to_store_the_images_is_another_set(prep, arguments):
    assert prep(*arguments, "--formats", "ffcv,dali", "--ffcv-mode", "jpg", "--jpeg-quality", 80).status == 0
    result = prep(*arguments, "--formats", "ffcv,dali", "--dali-mode", "jpg")
    assert result.status == 2
    assert "ffcv files jpg quality 80, not raw; dali files raw, not jpg quality 90" in result.err
    assert prep(*arguments, "--formats", "dali").status == 0
    assert prep(*arguments, "--formats", "dali", "--dali-mode", "jpg", "--overwrite").status == 0
    assert PreparedSet.open(arguments[-1]).manifest.encoding("dali") == {"mode": "jpg", "quality": 90}


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--ffcv-mode", "png"], "--ffcv-mode png is not known; choose from raw, jpg, proportion"),
        (["--dali-mode", "proportion"], "--dali-mode proportion is not known; choose from raw, jpg"),
        (["--jpeg-quality", 101], "--jpeg-quality 101 is out of range"),
        (["--jpeg-share", 1.5], "--jpeg-share 1.5 is out of range"),
    ],
)
def test_bad_format_options_are_refused(prep, arguments, flags, said):
    result = prep(*arguments, *flags)
    assert result.status == 2
    assert said in result.err
    assert not arguments[-1].exists()


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--ffcv-mode", "jpg"], "--ffcv-mode means nothing to --formats packed"),
        (["--formats", "packed,ffcv", "--dali-mode", "jpg"], "--dali-mode means nothing to --formats packed,ffcv"),
        (["--formats", "ffcv", "--jpeg-quality", 80], "--jpeg-quality means nothing"),
        (["--formats", "ffcv", "--ffcv-mode", "jpg", "--jpeg-share", 0.1], "--jpeg-share means nothing"),
        (["--dataset", "synthetic", "--skip-bad"], "--skip-bad means nothing to --dataset synthetic"),
        (["--dataset", "cifar10", "--workers", 2], "--workers means nothing to --dataset cifar10"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(prep, arguments, flags, said):
    result = prep(*arguments, *flags)
    assert result.status == 2
    assert said in result.err
    assert not arguments[-1].exists()


@pytest.mark.parametrize("formats", ["packed,webdataset", "", ","])
def test_unknown_formats_are_refused(prep, arguments, formats):
    result = prep(*arguments, "--formats", formats)
    assert result.status == 2
    assert "choose from packed" in result.err


# Stops right before the new set would get its name: the latest moment at which something could go wrong.
_HELD = """
import signal, sys, time
from fast_train.data_prep import cli, staging
# The tests themselves may run where the end of the terminal is ignored, as under nohup.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
def hold(stage, **options):
    assert (stage.new_set / "manifest.json").exists()
    print("holding", flush=True)
    time.sleep(600)
staging.Stage.publish = hold
if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def stopped(tmp_path, arguments):
    """Runs the command up to its last act, sends it a signal; its exit status and standard error."""

    def run(signum, *more):
        script = tmp_path / "held.py"
        script.write_text(_HELD)
        command = [sys.executable, script, *map(str, arguments), *more]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            while process.stdout.readline() != "holding\n":
                assert process.poll() is None, process.stderr.read()
            if signum == signal.SIGKILL:
                process.kill()
            else:
                # As a terminal does it: to the whole group, workers included.
                os.killpg(process.pid, signum)
            _, err = process.communicate(timeout=60)
            return process.returncode, err

    return run


@pytest.mark.parametrize("signum, status", [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(stopped, arguments, signum, status):
    returned, err = stopped(signum)
    assert returned == status
    assert len(err.splitlines()) == 1
    assert "no half-made set was left behind" in err
    assert not arguments[-1].parent.exists()


def test_a_killed_run_leaves_nothing_that_looks_whole(stopped, arguments, prep):
    stopped(signal.SIGKILL)
    (left,) = arguments[-1].parent.iterdir()
    assert left.name.startswith(".set.partial-")
    assert prep("--out", arguments[-1], "--verify").status == 2
    assert prep(*arguments).status == 0
    assert [path.name for path in arguments[-1].parent.iterdir()] == ["set"]


def test_a_killed_replacement_keeps_the_old_set(stopped, arguments, prep):
    prep(*arguments)
    before = _everything(arguments[-1])
    stopped(signal.SIGKILL, "--overwrite")
    assert _everything(arguments[-1]) == before


def test_a_set_moved_aside_by_a_killed_run_comes_back(arguments, prep):
    prep(*arguments)
    place = arguments[-1]
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    left = place.parent / f".set.partial-{process.pid}"
    left.mkdir()
    place.rename(left / "old")
    again = prep(*arguments)
    assert again.status == 0
    assert [path.name for path in place.parent.iterdir()] == ["set"]


def test_what_a_killed_run_left_goes_though_its_number_is_in_use_again(arguments, prep):
    left = arguments[-1].parent / f".set.partial-{os.getppid()}"
    left.mkdir(parents=True)
    an_hour_ago = time.time() - 3600
    os.utime(left, (an_hour_ago, an_hour_ago))
    lock = os.open(left, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert prep(*arguments).status == 0
    assert left.is_dir()
    os.close(lock)
    assert prep(*arguments).status == 0
    assert not left.exists()


def test_on_a_disk_without_locks_leftovers_stay(arguments, prep, monkeypatch):
    """There is no telling whether a run on another machine works in them."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    left = arguments[-1].parent / f".set.partial-{process.pid}"
    left.mkdir(parents=True)
    monkeypatch.setattr(fcntl, "flock", refuse)
    assert prep(*arguments).status == 0
    assert left.is_dir()


def test_the_folder_of_a_running_process_is_let_be(arguments, prep):
    other = arguments[-1].parent / f".set.partial-{os.getppid()}"
    foreign = arguments[-1].parent / ".set2.partial-1"
    for folder in (other, foreign):
        folder.mkdir(parents=True)
    assert prep(*arguments).status == 0
    assert other.is_dir()
    assert foreign.is_dir()
