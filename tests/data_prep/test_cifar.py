import hashlib
import http.server
import io
import shutil
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

from fast_train.data_prep.manifest import PreparedSet
from fast_train.data_prep.sources import download as download_module
from fast_train.data_prep.sources.cifar import Cifar10
from fast_train.data_prep.sources.cifar_files import CIFAR10, CIFAR100
from fast_train.data_prep.sources.known import KnownFile


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
    assert "its file has 12 bytes" in result.err
    assert not any((tmp_path / "cache" / "fast-train").iterdir())


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda c: c.archive.write_bytes(c.archive.read_bytes()[:-1]), "not cifar-10-python.tar.gz: it has"),
        (lambda c: c.archive.write_bytes(bytes(c.archive.stat().st_size)), "it has the wrong MD5"),
        (lambda c: c.archive.unlink(), "cifar-10-python.tar.gz is not there: it must be"),
    ],
)
def test_a_bad_archive_is_one_line(fake_cifar, prep, tmp_path, damage, said):
    damage(fake_cifar)
    result = prep("--source", fake_cifar.archive, "--out", tmp_path / "set")
    assert result.status == 2
    assert len(result.err.splitlines()) == 1
    assert said in result.err


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
@pytest.mark.parametrize("change", ["longer", "changed", "missing"])
def test_a_bad_batch_is_named(fake_cifar, prep, tmp_path, name, change):
    path = fake_cifar.batches / name
    content = path.read_bytes()
    path.unlink()
    if change != "missing":
        path.write_bytes(content + b"x" if change == "longer" else content[:-1] + b"x")
    result = prep("--source", fake_cifar.batches, "--out", tmp_path / "set")
    assert result.status == 2
    assert len(result.err.splitlines()) == 1
    assert f"{name} in " in result.err
    assert not (tmp_path / "set").exists()


def test_a_pickle_runs_nothing(fake_cifar, prep, tmp_path):
    touched = tmp_path / "touched"
    path = fake_cifar.batches / "data_batch_2"
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(touched).encode() + b"'\ntR.")
    fake_cifar.seal()
    result = prep("--source", fake_cifar.batches, "--out", tmp_path / "set")
    assert result.status == 2
    assert result.err.endswith(
        "data_batch_2 in " + str(fake_cifar.batches) + " is no batch of images: it names os.system\n"
    )
    assert not touched.exists()


def _links(tar, name):
    link = tarfile.TarInfo(name)
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    tar.addfile(link)


def _is_a_bomb(tar, name):
    bomb = tarfile.TarInfo(name)
    bomb.size = 5_000_000
    tar.addfile(bomb, io.BytesIO(bytes(bomb.size)))


def _leaves_its_folder(tar, name):
    outside = tarfile.TarInfo(f"../{name}")
    outside.size = 1
    tar.addfile(outside, io.BytesIO(b"x"))


@pytest.mark.parametrize(
    "add, said", [(_links, "is missing"), (_is_a_bomb, "bytes, not"), (_leaves_its_folder, "is missing")]
)
def test_an_archive_that_is_a_trap_is_refused_and_nothing_unpacked(fake_cifar, prep, tmp_path, add, said):
    name = f"{fake_cifar.batches.name}/data_batch_1"
    with tarfile.open(fake_cifar.archive, "w:gz") as tar:
        for path in sorted(fake_cifar.batches.iterdir()):
            if path.name != "data_batch_1":
                tar.add(path, f"{fake_cifar.batches.name}/{path.name}")
        add(tar, name)
    fake_cifar.seal()
    before = sorted(tmp_path.rglob("*"))
    result = prep("--source", fake_cifar.archive, "--out", tmp_path / "set")
    assert result.status == 2
    assert "data_batch_1 in" in result.err
    assert said in result.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "place", ["here/data", "here/data/cifar10", "TORCH_HOME/datasets", "cache", "cache/fast-train", "FAST_TRAIN_DATA"]
)
@pytest.mark.parametrize("what", ["archive", "batches"])
def test_what_other_programs_left_is_found(fake_cifar, prep, tmp_path, monkeypatch, place, what):
    monkeypatch.setenv("FAST_TRAIN_DATA", str(tmp_path / "FAST_TRAIN_DATA"))
    (tmp_path / place).mkdir(parents=True)
    left = getattr(fake_cifar, what)
    left.rename(tmp_path / place / left.name)
    result = prep("--out", tmp_path / "set")
    assert result.status == 0, result.err
    assert "CIFAR-10 was found in" in result.out
    _assert_holds(tmp_path / "set", fake_cifar)


def test_what_is_not_right_is_passed_over(fake_cifar, mirror, prep, tmp_path, monkeypatch):
    monkeypatch.setattr(Cifar10, "files", replace(Cifar10.files, addresses=(f"{mirror}/cifar-10-python.tar.gz",)))
    (tmp_path / "here" / "data").mkdir()
    (tmp_path / "here" / "data" / "cifar-10-python.tar.gz").write_bytes(b"half of it")
    result = prep("--out", tmp_path / "set")
    assert result.status == 0, result.err
    assert "passed over: data/cifar-10-python.tar.gz is not cifar-10-python.tar.gz: it has 10 bytes" in result.out
    _assert_holds(tmp_path / "set", fake_cifar)


def test_without_a_home_the_archive_is_downloaded_and_not_kept(fake_cifar, mirror, prep, tmp_path, monkeypatch):
    # As where there is no home: a cache folder that can't be made.
    monkeypatch.setenv("XDG_CACHE_HOME", str(fake_cifar.archive))
    result = prep("--source", mirror, "--out", tmp_path / "set")
    assert result.status == 0, result.err
    assert "is not kept" in result.out
    _assert_holds(tmp_path / "set", fake_cifar)


def _known(path):
    content = path.read_bytes()
    return KnownFile(path.name, len(content), hashlib.sha256(content).hexdigest())


def _write_parquet(fake_cifar, folder):
    """The splits as the hub holds them, the batches in the archive's own order."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install 'fast-train[parquet]'")
    from pyarrow import table

    folder.mkdir(parents=True)
    known = {}
    for split, images in fake_cifar.images.items():
        batches = (3, 2, 1, 4, 0) if split == "train" else (0,)
        order = np.concatenate([np.arange(20 * batch, 20 * batch + 20) for batch in batches])
        pngs = []
        for image in images[order]:
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            pngs.append({"bytes": png.getvalue(), "path": None})
        path = folder / Cifar10.files.hub.files[split].name
        parquet.write_table(table({"img": pngs, "label": fake_cifar.labels[split][order]}), path)
        known[split] = path
    return known


@pytest.mark.parametrize("source", ["hub", "folder", "its parent"])
def test_the_hubs_parquet_files_give_the_same_set(fake_cifar, mirror, prep, tmp_path, monkeypatch, source):
    folder = fake_cifar.archive.parent / "plain_text"
    paths = _write_parquet(fake_cifar, folder)
    hub = replace(
        Cifar10.files.hub,
        folder=f"{mirror}/plain_text",
        files={split: _known(path) for split, path in paths.items()},
    )
    monkeypatch.setattr(Cifar10, "files", replace(Cifar10.files, hub=hub))
    fake_cifar.archive.unlink()
    place = {"hub": "hub", "folder": folder, "its parent": folder.parent}[source]
    result = prep("--source", place, "--out", tmp_path / "set")
    assert result.status == 0, result.err
    _assert_holds(tmp_path / "set", fake_cifar)
    paths["test"].write_bytes(bytes(paths["test"].stat().st_size))
    if source != "hub":
        result = prep("--source", place, "--out", tmp_path / "other")
        assert result.status == 2
        assert "test-00000-of-00001.parquet in" in result.err
        assert "has the wrong SHA-256" in result.err


def test_parquet_without_pyarrow_is_one_line(fake_cifar, prep, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = prep("--source", "hub", "--out", tmp_path / "set")
    assert result.status == 2
    assert result.err == "prep-data: error: parquet files need pyarrow: pip install 'fast-train[parquet]'\n"


@pytest.mark.slow
def test_torchvision_has_the_same_sums_and_reads_the_same_images(fake_cifar, monkeypatch):
    from torchvision import datasets

    for ours, theirs in ((CIFAR10, datasets.CIFAR10), (CIFAR100, datasets.CIFAR100)):
        sums = [[known.name, known.md5] for batches in ours.batches.values() for known in batches]
        assert sums == theirs.train_list + theirs.test_list
        assert (ours.archive.name, ours.archive.md5) == (theirs.filename, theirs.tgz_md5)
        assert (ours.folder, ours.addresses[-1]) == (theirs.base_folder, theirs.url)
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.CIFAR10, "_load_meta", lambda self: None)
    for split in ("train", "test"):
        read = datasets.CIFAR10(fake_cifar.batches.parent, train=split == "train")
        assert np.array_equal(read.data, fake_cifar.images[split])
        assert read.targets == fake_cifar.labels[split].tolist()


def test_torch_is_not_imported(fake_cifar, tmp_path):
    code = (
        "import sys\nfrom fast_train.data_prep import cli\n"
        "print(cli.main(sys.argv[1:]), {'torch', 'torchvision', 'pyarrow'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", code, "--source", fake_cifar.archive, "--out", tmp_path / "set"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout.endswith("2 set()\n")
    assert "bytes, not 170,498,071; download it again" in result.stderr


def test_a_validation_split_is_drawn_on_request(fake_cifar, prep, tmp_path):
    drawn = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        flags = ["--source", fake_cifar.batches, "--val-fraction", "0.2", "--split-seed", seed]
        assert prep(*flags, "--out", tmp_path / name).status == 0
        drawn[name] = PreparedSet.open(tmp_path / name, verify=True)
    opened, images, labels = drawn["a"], fake_cifar.images["train"], fake_cifar.labels["train"]
    assert opened.splits == ("train", "validation", "test")
    # A fifth of each class; the rest in its order.
    assert opened.manifest.counts["validation"] == (2,) * 10
    kept = {split: opened.packed(split) for split in opened.splits}
    held_out = {image.tobytes() for image in kept["validation"].images}
    rest = [number for number, image in enumerate(images) if image.tobytes() not in held_out]
    assert np.array_equal(kept["train"].images, images[rest])
    assert np.array_equal(kept["train"].labels, labels[rest])
    assert np.array_equal(kept["test"].images, fake_cifar.images["test"])
    assert np.array_equal(kept["validation"].images, drawn["b"].packed("validation").images)
    assert not np.array_equal(kept["validation"].images, drawn["c"].packed("validation").images)
    assert "val_fraction 0.2, not unset" in prep("--source", fake_cifar.batches, "--out", tmp_path / "a").err
    assert "--split-seed means nothing without" in prep("--split-seed", 1, "--out", tmp_path / "d").err


def test_flags_of_other_sources_are_refused(prep, tmp_path):
    result = prep("--size", 64, "--out", tmp_path / "set")
    assert result.status == 2
    assert "--size means nothing to --dataset cifar10" in result.err
