"""The command end to end, on a tiny set."""

import json
import re

import pytest

from benchmarks import cli
from benchmarks.result import Result, read_result
from pipeline import commands
from pipeline.loaders import LOADERS

PLOTS = {f"{name}.{kind}" for name in ("end-to-end", "ladder", "loaders", "roofline") for kind in ("png", "svg")}


def test_all_files_are_there(quick_report):
    names = {path.name for path in quick_report.iterdir()}
    assert names == {"report.md", "report.html", "report.json", "mllog.txt"} | PLOTS


def test_every_loader_is_measured_or_listed_with_a_reason(result):
    measured = {row.details["entry"] for row in result.suite("loaders")}
    for name in LOADERS:
        reasons = [skipped.reason for skipped in result.skipped if skipped.name.startswith(f"{name},")]
        assert name in measured or reasons
    assert {"resident", "torch", "notes' DataLoader"} <= measured
    missing = [skipped for skipped in result.skipped if skipped.suite == "loaders" and skipped.name.startswith("dali")]
    assert missing
    assert any("--formats packed,ffcv,dali" in skipped.reason or "DALI" in skipped.reason for skipped in missing)


def test_what_a_cpu_can_not_do_is_listed(result):
    reasons = {(skipped.suite, skipped.name): skipped.reason for skipped in result.skipped}
    assert "CUDA" in reasons["ladder", "captured graph"]
    assert "--quick" in reasons["accuracy", "time to accuracy"]


def test_the_step_waits_for_what_it_can(result):
    rows = {row.name: row for row in result.suite("end-to-end")}
    assert rows
    for row in result.suite("ladder"):
        assert 0 < row.details["share_of_peak"] <= 1 if "share_of_peak" in row.details else True
        assert row.value > 0


def test_the_page_stands_alone(quick_report):
    page = (quick_report / "report.html").read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:|//|[\w-]+\.(png|svg|css|js))""", page)
    assert "prefers-color-scheme: dark" in page


def test_mllog_lines_parse(quick_report):
    lines = (quick_report / "mllog.txt").read_text().splitlines()
    records = [json.loads(line.removeprefix(":::MLLOG ")) for line in lines]
    assert len(records) > 8
    for record in records:
        assert set(record) == {"namespace", "time_ms", "event_type", "key", "value", "metadata"}


def test_a_report_is_not_overwritten(quick_report, prepared_path, capsys):
    before = (quick_report / "report.json").read_bytes()
    assert cli.main(["--data", str(prepared_path), "--out", str(quick_report), "--quick"]) == 2
    assert "holds a report already" in capsys.readouterr().err
    assert (quick_report / "report.json").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--warm-up", "0"], "--warm-up 0 is too few"),
        (["--repeats", "0"], "--repeats 0 is too few"),
        (["--only", "loader"], "did you mean 'loaders'"),
        (["--only", "ladder", "--skip", "ladder"], "leave no suite"),
        (["--runs", "0"], "--runs 0 is too few"),
        (["--arch", "resnet19"], "did you mean"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(flags, message, prepared_path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--data", str(prepared_path), "--device", "cpu", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_recipe_is_the_one_that_fast_train_takes(prepared_path, tmp_path, monkeypatch):
    """A network named by --arch is measured by the recipe that `fast-train --arch` trains it by."""
    flags = ["--data", str(prepared_path), "--device", "cpu", "--quick", "--only", "roofline"]
    monkeypatch.setattr(commands, "is_slow_cpu", lambda: True)
    for extra, recipe in ([], "cpu-short"), (["--arch", "resnet20"], "fast"):
        out = tmp_path / recipe
        assert cli.main([*flags, *extra, "--out", str(out)]) == 0
        assert read_result(out).config["recipe"] == recipe


def test_a_missing_set_is_named(tmp_path, capsys):
    assert cli.main(["--data", str(tmp_path / "none")]) == 2
    assert "is not a prepared set; make one with prep-data" in capsys.readouterr().err


@pytest.fixture
def slower(result, quick_report, tmp_path):
    """A report in which one row lost a fifth."""
    data = json.loads(result.to_json())
    row = next(row for row in data["rows"] if row["suite"] == "loaders")
    for name in ("repeats", "warm_up"):
        row[name] = [0.8 * value for value in row[name]]
    row["value"] *= 0.8
    path = tmp_path / "slower.json"
    path.write_text(json.dumps(data))
    read_result(path)
    return quick_report / "report.json", path, row["name"]


def test_comparing_a_report_with_itself(quick_report, capsys):
    assert cli.main(["--compare", str(quick_report), str(quick_report)]) == 0
    output = capsys.readouterr().out
    assert " 1.000x" in output
    assert "LOSS" not in output


def test_a_loss_past_the_limit_fails(slower, capsys):
    old, new, name = slower
    assert cli.main(["--compare", str(old), str(new), "--max-loss", "0.1"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("LOSS")]
    assert name in line
    assert "0.800x [" in line
    assert cli.main(["--compare", str(old), str(new), "--max-loss", "0.3"]) == 0
    assert cli.main(["--compare", str(new), str(old), "--max-loss", "0.1"]) == 0


def test_broken_and_missing_reports_are_named(quick_report, tmp_path, capsys):
    (tmp_path / "broken.json").write_text("{}")
    for name in ("broken.json", "none.json"):
        assert cli.main(["--compare", str(quick_report), str(tmp_path / name)]) == 2
        assert name in capsys.readouterr().err
    assert cli.main(["--compare", str(quick_report), str(quick_report), "--max-loss", "2"]) == 2


def test_an_interrupted_measurement_keeps_the_suites_that_were_finished(prepared_path, tmp_path, monkeypatch):
    from benchmarks import suites

    def interrupt(bench):
        raise KeyboardInterrupt

    monkeypatch.setitem(suites.SUITES, "augmentation", interrupt)
    out = tmp_path / "report"
    arguments = ["--data", str(prepared_path), "--device", "cpu", "--quick", "--only", "roofline,augmentation"]
    assert cli.main([*arguments, "--out", str(out)]) == 130
    partial = read_result(out)
    assert not partial.complete
    assert {row.suite for row in partial.rows} == {"roofline"}
    assert ("augmentation", "interrupted before it was finished") in {(s.suite, s.reason) for s in partial.skipped}
    assert isinstance(partial, Result)
