"""What the documents say of the library: its examples run, and the table of settings is the settings'."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fast_train
from fast_train.pipeline.config.recipe import check_given
from fast_train.pipeline.flags import build_parser, parse_flags

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "docs" / "library.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", LIBRARY.read_text(encoding="utf-8"), re.DOTALL)


def test_the_examples_run_as_they_stand(image_folder, prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(EXAMPLES) == 6
    # As a reader would run them, but for what takes a download: one after the other, in one folder.
    for example in EXAMPLES:
        code = example.replace('prepare("cifar10"', f'prepare("folder:{image_folder}", out="data/cifar10"')
        exec(compile(code, str(LIBRARY), "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert any(re.fullmatch(r"\d+\.\d\d% in \d+\.\d s; runs/example", line) for line in printed)
    assert re.fullmatch(rf"({'|'.join(prepared.manifest.classes)}): \d+\.\d%", printed[-1])
    assert torch.load("runs/example/last.pt", weights_only=True)["history"]


def test_each_public_name_is_shown_in_at_most_ten_lines():
    shown = "".join(EXAMPLES)
    assert all(len(example.splitlines()) <= 10 for example in EXAMPLES)
    for name in fast_train.__all__:
        if name != "__version__":
            assert re.search(rf"fast_train\.{name}\b", shown)


def test_importing_the_package_imports_no_torch():
    code = "import sys, fast_train; fast_train.__version__; dir(fast_train); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        fast_train.trian  # noqa: B018


def test_the_table_of_settings_is_what_their_docstrings_say():
    spec = importlib.util.spec_from_file_location("settings_table", ROOT / "scripts" / "settings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.DOCUMENT.read_text(encoding="utf-8") == module.document(), "run: python scripts/settings.py"


def test_what_newcomers_are_told_to_type_is_understood():
    """Whole commands and settings, and the names of flags, in the right columns of docs/coming-from.md."""
    rows = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8").splitlines()
    cells = [row.split(" | ")[-1] for row in rows if row.startswith("| ") and " | " in row]
    typed = [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]
    for code in typed:
        if code.startswith(("fast-train", "--set")) and "FILE" not in code and not code.endswith("="):
            given, actions = parse_flags(shlex.split(code.removeprefix("fast-train")))
            check_given(actions.recipe, given)
    flags = {flag for code in typed for flag in re.findall(r"(?<!\S)--[a-z-]+", code) if "bench" not in code}
    known = re.findall(r"--[a-z-]+", build_parser().format_help())
    assert flags - set(known) <= {"--dataset", "--formats", "--runs"}
