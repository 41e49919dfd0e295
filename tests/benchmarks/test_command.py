"""The command end to end, on a tiny set."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import tempfile

import pytest

from fast_train.benchmarks.instrument import bench as bench_module
from fast_train.benchmarks.instrument import roofline
from fast_train.benchmarks.lab import cli as lab_cli
from fast_train.benchmarks.studies import cli as studies_cli
from fast_train.benchmarks.throughput import cli, commands
from fast_train.benchmarks.throughput.cli import Flags
from fast_train.benchmarks.throughput.compare import FORMAT, read_result
from fast_train.benchmarks.throughput.records import EndToEndDetails, LoaderDetails, RungDetails
from fast_train.benchmarks.throughput.suites import augmentation, preparation
from fast_train.data_prep import cli as prep_cli
from fast_train.pipeline import cli as pipeline_cli
from fast_train.pipeline.loaders import LOADERS
from fast_train.pipeline.run import plan

PLOTS = {f"{name}.{kind}" for name in ("end-to-end", "ladder", "loaders", "roofline") for kind in ("png", "svg")}


@pytest.mark.parametrize("command", [prep_cli, pipeline_cli, cli, studies_cli, lab_cli])
def test_no_command_makes_a_folder_called_tilde(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))
    flags = {prep_cli: ["--dataset", "synthetic"], studies_cli: ["augmentation"]}.get(command, [])
    try:
        status = command.main([*flags, "--out=~/x"])
    except SystemExit as end:
        status = end.code
    assert status == 2
    said = capsys.readouterr().err
    assert re.search("no home folder, so ~/x is nowhere; set HOME", said)
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_all_files_are_there(quick_report):
    names = {path.name for path in quick_report.iterdir()}
    assert names == {"report.md", "report.html", "report.json"} | PLOTS


def test_every_loader_is_measured_or_listed_with_a_reason(result):
    measured = {row.details.entry for row in result.about(LoaderDetails)}
    for name in LOADERS:
        reasons = [skipped.reason for skipped in result.skipped if skipped.name.startswith(f"{name},")]
        assert name in measured or reasons
    assert {"resident", "torch", "baseline DataLoader"} <= measured
    missing = [skipped for skipped in result.skipped if skipped.suite == "loaders" and skipped.name.startswith("dali")]
    assert missing
    assert any("--formats packed,dali" in skipped.reason or "DALI" in skipped.reason for skipped in missing)


def test_what_a_cpu_can_not_do_is_listed(result):
    reasons = {(skipped.suite, skipped.name): skipped.reason for skipped in result.skipped}
    assert "CUDA" in reasons["ladder", "captured graph"]
    assert "--quick" in reasons["accuracy", "the suite"]


def test_each_rung_has_its_share_of_the_peak(result):
    rungs = result.about(RungDetails)
    assert rungs
    assert all(row.details.share_of_peak > 0 for row in rungs)


def test_a_report_is_not_overwritten(quick_report, prepared_path, capsys, monkeypatch):
    # Found before torch is imported for the measuring.
    monkeypatch.delattr(commands, "measure")
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
        (["--epochs", "0"], "0 epochs; give 1 or more"),
        (["--target-accuracy", "94"], "target accuracy 94.0 must be a fraction"),
        (["--prep-dataset", "sinthetic"], "--prep-dataset sinthetic is not known"),
        (["--prep-dataset", "folder:nowhere"], "is not a folder; give --prep-dataset folder:DIR"),
        (["--arch", "resnet19"], "did you mean"),
        (["--data", "nowhere"], "is not a prepared set; make one with prep-data"),
        (["--only", ","], "--only ',' names no suite"),
        (["--skip", ""], "--skip '' names no suite"),
        (["--skip", "roofline"], "augmentation and ladder compare with it; skip augmentation,ladder too"),
        (["--only", "ladder", "--skip", "roofline"], "ladder compares with it; skip ladder too"),
        (["--only", "loaders", "--target-accuracy", "0.9"], "--target-accuracy means nothing without the suite"),
        (["--skip", "accuracy", "--runs", "2"], "--runs means nothing without the suite accuracy"),
        (["--quick", "--epochs", "1"], "--epochs means nothing without the suite accuracy"),
        (["--image-size", "32", "--arch", "resnet8"], "images of one shape are measured as they are; leave out"),
        (["--set", "augment.cutout"], "--set augment.cutout is no assignment; write it as SECTION.NAME=VALUE"),
        (["--set", "augment.cutuot=8"], "did you mean 'cutout'"),
        (["--set", "run.epochs=2", "--set", "run.steps=9"], "run.epochs and run.steps both say how long to train"),
        (["--device", "gpu"], "unknown device 'gpu'; give cpu, cuda, cuda:N or mps"),
        (["--set", "run.seed=2"], "--set run.seed is no setting of a recipe here; each run has one of its own"),
        (["--set", "crop.flip=false"], "crop.flip is for images that are cropped, and these"),
        (["--only", "loaders", "--prep-dataset", "synthetic"], "--prep-dataset means nothing without the suite"),
        (["--only", "ranks", "--ranks", "0,x"], "--ranks 0,x names no numbers of ranks"),
        (["--max-loss", "0.1"], "--max-loss means nothing without --compare"),
        (["--compare", "a", "b"], "--compare does not go with --data"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(flags, message, prepared_path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--data", str(prepared_path), "--device", "cpu", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", [["--quick"], ["--warm-up", "1"], ["--out", "x"], ["--only", "ladder"]])
def test_comparing_ignores_no_flag(flag, quick_report, capsys):
    """Not even one that repeats its default."""
    assert cli.main(["--compare", str(quick_report), str(quick_report), *flag]) == 2
    assert f"--compare does not go with {flag[0]}; leave one of them out" in capsys.readouterr().err


@pytest.fixture
def measured(monkeypatch):
    """The suite `roofline`, watched; a list of its runs."""
    calls, run = [], roofline.run

    def watched(bench):
        calls.append(bench)
        run(bench)

    monkeypatch.setattr(roofline, "run", watched)
    return calls


def _quick(prepared_path, out, *flags, only="roofline"):
    arguments = ["--data", str(prepared_path), "--device", "cpu", "--quick", "--only", only, "--out", str(out)]
    return cli.main([*arguments, *flags])


@pytest.mark.parametrize("place", ["file", "file/report", "other", "locked/report"])
def test_a_folder_that_can_not_be_used_is_found_before_anything_is_measured(
    place, prepared_path, tmp_path, measured, capsys, monkeypatch
):
    """A file in the way, a file above it, another's files in it, a disk that is read only."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.md").write_text("mine")
    (tmp_path / "locked").mkdir()
    if place.startswith("locked"):
        # root may write anywhere, so the system's answer is made up.
        def refuse(*args, **kwargs):
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    before = sorted(tmp_path.rglob("*"))
    assert _quick(prepared_path, tmp_path / place) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / place) in error
    assert "--out" in error
    assert len(error.splitlines()) == 1
    assert measured == []
    assert sorted(tmp_path.rglob("*")) == before


def test_reports_get_free_folders(prepared_path, tmp_path, monkeypatch, instant):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        arguments = ["--data", str(prepared_path), "--device", "cpu", "--quick", "--only", "roofline"]
        assert cli.main([*arguments, "--arch", "resnet8"]) == 0
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == ["resnet8-cpu", "resnet8-cpu-2"]


def test_a_reports_folder_that_can_not_be_made_is_one_line(prepared_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").symlink_to(tmp_path / "unmounted" / "reports")
    assert cli.main(["--data", str(prepared_path), "--device", "cpu", "--quick", "--only", "roofline"]) == 2
    assert "no report can be written to reports/" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "reason"), [(OSError("Too many open files"), "Too many open files"), (KeyError("a"), "KeyError: 'a'")]
)
def test_no_error_of_a_suite_costs_the_report(error, reason, prepared_path, tmp_path, monkeypatch, capsys, instant):
    def fail(bench):
        raise error

    monkeypatch.setattr(augmentation, "run", fail)
    assert _quick(prepared_path, tmp_path / "report", "--debug", only="roofline,augmentation") == 1
    report = read_result(tmp_path / "report")
    assert report.suite("roofline")
    skipped = {(s.suite, s.name): s.reason for s in report.skipped}
    assert skipped["augmentation", "the rest of the suite"] == f"failed: {reason}"
    assert "Traceback" in capsys.readouterr().err


def test_figures_that_can_not_be_true_are_no_rows_and_fail(prepared_path, tmp_path, monkeypatch, instant):
    monkeypatch.setattr(augmentation, "BATCHES", (16,))
    monkeypatch.setattr(augmentation, "copy_bandwidth", lambda result: 1.0)
    assert _quick(prepared_path, tmp_path / "report", only="roofline,augmentation") == 1
    report = read_result(tmp_path / "report")
    assert {row.suite for row in report.rows} == {"roofline"}
    (reason,) = (s.reason for s in report.skipped if (s.suite, s.name) == ("augmentation", "batch 16"))
    assert "% of the copy bandwidth measured here; more than 100 % can't be" in reason
    assert reason in report.warnings


def test_a_preparation_that_takes_too_long_is_listed(open_bench, monkeypatch):
    def expire(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", expire)
    bench = open_bench()
    preparation.run(bench)
    assert {s.reason for s in bench.result.skipped} == {"failed: prep-data was not done after 1800 s"}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_the_report_is_whole(signum, prepared_path, tmp_path, monkeypatch, instant):
    write_report = commands.write_report

    def interrupted(*args, **options):
        signal.raise_signal(signum)
        return write_report(*args, **options)

    monkeypatch.setattr(commands, "write_report", interrupted)
    assert _quick(prepared_path, tmp_path / "report") == 128 + signum
    assert read_result(tmp_path / "report").suite("roofline")


@pytest.mark.parametrize(
    ("signum", "word"),
    [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated"), (signal.SIGHUP, "terminated")],
)
def test_a_signal_before_any_figure_leaves_no_folder(signum, word, prepared_path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(roofline, "run", lambda bench: signal.raise_signal(signum))
    assert _quick(prepared_path, tmp_path / "reports" / "new") == 128 + signum
    assert f"{word}; no report was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["in a suite", "after it"])
def test_an_interrupted_measurement_keeps_the_suites_that_were_finished(
    place, prepared_path, tmp_path, monkeypatch, instant
):
    def interrupt(_):
        raise KeyboardInterrupt

    def finish(_):
        monkeypatch.setattr(bench_module, "clean_up", interrupt)

    monkeypatch.setattr(augmentation, "run", interrupt if place == "in a suite" else finish)
    assert _quick(prepared_path, tmp_path / "report", only="roofline,augmentation") == 130
    partial = read_result(tmp_path / "report")
    assert not partial.complete
    assert {row.suite for row in partial.rows} == {"roofline"}
    assert ("augmentation", "interrupted before it was finished") in {(s.suite, s.reason) for s in partial.skipped}


def test_a_suite_that_quick_leaves_out_is_measured_where_it_is_asked_for():
    assert "preparation" not in Flags(quick=True).chosen_suites()
    assert Flags(quick=True, only="preparation").chosen_suites() == ["preparation"]
    Flags(quick=True, only="accuracy", epochs=1).check_used(["accuracy"])


def test_a_quick_report_compares_with_loaders_that_it_measured(result):
    fed = result.about(EndToEndDetails)
    assert {row.details.entry for row in fed} >= {"resident", "torch", "baseline DataLoader"}
    for row in fed:
        if "baseline's" not in row.details.step:
            assert row.details.loader_alone is not None, row.details.sentence


def test_the_recipe_is_the_one_that_fast_train_takes(open_bench, monkeypatch):
    """A network named by --arch is measured by the recipe that `fast-train --arch` trains it by."""
    monkeypatch.setattr(plan, "is_slow_cpu", lambda: True)
    for arch, recipe in ((None, "cpu-short"), ("resnet20", "fast")):
        assert open_bench(quick=True, arch=arch).result.config["recipe"] == recipe


@pytest.fixture
def slower(result, quick_report, tmp_path):
    """A report in which one row lost a fifth."""
    data = json.loads(result.to_json(FORMAT))
    row = next(row for row in data["rows"] if row["suite"] == "loaders")
    for name in ("repeats", "warm_up"):
        row[name] = [0.8 * value for value in row[name]]
    row["value"] *= 0.8
    path = tmp_path / "slower.json"
    path.write_text(json.dumps(data))
    read_result(path)
    return quick_report / "report.json", path, row["name"]


def test_a_loss_past_the_limit_fails(slower, capsys):
    old, new, name = slower
    assert cli.main(["--compare", str(old), str(old)]) == 0
    output = capsys.readouterr().out
    assert " 1.000x" in output
    assert "LOSS" not in output
    assert cli.main(["--compare", str(old), str(new), "--max-loss", "0.1"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("LOSS")]
    assert name in line
    assert "0.800x [" in line
    assert cli.main(["--compare", str(old), str(new), "--max-loss", "0.3"]) == 0
    assert cli.main(["--compare", str(new), str(old), "--max-loss", "0.1"]) == 0


@pytest.fixture
def nobody_reads(monkeypatch):
    """Standard output is a pipe whose other end is closed, as `head` leaves it."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        yield


def test_a_reader_that_goes_away_is_no_error(quick_report, slower, nobody_reads, capfd):
    old, new, _ = slower
    assert cli.main(["--compare", str(quick_report), str(quick_report)]) == 0
    assert cli.main(["--compare", str(old), str(new)]) == 1
    assert capfd.readouterr().err == ""


def test_a_report_is_written_where_nobody_reads_on(prepared_path, tmp_path, nobody_reads, capfd, instant):
    assert _quick(prepared_path, tmp_path / "report") == 0
    assert read_result(tmp_path / "report").complete
    assert (tmp_path / "report" / "report.html").exists()
    assert capfd.readouterr().err == ""


def test_broken_and_missing_reports_are_named(quick_report, tmp_path, capsys):
    (tmp_path / "broken.json").write_text("{}")
    for name in ("broken.json", "none.json"):
        assert cli.main(["--compare", str(quick_report), str(tmp_path / name)]) == 2
        assert name in capsys.readouterr().err
    assert cli.main(["--compare", str(quick_report), str(quick_report), "--max-loss", "2"]) == 2
