"""What is installed: one name, whole, that stands beside others', and commands that start from anywhere."""

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from fast_train.common.version import VERSION

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "src" / "fast_train"
MODULES = {
    "prep-data": "data_prep.cli",
    "fast-train": "pipeline.cli",
    "fast-predict": "pipeline.predict_cli",
    "fast-export": "pipeline.export_cli",
    "bench-throughput": "benchmarks.throughput.cli",
    "bench-study": "benchmarks.studies.cli",
}
COMMANDS = tuple(MODULES)
# Arguments that a command does not go without.
_NEEDED = {
    "bench-study": ["augmentation"],
    "fast-predict": [".", "x.png"],
    "fast-export": [str(ROOT / "README.md"), "--to", "weights", "--out", "x"],
}
_BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
_STAND_IN = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "kernels"
version = "0.10"
[tool.setuptools]
packages = ["kernels"]
"""


def _run(*command, **options):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)


def _wheel_of(project, folder):
    """Build a project as pip does, without its isolation, which would need a network."""
    result = _run(sys.executable, "-c", _BUILD, folder, cwd=project)
    assert result.returncode == 0, result.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the sources: what other builds have left beside them would get into it."""
    project = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, project)
    for folder in ("src", *(link.name for link in SOURCES.iterdir() if link.is_symlink())):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / folder, project / folder, symlinks=True, ignore=ignored)
    return _wheel_of(project, tmp_path_factory.mktemp("wheel"))


def _files(folder):
    """All modules and what comes with them, relative to the folder that the package lies in."""
    found = {
        str((Path(parent) / name).relative_to(folder.parent))
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
    }
    return {name for name in found if "__pycache__" not in name}


def test_the_wheel_holds_one_top_level_name_and_all_of_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (about,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        scripts = archive.read(f"{about}/entry_points.txt").decode()
    assert {name.partition("/")[0] for name in names} == {"fast_train", about}
    assert {name for name in names if not name.startswith(f"{about}/")} == _files(SOURCES)
    assert "fast_train/py.typed" in names
    assert "fast_train/pipeline/recipes/fast.toml" in names
    assert all(f"{name} = fast_train.scripts:{name.replace('-', '_')}\n" in scripts for name in COMMANDS)


def test_licence_authors_and_version_are_said_alike(wheel, tmp_path):
    """In the wheel, the licence, the citation, the change log and by --version."""
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        about = email.message_from_bytes(archive.read(path))
    cited = dict(re.findall(r"^(\w+): (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    licence = (ROOT / "LICENSE").read_text()
    released = re.findall(r"^## (\S+) - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    shown = _run(sys.executable, "-m", "fast_train.pipeline.cli", "--version", cwd=tmp_path)
    assert shown.stdout == f"fast-train, fast-train {VERSION}\n"
    assert about["Version"] == cited["version"] == released[0] == VERSION
    assert about["License-Expression"] == cited["license"] == licence.split()[0] == "MIT"
    assert f"- name: {about['Author']}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"{about['Author']}\n" in licence
    low, high = re.fullmatch(r"<3\.(\d+),>=3\.(\d+)", about["Requires-Python"]).groups()[::-1]
    named = [line.removeprefix("Programming Language :: Python :: ") for line in about.get_all("Classifier")]
    assert [name for name in named if name[:2] == "3."] == [f"3.{minor}" for minor in range(int(low), int(high))]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel and a stand-in for another distribution, which is called `kernels`."""
    other = tmp_path_factory.mktemp("other")
    (other / "pyproject.toml").write_text(_STAND_IN)
    (other / "kernels").mkdir()
    (other / "kernels" / "__init__.py").write_text("OTHER = True\n")
    folder = tmp_path_factory.mktemp("installed")
    for path in (wheel, _wheel_of(other, tmp_path_factory.mktemp("wheel"))):
        result = _run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", folder, path)
        assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
def test_it_stands_beside_a_distribution_called_kernels(installed, tmp_path):
    code = "import kernels, fast_train.kernels.spec as ours; print(kernels.OTHER, kernels.__file__, ours.__file__)"
    result = _run(sys.executable, "-c", code, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)})
    kernels, ours = installed / "kernels" / "__init__.py", installed / "fast_train" / "kernels" / "spec.py"
    assert result.stdout.split() == ["True", str(kernels), str(ours)], result.stderr


@pytest.mark.slow
def test_the_commands_work_from_a_wheel(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    for name in COMMANDS:
        result = _run(sys.executable, installed / "bin" / name, "--help", cwd=tmp_path, env=environment)
        assert result.stdout.startswith(f"usage: {name}"), result.stderr
    result = _run(sys.executable, "-m", "fast_train.pipeline.cli", "--help", cwd=tmp_path, env=environment)
    assert result.stdout.startswith("usage: fast-train"), result.stderr
    arguments = ["--dataset", "synthetic", "--out", "set"]
    result = _run(sys.executable, installed / "bin" / "prep-data", *arguments, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "set" / "manifest.json").exists()
    # The recipe is found: what is refused is a setting.
    arguments = ["--data", "set", "--recipe", "cpu-sgd", "--epochs", "0", "--device", "cpu"]
    result = _run(sys.executable, installed / "bin" / "fast-train", *arguments, cwd=tmp_path, env=environment)
    assert result.stderr == "fast-train: error: 0 epochs; give 1 or more\n"


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("place", "status", "says"), [("{command}", -2, ""), ("fast_train.data_prep.manifest", 130, "{name}: interrupted")]
)
def test_ctrl_c_while_it_is_imported_shows_no_trace(name, place, status, says, tmp_path):
    """It comes with the import of the command itself, and of what the command imports once it works."""
    place = place.format(command=f"fast_train.{MODULES[name]}")
    code = f"""
import os, signal, sys, time
class Finder:
    def find_spec(self, module, *_):
        if module == {place!r}:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
sys.meta_path.insert(0, Finder())
from fast_train import scripts
sys.exit(scripts.{name.replace("-", "_")}())"""
    (tmp_path / "last.pt").touch()
    result = _run(sys.executable, "-c", code, *_NEEDED.get(name, []), cwd=tmp_path)
    assert result.returncode == status, result.stderr
    assert result.stderr.startswith(says.format(name=name))
    assert len(result.stderr.splitlines()) == bool(says)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_work_from_another_folder(name, tmp_path):
    command = Path(sysconfig.get_path("scripts")) / name
    if not command.exists():
        pytest.skip("not installed; pip install -e .")
    result = _run(command, "--help", cwd=tmp_path)
    assert result.stdout.startswith(f"usage: {name}"), result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_a_module_too(name, tmp_path):
    result = _run(sys.executable, "-m", f"fast_train.{MODULES[name]}", "--help", cwd=tmp_path)
    assert result.stdout.startswith(f"usage: {name}"), result.stderr
