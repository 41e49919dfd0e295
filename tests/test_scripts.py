"""The scripts behind make, with stand-ins for what they call that write down how they were called."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "train.sh"


@pytest.fixture
def train(tmp_path):
    """Run train.sh in a folder of its own; returns (exit status, the calls, what was printed)."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)

    def call(download_status=0, **variables):
        for name, status in (("prep-data", download_status), ("fast-train", 0)):
            path = commands / name
            # Only the first data set fails: the synthetic one needs no network.
            path.write_text(
                f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n'
                f'case "$*" in *synthetic*) exit 0 ;; esac\nexit {status}\n'
            )
            path.chmod(0o755)
        environment = {"PATH": "/usr/bin:/bin", **variables}
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


def test_a_folder_a_source_and_more_flags(train, tmp_path):
    more = {"ARGS": "--epochs 2", "PREP_ARGS": "--skip-bad --size 96", "SOURCE": "x.tar.gz"}
    _, calls, _ = train(DATA=f"folder:{tmp_path}/my photos/", **more)
    assert calls == [
        f"prep-data --dataset folder:{tmp_path}/my photos/ --out data/my photos --source x.tar.gz --skip-bad --size 96",
        "fast-train --data data/my photos --epochs 2",
    ]


@pytest.mark.parametrize(
    "data, place", [("folder:-x", "data/-x"), ("folder:a/..", "data/{here}"), ("folder:/a b/.", "data/a b")]
)
def test_a_set_is_called_by_its_folder(train, tmp_path, data, place):
    _, calls, _ = train(DATA=data)
    assert calls[0] == f"prep-data --dataset {data} --out {place.format(here=tmp_path.name)}"


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


@pytest.fixture
def make(tmp_path):
    """Run `make .venv/.installed` in a copy, with a stand-in for Python; returns (its pip installs, what was said).
    pkg_config: whether there is one, which finds all libraries."""
    project, tools = tmp_path / "project", tmp_path / "tools"
    (project / "scripts").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "scripts/setup.sh"):
        shutil.copy(ROOT / name, project / name)
    tools.mkdir()
    for name in ("make", "sh", "bash", "env", "dirname", "mkdir", "cp", "rm", "touch"):
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"no {name} here")
        (tools / name).symlink_to(found)
    python = tools / "python"
    python.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        f"*'-m venv'*) mkdir -p .venv/bin && cp {python} .venv/bin/python ;;\n"
        f'*\'pip install\'*) echo "$*" >> {tmp_path}/installs; case "$*" in *ffcv*) exit $FFCV_STATUS ;; esac ;;\n'
        "esac\n"
    )
    python.chmod(0o755)

    def call(*, pkg_config, ffcv_status=0):
        path = tools / "pkg-config"
        path.unlink(missing_ok=True)
        if pkg_config:
            path.write_text("#!/bin/sh\nexit 0\n")
            path.chmod(0o755)
        installs = tmp_path / "installs"
        installs.write_text("")
        done = subprocess.run(
            ["make", "-C", str(project), ".venv/.installed"],
            env={"PATH": str(tools), "PYTHON": "python", "FFCV_STATUS": str(ffcv_status)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return [line.split()[-1] for line in installs.read_text().splitlines()], done.stdout

    return call


def test_ffcv_is_built_once_its_system_packages_are_there(make):
    installs, said = make(pkg_config=False)
    assert installs == [".[dev]", ".[dali]"]
    assert "without FFCV" in said
    assert make(pkg_config=False)[0] == []
    assert ".[ffcv]" in make(pkg_config=True)[0]
    assert make(pkg_config=True)[0] == []


def test_ffcv_that_can_not_be_built_is_not_tried_at_each_call(make):
    installs, said = make(pkg_config=True, ffcv_status=1)
    assert ".[ffcv]" in installs
    assert "To try again: .venv/bin/python -m pip install -e '.[ffcv]'" in said
    assert make(pkg_config=True)[0] == []
