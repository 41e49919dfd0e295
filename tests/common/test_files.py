"""Files that are whole or absent; locks, which another process may hold or a disk may lack."""

import errno
import fcntl
import os
import pwd
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from fast_train.common.files import cache_folder, is_running, lock, locked, sync_folder, user_path, whole_file


def test_a_file_gets_its_name_once_it_is_whole(tmp_path):
    path = tmp_path / "a.bin"
    with whole_file(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"ne")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"), whole_file(path) as file:
        fail(file)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_is_too_long_is_said_as_it_was_given(tmp_path):
    """Nothing can be made or removed there, under no name beside it either, as in a folder that is read-only."""
    path = tmp_path / ("a" * 300)
    with pytest.raises(OSError, match="File name too long") as error, whole_file(path):
        pass
    assert error.value.filename == str(path)


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    with locked(tmp_path) as holds:
        assert holds
        with pytest.raises(BlockingIOError), locked(tmp_path):
            pass
    with locked(tmp_path) as holds:
        assert holds


def test_waiting_for_a_lock_ends_with_the_process_that_holds_it(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from fast_train.common.files import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(BlockingIOError), locked(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        with locked(tmp_path, wait=True) as holds:
            assert holds


def test_a_child_does_not_hold_what_its_parent_locked(tmp_path):
    reading, writing = os.pipe()
    with locked(tmp_path):
        child = os.fork()
        if child == 0:
            os.write(writing, b"x")
            signal.alarm(60)
            signal.pause()
        os.read(reading, 1)
    with locked(tmp_path) as holds:
        assert holds
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writing)
    os.close(reading)


def test_a_disk_without_locks_is_told_from_a_lock_that_is_held(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path) as holds:
        assert not holds
    with open(tmp_path / "file", "w") as file:
        assert not lock(file.fileno())


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EIO, errno.ENOSPC])
def test_a_disk_that_can_not_flush_is_told_from_one_that_is_broken_or_full(tmp_path, monkeypatch, number):
    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    fails = number in (errno.EIO, errno.ENOSPC)
    with pytest.raises(OSError, match=f"{os.strerror(number)}: '{tmp_path}'") if fails else nullcontext():
        sync_folder(tmp_path)
    with (
        pytest.raises(OSError, match=os.strerror(number)) if fails else nullcontext(),
        whole_file(tmp_path / "a") as file,
    ):
        file.write(b"x")
    assert [path.name for path in tmp_path.iterdir()] == ([] if fails else ["a"])


def test_a_link_in_the_place_of_the_unfinished_file_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / f".a.bin.{os.getpid()}.part").symlink_to(victim)
    with whole_file(tmp_path / "a.bin") as file:
        file.write(b"new")
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / "a.bin").read_bytes() == b"new"
    assert not (tmp_path / "a.bin").is_symlink()


def test_the_cache_folder_is_the_users_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = cache_folder()
    assert folder == tmp_path / "fast-train"
    assert folder.stat().st_mode & 0o777 == 0o700
    for mode in (0o775, 0o755):
        folder.chmod(mode)
        assert cache_folder().stat().st_mode & 0o777 == 0o700
    folder.chmod(0o757)
    with pytest.raises(OSError, match="fast-train is not used: others can write into it"):
        cache_folder()
    folder.chmod(0o755)
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(OSError, match="fast-train is not used"):
        cache_folder()


def test_a_platform_without_locks_does_without(tmp_path):
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "from pathlib import Path; from fast_train.common.files import locked, sync_folder, whole_file\n"
        "folder = Path(sys.argv[1]); sync_folder(folder)\n"
        "with locked(folder) as holds, whole_file(folder / 'a') as file: file.write(b'x')\n"
        "print(holds)"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
    assert (tmp_path / "a").read_bytes() == b"x"


def test_a_folder_that_is_not_there_can_not_be_flushed(tmp_path):
    sync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "absent")


def test_processes_that_run_and_that_do_not():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert is_running(os.getpid())
    assert is_running(1)
    assert not is_running(process.pid)
    assert is_running(1 << 70)


def test_a_tilde_is_a_home_where_there_is_one_and_nothing_of_that_name(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    root = pwd.getpwuid(0)
    assert user_path("~/a//b") == home / "a" / "b"
    assert user_path("~//a") == home / "a"
    assert user_path("~") == home
    assert user_path(f"~{root.pw_name}/a") == Path(root.pw_dir, "a")
    for text in ("./~/a", "a/~/b", "/a/~", "~no-such-user/a", "~no-such-user", ""):
        assert user_path(text) == Path(text)
    (tmp_path / "~").mkdir()
    assert user_path("~/a") == Path("~/a")


def test_without_a_home(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_account(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", no_account)
    for text in ("~/a", "~"):
        with pytest.raises(ValueError, match=rf"no home folder, so {text} is nowhere; set HOME"):
            user_path(text)
    with pytest.raises(OSError, match=r"no home folder .* set HOME"):
        cache_folder()
