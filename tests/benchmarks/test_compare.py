"""Two reports side by side: what makes them hard to compare is said, and other networks are refused."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest

from fast_train.benchmarks.instrument.records import ReportError
from fast_train.benchmarks.throughput import cli
from fast_train.benchmarks.throughput.compare import FORMAT, compare, describe, read_result
from fast_train.benchmarks.throughput.records import AccuracyDetails

REPORT = Path(__file__).parents[2] / "docs" / "reports" / "cpu"


@pytest.fixture
def other(result):
    """The report once more, to be changed."""
    return copy.deepcopy(result)


def test_the_same_report_needs_no_note(result, other):
    assert compare(result, other).notes == []
    # More formats of the same images.
    other.data["files"]["train-00000-of-00001.tfrecord"] = "0" * 64
    # Made before there was this setting.
    del other.config["run"]["fuse"]
    del other.settings["prep_dataset"]
    # Which rows there are, not how each was measured.
    other.settings.update(worker_counts=[1, 2, 3], batch_sizes=[8], command="again", started_at=0.0)
    assert compare(result, other).notes == []


def test_an_older_report_is_read_and_compared(capsys):
    """With rows that have other names by now."""
    assert "notes' DataLoader" in (REPORT / "report.json").read_text()
    assert cli.main(["--compare", str(REPORT), str(REPORT)]) == 0
    said = capsys.readouterr().out
    assert "end-to-end: baseline DataLoader, the baseline's step" in said
    assert "only in" not in said
    old, new = read_result(REPORT), read_result(REPORT)
    (row,) = new.about(AccuracyDetails)
    details = replace(row.details, epochs=9, batch_size=None)
    new.rows[new.rows.index(row)] = replace(row, details=details)
    assert compare(old, new).notes == ["trainings of different epochs: 2 and 9"]


def test_other_networks_are_refused_in_one_line(result, other, quick_report, tmp_path, capsys):
    other.config["model"]["arch"] = "resnet20"
    with pytest.raises(ReportError, match=r"different networks: model\.arch resnet8 and resnet20; compare reports of"):
        compare(result, other)
    path = tmp_path / "report.json"
    path.write_bytes(other.to_json(FORMAT))
    assert cli.main(["--compare", str(quick_report), str(path)]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""
    other.config["model"] = {**result.config["model"], "shortcut": "B"}
    with pytest.raises(ReportError, match=r"different networks: model\.shortcut None and B"):
        compare(result, other)


@pytest.mark.parametrize(
    ("part", "place", "value", "note"),
    [
        ("config", ("recipe",), "mine.toml", "different recipes: fast and mine.toml"),
        ("config", ("run", "amp"), "fp16", "different settings: run.amp off and fp16"),
        ("config", ("run", "compile"), True, "different settings: run.compile None and True"),
        ("config", ("run", "compile_mode"), "max", "different settings: run.compile_mode default and max"),
        ("config", ("data", "batch_size"), 7, "and 7"),
        ("config", ("optimizer", "momentum"), 0.5, "different settings: optimizer.momentum"),
        ("machine", ("commit",), "0123456789ab", "and 0123456789ab"),
        ("machine", ("python",), "3.9.0", "and 3.9.0"),
        ("machine", ("packages", "torch"), "1.0", "and 1.0"),
        ("machine", ("packages", "triton"), None, "and none"),
        ("data", ("source",), "cifar100", "cifar100 (64 for training)"),
        ("settings", ("quick",), False, "measured in different ways: quick True and False"),
        ("settings", ("repeats",), 7, "different ways: repeats 2 and 7"),
        ("settings", ("seconds",), 0.5, "different ways: seconds 0.02 and 0.5"),
        ("settings", ("workers",), 99, "and 99"),
        ("settings", ("prep_dataset",), "cifar10", "different ways: prep_dataset synthetic and cifar10"),
    ],
)
def test_what_differs_is_noted(result, other, part, place, value, note):
    values = getattr(other, part)
    for name in place[:-1]:
        values = values[name]
    assert values[place[-1]] != value
    values[place[-1]] = value
    if part == "data":
        other.data["files"] = dict.fromkeys(other.data["files"], "0" * 64)
    if place == ("run", "amp"):
        result.config["run"]["amp"] = "off"
    (line,) = compare(result, other).notes
    assert note in line
    assert f"note: {line}" in describe(compare(result, other), 0.1)


def test_replaced_data_of_the_same_name_are_noted(result, other):
    other.data["files"]["train.safetensors"] = "0" * 64
    (note,) = compare(result, other).notes
    assert note == "files of the prepared sets differ, others are alike: train.safetensors"
    other.data["files"] = dict.fromkeys(result.data["files"], "0" * 64)
    (note,) = compare(result, other).notes
    assert note.startswith("measured on different images")
    assert note.endswith("whose files differ")


def test_of_different_recipes_only_what_changes_the_speed_is_listed(result, other):
    other.config["recipe"] = "mine.toml"
    other.config["optimizer"]["momentum"] = 0.5
    other.config["run"].update(epochs=99, graph=True)
    assert [note.partition(":")[2] for note in compare(result, other).notes] == [
        " fast and mine.toml",
        " run.graph None and True",
    ]
