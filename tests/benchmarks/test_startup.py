"""How commands start: the process whose start is measured, and what is refused or compared without torch."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from fast_train.benchmarks.throughput import child, cli
from fast_train.benchmarks.throughput.suites import ranks, startup
from fast_train.benchmarks.throughput.suites.startup import package_environment
from fast_train.pipeline.config.recipe import resolve
from fast_train.pipeline.loaders.resident import ResidentLoader


@pytest.fixture
def config(prepared_path, tmp_path):
    given = {"data": {"path": str(prepared_path), "batch_size": 16}, "run": {"device": "cpu"}}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(resolve("cpu-quick", given).to_dict()))
    return path


def _python(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=package_environment(), capture_output=True, text=True, check=True)


def test_a_process_of_the_suite_ranks_says_how_fast_it_trains(config, capsys):
    child.main([str(config), "0.1"])
    assert json.loads(capsys.readouterr().out)["rate"] > 0


def test_all_gpus_are_among_the_numbers_of_ranks(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 6)
    monkeypatch.setattr(ranks, "measure", lambda bench, counts: asked.extend(counts))
    ranks.run(SimpleNamespace(device=torch.device("cuda"), settings=SimpleNamespace(ranks=())))
    assert asked == [1, 2, 4, 6]


def test_it_trains_a_step_and_says_when(config, capsys, monkeypatch):
    feed, read = ResidentLoader.feed, []
    monkeypatch.setattr(ResidentLoader, "feed", lambda self: (read.append(batch) or batch for batch in feed(self)))
    child.main([str(config)])
    # What is read beyond the one step would be part of its seconds.
    assert len(read) == 1
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["done_at"] > 0
    assert said["seconds"].keys() >= {"device", "reading", "network", "first step"}


def test_a_report_says_where_the_time_went(prepared_path, tmp_path, monkeypatch):
    """Each start by its own parts; what the process can't know of itself is told by when it started and ended."""

    def start(what, arguments, **_):
        began = time.time()
        time.sleep(0.01)
        compiled = {"compilation": 0.25} if "compiled" in arguments[1] else {}
        return json.dumps({"done_at": began + 1, "seconds": {"start": 0.0, **compiled, "first step": 0.5}})

    monkeypatch.setattr(startup, "run_module", start)
    # As where there is a compiler.
    monkeypatch.setattr(startup, "resolve_runtime", lambda run: None)
    flags = ["--device", "cpu", "--data", str(prepared_path), "--only", "startup", "--repeats", "1"]
    assert cli.main([*flags, "--out", str(tmp_path / "report")]) == 0
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["rows"]
    seconds = rows[0]["details"]["seconds"]
    assert seconds["start"] == pytest.approx(0.5, abs=0.05)
    assert seconds["start"] + seconds["first step"] == pytest.approx(rows[0]["value"])
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| first step | 0.50 | 0.50 | 0.50 |\n" in text
    assert "| compilation | 0.00 | 0.25 | 0.25 |\n" in text


@pytest.mark.slow
def test_it_imports_as_fast_train_does(config):
    """Python's collector froze what the imports made, as `fast-train` has it."""
    done = _python(
        "import gc; from fast_train.benchmarks.throughput import child; "
        f"child.main([{str(config)!r}]); print(gc.get_freeze_count())"
    )
    step, frozen = done.stdout.splitlines()[-2:]
    assert json.loads(step)["done_at"] > 0
    assert int(frozen) > 100_000


def test_what_needs_no_torch_imports_none(quick_report, prepared_path):
    """Seconds of imports, where the answer takes milliseconds."""
    calls = [
        ("throughput", ["--help"]),
        ("throughput", ["--only", "loader"]),
        ("throughput", ["--arch", "resnet19"]),
        ("throughput", ["--recipe", "nowhere"]),
        ("throughput", ["--data", "nowhere"]),
        ("throughput", ["--device", "gpu"]),
        ("throughput", ["--data", str(prepared_path), "--out", str(quick_report)]),
        ("throughput", ["--compare", str(quick_report), str(quick_report)]),
        ("studies", ["--help"]),
        ("studies", ["degradatoin"]),
        ("studies", ["degradation", "--archs", "resnet21"]),
        ("studies", ["degradation", "--data", "nowhere"]),
        ("lab", ["--help"]),
        ("lab.convolutions", ["--help"]),
        ("lab.convolutions", ["--batch-size", "0"]),
        ("lab", ["--only", "steps"]),
        ("lab", ["--arch", "resnet19"]),
    ]
    code = f"""
import importlib, sys
for room, arguments in {calls!r}:
    try:
        status = importlib.import_module(f"fast_train.benchmarks.{{room}}" + ".cli" * ("." not in room)).main(arguments)
    except SystemExit as end:
        status = end.code
    print(status, *sorted({{"torch", "matplotlib"}} & set(sys.modules)), file=sys.stderr)
"""
    said = [line for line in _python(code).stderr.splitlines() if not line.startswith(("bench-", "python -m"))]
    assert said == ["2" if "--help" not in call and "--compare" not in call else "0" for _, call in calls]
