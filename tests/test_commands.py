"""Each command to each of its ends, in a process of its own: what is kept, its status, what it says on stderr."""

import os
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

import fast_train
from fast_train.data_prep import cli as prep_cli

_SMALL_DISK = 64 << 10


@dataclass(frozen=True)
class Command:
    """program: as its messages name it. arguments: {data} a prepared set, {images} a folder of images, {run} a run,
    {out} the place of the result. product: what is in there when the work is done. begun: stdout has this once it is
    worth a signal; empty where nothing is, as the work is short. endless: what to add so that it does not end by
    itself. kept: what a signal leaves of it."""

    program: str
    module: str
    arguments: str
    product: str
    begun: str
    endless: str = ""
    kept: str = ""

    def line(self, out, **places):
        arguments = [part.format(out=out, **places) for part in self.arguments.split()]
        return [sys.executable, "-m", f"fast_train.{self.module}", *arguments]


_CPU = "--data {data} --device cpu --out {out}"
COMMANDS = {
    "prep-data": Command(
        "prep-data", "data_prep.cli", "--dataset folder:{images} --out {out} --workers 1", "manifest.json", "sizes"
    ),
    "fast-train": Command(
        "fast-train",
        "pipeline.cli",
        f"{_CPU} --arch resnet8 --batch-size 16 --amp off --epochs 1 --brief",
        "last.pt",
        "epoch ",
        endless="--epochs 100000",
        kept="last.pt",
    ),
    # Four times the images, so that their table outgrows a small disk.
    "fast-predict": Command(
        "fast-predict",
        "pipeline.predict_cli",
        "{run} {images} {images} {images} {images} --device cpu --csv {out}/table.csv",
        "table.csv",
        "",
    ),
    "fast-export": Command(
        "fast-export", "pipeline.export_cli", "{run} --to weights --out {out}/run.safetensors", "run.safetensors", ""
    ),
    "bench-throughput": Command(
        "bench-throughput",
        "benchmarks.throughput.cli",
        f"{_CPU} --quick --repeats 1 --arch resnet8 --only roofline",
        "report.json",
        "report folder",
    ),
    "bench-study": Command(
        "bench-study",
        "benchmarks.studies.cli",
        f"augmentation {_CPU} --variants resnet20-none --steps 2 --batch-size 16",
        "report.json",
        "epoch ",
        endless="--steps 1000000",
        kept="runs/resnet20-none-seed0/config.json",
    ),
    "lab": Command(
        "python -m fast_train.benchmarks.lab.cli",
        "benchmarks.lab.cli",
        f"{_CPU} --quick --arch resnet8 --only floors",
        "step-lab.json",
        "by recipe",
    ),
}


def _each(*quick, but=()):
    """All commands, those that are not quick here as slow tests."""
    names = [name for name in COMMANDS if name not in but]
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("commands")
    generator = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 4)):
        for name in ("bright", "dark"):
            folder = root / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    assert prep_cli.main(["--dataset", f"folder:{root / 'images'}", "--out", str(root / "set"), "--workers", "1"]) == 0
    fast_train.train(root / "set", recipe="fast", arch="resnet8", steps=1, batch_size=8, device="cpu", out=root / "run")
    return {"images": root / "images", "data": root / "set", "run": root / "run"}


def _ended(command, line, **options):
    """Run it to its end; (status, stderr), which shows no trace."""
    result = subprocess.run(line, stderr=subprocess.PIPE, text=True, check=False, **options)
    assert "Traceback" not in result.stderr
    return result.returncode, result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_flag_is_one_line(name, tmp_path):
    command = COMMANDS[name]
    result = subprocess.run(
        [sys.executable, "-m", f"fast_train.{command.module}", "--nonsense", "x"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith(f"{command.program}: error: ")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_it_knows_its_version(name, tmp_path):
    line = [sys.executable, "-m", f"fast_train.{COMMANDS[name].module}", "--version"]
    printed = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert printed == f"{COMMANDS[name].program}, fast-train {fast_train.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_its_help_needs_no_reader(name, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    line = [sys.executable, "-m", f"fast_train.{COMMANDS[name].module}", "--help"]
    assert _ended(COMMANDS[name], line, stdout=writing, cwd=tmp_path) == (0, "")
    os.close(writing)


@pytest.mark.parametrize("name", COMMANDS)
def test_without_a_reader_the_work_is_done_and_kept(name, places, tmp_path):
    """As ``| head -1``."""
    command, out = COMMANDS[name], tmp_path / "out"
    reading, writing = os.pipe()
    os.close(reading)
    assert _ended(command, command.line(out, **places), stdout=writing, cwd=tmp_path) == (0, "")
    os.close(writing)
    assert (out / command.product).exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
# With --csv, fast-predict writes nothing there.
@pytest.mark.parametrize("name", _each("prep-data", but=["fast-predict"]))
def test_a_full_disk_behind_standard_output_costs_nothing_else(name, places, tmp_path):
    command, out = COMMANDS[name], tmp_path / "out"
    with open("/dev/full", "w") as full:
        status, said = _ended(command, command.line(out, **places), stdout=full, cwd=tmp_path)
    assert (status, said) == (0, "standard output is dropped: No space left on device\n")
    assert (out / command.product).exists()


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a small disk, and what is to be called in the process that writes there: without the right to mount,
    files there may not become large instead."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_SMALL_DISK}", "none", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    yield folder, None if mounted else _limit_files
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (_SMALL_DISK // 16, _SMALL_DISK // 16))


@pytest.mark.parametrize("name", _each("prep-data"))
def test_a_full_disk_is_one_line(name, places, small_disk, tmp_path):
    folder, limit = small_disk
    command, out = COMMANDS[name], folder / "out"
    if limit is None:
        (folder / "other").write_bytes(bytes(_SMALL_DISK - 4096))
    status, said = _ended(
        command, command.line(out, **places), stdout=subprocess.DEVNULL, cwd=tmp_path, preexec_fn=limit
    )
    assert status == 2
    assert said.startswith(f"{command.program}: error: ")
    assert len(said.splitlines()) == 1
    assert not (out / command.product).exists()


def test_a_set_that_outgrows_its_disk_leaves_nothing(places, tmp_path):
    command, out = COMMANDS["prep-data"], tmp_path / "sets" / "out"
    status, said = _ended(
        command, command.line(out, **places), stdout=subprocess.DEVNULL, cwd=tmp_path, preexec_fn=_limit_files
    )
    assert (status, said) == (
        2,
        f"prep-data: error: {out.parent} can't take more: File too large; make room or name another place\n",
    )
    assert not out.parent.exists()


def _hears_hang_ups():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize(
    "name, signum",
    [
        pytest.param(name, signum, marks=[] if (name, signum) == ("fast-train", signal.SIGTERM) else pytest.mark.slow)
        for name in COMMANDS
        if COMMANDS[name].begun and name != "prep-data"
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    ],
)
def test_a_signal_ends_it_with_its_status(name, signum, places, tmp_path):
    """prep-data's are tested where it is most vulnerable, in data_prep/test_prepare.py."""
    command, out = COMMANDS[name], tmp_path / "out"
    process = subprocess.Popen(
        [*command.line(out, **places), *command.endless.split()],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_hears_hang_ups,
    )  # fmt: skip
    with process:
        while command.begun not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        process.send_signal(signum)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 1
    assert (out / command.kept).exists() if command.kept else not (out / command.product).exists()
