"""scripts/imports.py: our own imports run down, and it notices those that do not."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "imports.py"


def _check(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def package(tmp_path):
    """Writes a package: {"kernels/order.py": "import math"}; its folder."""

    def write(files):
        root = tmp_path / "fast_train"
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return root

    return write


def test_no_import_of_ours_runs_up_or_in_a_circle():
    result = _check()
    assert result.stderr == ""
    assert result.returncode == 0
    assert "kernels" in result.stdout


def test_imports_that_run_down_are_drawn(package):
    root = package(
        {
            "__init__.py": "",
            "common/text.py": "",
            "data_prep/cli.py": "def run():\n    from fast_train.common import text",
            "pipeline/run/plan.py": "import fast_train.data_prep.cli",
        }
    )
    result = _check(root)
    assert result.returncode == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines == ["pipeline.run -> data_prep", "data_prep -> common", "common -> -"]
    dot = _check(root, "--dot").stdout
    assert '"pipeline.run" -> "data_prep"\n' in dot
    assert dot.startswith("digraph")


@pytest.mark.parametrize(
    "files, said",
    [
        (
            {"common/text.py": "from fast_train.kernels.spec import x", "kernels/spec.py": ""},
            "common.text imports kernels.spec, which lies above it or is not for it",
        ),
        (
            {"data_prep/a.py": "def f():\n    if x:\n        from fast_train.kernels import b", "kernels/b.py": ""},
            "data_prep.a imports kernels.b, which lies above it",
        ),
        (
            {"__init__.py": "", "kernels/a.py": "from fast_train import __version__"},
            "kernels.a imports fast_train, which lies above it",
        ),
        (
            {"kernels/a.py": "from fast_train.kernels import b", "kernels/b.py": "import fast_train.kernels.a"},
            "modules import each other in a circle: kernels.a -> kernels.b -> kernels.a",
        ),
        (
            {
                "pipeline/run/a.py": "import fast_train.pipeline.report.b",
                "pipeline/run/d.py": "",
                "pipeline/report/b.py": "",
                "pipeline/report/c.py": "import fast_train.pipeline.run.d",
            },
            "rooms import each other in a circle: pipeline.report -> pipeline.run -> pipeline.report",
        ),
    ],
)
def test_what_runs_up_or_in_a_circle_is_named(package, files, said):
    result = _check(package(files))
    assert result.returncode == 1
    assert said in result.stderr


def test_imports_for_type_checkers_may_run_up(package):
    files = {
        "common/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fast_train.kernels import b",
        "kernels/b.py": "",
    }
    assert _check(package(files)).returncode == 0
