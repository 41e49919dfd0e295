"""The scripts behind make, with stand-ins for what they call that write down how they were called."""

import shutil
import subprocess
from pathlib import Path

import pytest

from fast_train.pipeline.config.recipe import read_recipe

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "train.sh"


@pytest.fixture
def train(tmp_path):
    """Run train.sh in a folder of its own; returns (exit status, the calls, what was printed)."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)

    def call(download_status=0, busy=False, **variables):
        for name, status in (("prep-data", download_status), ("fast-train", 0)):
            path = commands / name
            # Only the first data set fails: the synthetic one needs no network.
            path.write_text(
                f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n'
                f'case "$*" in *synthetic*) exit 0 ;; esac\nexit {status}\n'
            )
            path.chmod(0o755)
        # With nothing that is idle; where there is no such file, nobody knows.
        stat = tmp_path / "stat"
        stat.write_text("cpu  100 0 100 0 0 0 0 0 0 0\n") if busy else stat.unlink(missing_ok=True)
        environment = {"PATH": "/usr/bin:/bin", "STAT_FILE": str(stat), "SAMPLE_SECONDS": "0.01", **variables}
        done = subprocess.run(
            ["bash", str(tmp_path / "scripts" / "train.sh")],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        calls = tmp_path / "calls"
        return done.returncode, calls.read_text().splitlines() if calls.exists() else [], done.stdout

    return call


def test_cifar10_by_default(train):
    status, calls, _ = train()
    assert status == 0
    assert calls == ["prep-data --dataset cifar10 --out data/cifar10", "fast-train --data data/cifar10"]


def test_on_busy_cores_it_trains_half_as_long(train):
    _, calls, said = train(busy=True)
    assert calls[1] == "fast-train --data data/cifar10 --recipe cpu-short"
    assert "other programs keep the cores busy" in said
    assert train(busy=True, ARGS="--epochs 2")[1][-1] == "fast-train --data data/cifar10 --epochs 2"


def test_on_busy_cores_images_of_their_own_shapes_keep_their_recipe(train, tmp_path):
    (tmp_path / "data" / "photos").mkdir(parents=True)
    (tmp_path / "data" / "photos" / "manifest.json").write_text('{\n "image_shape": "ragged"\n}\n')
    _, calls, said = train(busy=True, DATA="folder:photos")
    assert calls[1] == "fast-train --data data/photos --epochs 20"
    epochs = read_recipe("photos-cpu")["run"]["epochs"]
    assert epochs == 2 * 20
    assert f"--epochs {epochs}' is the whole" in said


def test_a_folder_a_source_and_more_flags(train, tmp_path):
    more = {"ARGS": "--epochs 2", "PREP_ARGS": "--skip-bad --size 96", "SOURCE": "x.tar.gz"}
    _, calls, _ = train(DATA=f"folder:{tmp_path}/my photos/", **more)
    assert calls == [
        f"prep-data --dataset folder:{tmp_path}/my photos/ --out data/my photos --source x.tar.gz --skip-bad --size 96",
        "fast-train --data data/my photos --epochs 2",
    ]


@pytest.mark.parametrize(
    "folder, name", [("-x", "-x"), ("-", "-"), ("a/..", "{here}"), ("a b/.", "a b"), ("nowhere/x/", "x")]
)
def test_a_set_is_called_by_its_folder(train, tmp_path, folder, name):
    if "nowhere" not in folder:
        (tmp_path / folder.split("/")[0]).mkdir()
    _, calls, _ = train(DATA=f"folder:{folder}")
    assert calls[0] == f"prep-data --dataset folder:{folder} --out data/{name.format(here=tmp_path.name)}"


@pytest.mark.parametrize(
    "dataset, name",
    [("csv:lists/my.photos.csv", "my.photos"), ("parquet:hub/v1.0", "v1.0"), ("parquet:x.parquet", "x")],
)
def test_a_set_is_called_by_its_file(train, dataset, name):
    assert train(DATA=dataset)[1][0] == f"prep-data --dataset {dataset} --out data/{name}"


def test_a_folder_without_a_name_is_refused(train):
    assert train(DATA="folder:/")[:2] == (2, [])


@pytest.mark.parametrize("script", ["scripts/train.sh", "scripts/setup.sh", ".ci/run"])
def test_another_project_on_the_shell_s_path_of_folders_is_left_alone(tmp_path, script):
    """With CDPATH, cd prefers a folder of the same name that lies elsewhere."""
    head = (ROOT / script).read_text().partition('/.."\n')
    for project in ("this", "other"):
        (tmp_path / project / Path(script).parent).mkdir(parents=True)
    copy = tmp_path / "this" / script
    copy.write_text(head[0] + head[1] + "pwd\n")
    done = subprocess.run(
        ["bash", script], cwd=tmp_path / "this", env={"PATH": "/usr/bin:/bin", "CDPATH": str(tmp_path / "other")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"{tmp_path / 'this'}\n"


def test_without_a_network_it_says_so_and_trains_on_synthetic_images(train):
    status, calls, printed = train(download_status=3)
    assert status == 0
    assert calls[1:] == ["prep-data --dataset synthetic --out data/synthetic", "fast-train --data data/synthetic"]
    assert len(printed.splitlines()) == 1
    assert "can't be downloaded" in printed
    assert "synthetic" in printed


@pytest.mark.parametrize(("status", "variables"), [(2, {}), (3, {"DATA": "cifar10"}), (130, {})])
def test_other_failures_end_it(train, status, variables):
    returned, calls, _ = train(download_status=status, **variables)
    assert returned == status
    assert len(calls) == 1


class Make:
    """`make` in a copy of what builds the environment, with stand-ins for Python and for the system's tools."""

    def __init__(self, folder):
        self.project, self._tools, self._installs = folder / "project", folder / "tools", folder / "installs"
        (self.project / "scripts").mkdir(parents=True)
        for name in ("Makefile", "pyproject.toml", "scripts/setup.sh"):
            shutil.copy(ROOT / name, self.project / name)
        self._tools.mkdir()
        for name in ("make", "sh", "bash", "env", "dirname", "mkdir", "cp", "cat", "rm", "touch", "awk"):
            found = shutil.which(name)
            assert found, f"no {name} here"
            (self._tools / name).symlink_to(found)
        self.tool(
            "python",
            'case "$*" in\n'
            "*'-m venv'*) mkdir -p .venv/bin && cp $TOOLS/python .venv/bin/python ;;\n"
            "*urllib*) exit $INDEX_STATUS ;;\n"
            '*\'pip install\'*) echo "$*" >> $INSTALLS; case "$*" in *ffcv*) exit $FFCV_STATUS ;; esac ;;\n'
            "esac",
        )
        self.tool("uname", "echo Linux")
        self.tool("df", "echo; echo disk 0 0 ${FREE_KB} 0% /")

    def tool(self, name, script="exit 0"):
        path = self._tools / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def __call__(self, target, *, ffcv_status=0, index_status=0, free_kb=10**9, status=0, torch="cpu"):
        """The packages of each pip install, and what was said."""
        self._installs.write_text("")
        variables = {"PYTHON": "python", "TOOLS": self._tools, "INSTALLS": self._installs, "FFCV_STATUS": ffcv_status}
        variables |= {"INDEX_STATUS": index_status, "FREE_KB": free_kb, "PATH": self._tools}
        variables |= {"TORCH": torch} if torch else {}
        done = subprocess.run(
            ["make", "-C", str(self.project), target],
            env={name: str(value) for name, value in variables.items()},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        installs = self._installs.read_text().splitlines()
        return [line.removeprefix("-m pip install -q ") for line in installs], done.stdout + done.stderr


@pytest.fixture
def make(tmp_path):
    return Make(tmp_path)


CPU = "--index-url https://download.pytorch.org/whl/cpu torch torchvision"


def test_a_training_needs_the_small_torch_and_none_of_what_tests_need(make):
    installs, said = make(".venv/.train")
    assert installs == [CPU, "-e ."]
    assert "0.2 GB to download" in said
    assert make(".venv/.train", torch=None)[0] == []
    assert make(".venv/.test", torch=None)[0] == ["-e .[dev]", "-e .[dali]"]


def test_on_a_mac_pypi_has_the_right_torch(make):
    make.tool("uname", "echo Darwin")
    installs, said = make(".venv/.train", torch=None)
    assert installs == ["torch torchvision", "-e ."]
    assert "torch for the CPU and, on a Mac, for its GPU" in said


def test_without_the_index_of_cpu_builds_pypis_torch_serves(make):
    installs, said = make(".venv/.train", index_status=1)
    assert installs == ["torch torchvision", "-e ."]
    assert "can't be reached: PyPI's torch does as well, and is 5 GB larger" in said
    assert make(".venv/.train", index_status=1)[0] == ["-e ."]


def test_another_torch_replaces_the_one_that_is_there(make):
    make(".venv/.train")
    assert make(".venv/.train", torch="cuda")[0] == ["--force-reinstall --no-deps torch torchvision", "-e ."]
    assert make(".venv/.train", torch="cuda")[0] == ["-e ."]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"torch": "gpu"}, "TORCH=gpu is neither cpu nor cuda"), ({"free_kb": 1_500_000}, "has 1 GB free; make room")],
)
def test_what_can_not_be_installed_is_one_line(make, arguments, says):
    installs, said = make(".venv/.train", status=2, **arguments)
    assert installs == []
    assert says in said


def test_a_python_that_can_make_no_environment_is_one_line(make):
    make.tool("python", """case "$*" in *ensurepip* | *'-m pip'*) exit 1 ;; esac""")
    installs, said = make(".venv/.train", status=2)
    assert installs == []
    assert "has neither venv nor pip here; on Debian and Ubuntu, type: sudo apt-get install python3-venv" in said


def test_ffcv_is_built_once_its_system_packages_are_there(make):
    installs, said = make(".venv/.test")
    assert installs[2:] == ["-e .[dev]", "-e .[dali]"]
    assert "without FFCV" in said
    make.tool("pkg-config")
    assert make(".venv/.test", torch=None)[0] == ["-e .[ffcv]"]
    assert make(".venv/.test", torch=None)[0] == []


def test_ffcv_that_can_not_be_built_is_not_tried_at_each_call(make):
    make.tool("pkg-config")
    installs, said = make(".venv/.test", ffcv_status=1)
    assert installs[-1] == "-e .[ffcv]"
    assert "To try again: .venv/bin/python -m pip install -e '.[ffcv]'" in said
    assert make(".venv/.test", torch=None)[0] == []
