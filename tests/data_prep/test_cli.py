import subprocess
import sys

import pytest

from fast_train.data_prep import cli
from fast_train.data_prep.manifest import PreparedSet


def _python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_help_imports_nothing_heavy():
    result = _python(
        "import sys\nfrom fast_train.data_prep import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n"
        "    print(sorted({'torch', 'torchvision', 'numpy', 'PIL', 'rich'} & sys.modules.keys()))"
    )
    assert result.stdout.endswith("[]\n")
    assert "--skip-bad" in result.stdout


def test_a_folder_is_prepared_without_torch(make_folder, tmp_path):
    result = _python(
        "import sys\nfrom fast_train.data_prep import cli\n"
        "if __name__ == '__main__':\n    assert cli.main(sys.argv[1:]) == 0\n"
        "    print({'torch', 'torchvision'} & sys.modules.keys())",
        "--dataset",
        f"folder:{make_folder({'a': 3, 'b': 3})}",
        "--out",
        tmp_path / "set",
    )
    assert result.stdout.endswith("set()\n"), result.stderr


def test_verify(prep, prepared):
    result = prep("--out", prepared, "--verify")
    assert result.status == 0
    assert "is ok" in result.out
    path = prepared / "test.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"\x01")
    result = prep("--out", prepared, "--verify")
    assert result.status == 2
    assert "test.safetensors is broken: its SHA-256 is wrong" in result.err
    assert len(result.err.splitlines()) == 1


def test_verify_makes_no_set(prep, tmp_path):
    result = prep("--dataset", "synthetic", "--out", tmp_path / "none", "--verify")
    assert result.status == 2
    assert "is not a prepared set" in result.err
    assert not (tmp_path / "none").exists()


def test_default_places(prep, make_folder, tmp_path, monkeypatch):
    name = "my [b]photos :cat:"
    root = make_folder({"a": 3, "b": 3}, name=name)
    monkeypatch.chdir(tmp_path)
    assert f"data/{name} is ready" in prep("--dataset", f"folder:{root}").out
    assert PreparedSet.open(tmp_path / "data" / name).size("train") == 4
    monkeypatch.chdir(root)
    assert "lies in the image folder" in prep("--dataset", "folder:.").err
    assert prep("--dataset", "folder:.", "--out", tmp_path / "data" / name).status == 0


@pytest.mark.parametrize("dataset", ["mnist", "folder", "folder:", "csv", "csv:", "cifar10:x", ""])
def test_unknown_data_sets(prep, dataset):
    result = prep("--dataset", dataset)
    assert result.status == 2
    assert "choose from cifar10, cifar100, folder:DIR, csv:FILE, parquet:PATH, synthetic" in result.err


def test_a_trace_only_with_debug(prep):
    assert "Traceback" not in prep("--dataset", "mnist").err
    assert "Traceback" in prep("--dataset", "mnist", "--debug").err


def test_a_place_that_can_not_be_written_is_one_line(prep, make_folder, tmp_path):
    (tmp_path / "file").write_text("x")
    result = prep("--dataset", f"folder:{make_folder({'a': 3, 'b': 3})}", "--out", tmp_path / "file" / "set")
    assert result.status == 2
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("dataset, status", [("synthetic", 0), ("mnist", 2)])
def test_a_command_that_is_done_ends_without_the_end_of_python(tmp_path, dataset, status):
    result = _python(
        "from fast_train.data_prep import cli\n"
        "class Kept:\n    def __del__(self):\n        print('the end of Python')\n"
        "kept = Kept()\ncli.main()",
        *("--dataset", dataset, "--out", tmp_path / "set"),
    )
    assert result.returncode == status
    assert ("is ready" in result.stdout) == (status == 0)
    assert "the end of Python" not in result.stdout


def test_flags_that_do_not_exist_exit_with_2(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--nonsense"])
    assert caught.value.code == 2
    assert "prep-data: error:" in capsys.readouterr().err
