import http.server
import shutil
import threading
from functools import partial

import numpy as np
import pytest

from fast_train.data_prep.manifest import PreparedSet
from fast_train.data_prep.sources import download as download_module


@pytest.fixture
def mirror(fake_cifar):
    """The address of a folder that holds the archive."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = partial(Quiet, directory=fake_cifar.archive.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def _assert_holds(place, fake_cifar):
    opened = PreparedSet.open(place, verify=True)
    assert opened.manifest.classes == fake_cifar.classes
    assert opened.manifest.source["kind"] == "cifar10"
    for split in ("train", "test"):
        packed = opened.packed(split)
        assert np.array_equal(packed.images, fake_cifar.images[split])
        assert np.array_equal(packed.labels, fake_cifar.labels[split])


@pytest.mark.parametrize(
    "kind", ["archive", "archive's folder", "batches", "parent", "renamed batches", "renamed archive"]
)
def test_local_sources_give_the_same_set(fake_cifar, prep, tmp_path, kind):
    renamed = tmp_path / "other name"
    if kind == "renamed batches":
        shutil.copytree(fake_cifar.batches, renamed)
    if kind == "renamed archive":
        shutil.copy(fake_cifar.archive, renamed)
    source = {
        "archive": fake_cifar.archive,
        "archive's folder": fake_cifar.archive.parent,
        "batches": fake_cifar.batches,
        "parent": fake_cifar.batches.parent,
        "renamed batches": renamed,
        "renamed archive": renamed,
    }[kind]
    assert prep("--source", source, "--out", tmp_path / "out" / "set").status == 0
    _assert_holds(tmp_path / "out" / "set", fake_cifar)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["set"]
    assert fake_cifar.batches.is_dir()


@pytest.mark.parametrize("address", ["{}", "{}/", "{}/cifar-10-python.tar.gz"])
def test_a_mirror_is_asked_once(fake_cifar, mirror, prep, tmp_path, address):
    assert prep("--source", address.format(mirror), "--out", tmp_path / "a").status == 0
    _assert_holds(tmp_path / "a", fake_cifar)
    assert (tmp_path / "cache" / "fast-train" / "cifar-10-python.tar.gz").is_file()
    fake_cifar.archive.unlink()
    again = prep("--source", address.format(mirror), "--out", tmp_path / "b")
    assert again.status == 0
    assert "downloaded before" in again.out
    _assert_holds(tmp_path / "b", fake_cifar)


def test_a_damaged_download_is_fetched_again(fake_cifar, mirror, prep, tmp_path):
    cached = tmp_path / "cache" / "fast-train" / "cifar-10-python.tar.gz"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half of it")
    assert prep("--source", mirror, "--out", tmp_path / "set").status == 0
    _assert_holds(tmp_path / "set", fake_cifar)


def test_a_second_run_needs_neither_source_nor_network(fake_cifar, prep, tmp_path):
    assert prep("--source", fake_cifar.batches, "--out", tmp_path / "set").status == 0
    again = prep("--out", tmp_path / "set")
    assert again.status == 0
    assert "whole already" in again.out


def test_without_a_network_the_error_says_what_else_there_is(fake_cifar, prep, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "FIRST_PAUSE_SECONDS", 0.001)
    result = prep("--source", "http://127.0.0.1:9/mirror", "--out", tmp_path / "set")
    assert result.status == 3
    assert len(result.err.splitlines()) == 1
    assert "connection refused" in result.err
    assert "--source" in result.err
    assert "--dataset synthetic" in result.err
    assert not (tmp_path / "set").exists()


def test_a_mirror_with_something_else_leaves_nothing(fake_cifar, mirror, prep, tmp_path):
    fake_cifar.archive.write_bytes(b"another file")
    result = prep("--source", mirror, "--out", tmp_path / "set")
    assert result.status == 3
    assert "wrong MD5" in result.err
    assert not any((tmp_path / "cache" / "fast-train").iterdir())


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda c: c.archive.write_bytes(c.archive.read_bytes()[:-1]), r"cifar-10-python.tar.gz (wrong MD5)"),
        (lambda c: c.archive.unlink(), "holds no CIFAR10"),
    ],
)
def test_a_bad_archive_is_one_line(fake_cifar, prep, tmp_path, damage, said):
    damage(fake_cifar)
    result = prep("--source", fake_cifar.archive, "--out", tmp_path / "set")
    assert result.status == 2
    assert len(result.err.splitlines()) == 1
    assert said in result.err


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("change", ["changed", "missing"])
def test_a_bad_batch_is_named(fake_cifar, prep, tmp_path, name, change):
    path = fake_cifar.batches / name
    if change == "changed":
        path.write_bytes(path.read_bytes() + b"x")
    else:
        path.unlink()
    result = prep("--source", fake_cifar.batches, "--out", tmp_path / "set")
    assert result.status == 2
    assert len(result.err.splitlines()) == 1
    assert f"{name} in " in result.err
    assert not (tmp_path / "set").exists()


def test_flags_of_other_sources_are_refused(prep, tmp_path):
    result = prep("--size", 64, "--out", tmp_path / "set")
    assert result.status == 2
    assert "--size means nothing to --dataset cifar10" in result.err
