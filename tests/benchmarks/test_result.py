import json

import pytest

from fast_train.benchmarks.instrument.records import Details, ReportError
from fast_train.benchmarks.instrument.result import Result, Row
from fast_train.benchmarks.throughput.compare import FORMAT, read_result
from fast_train.benchmarks.throughput.records import (
    AccuracyDetails,
    Diverged,
    EndToEndDetails,
    EpochEnd,
    LoaderDetails,
    StepDetails,
    Training,
)


def test_a_report_reads_back_as_it_was_written(result):
    assert Result.from_json(result.to_json(FORMAT), FORMAT) == result
    assert result.complete
    assert result.settings["warm_up"] == 1


def _rung(data):
    return next(row for row in data["rows"] if row["suite"] == "ladder")["details"]


def _with(result, change):
    data = json.loads(result.to_json(FORMAT))
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("rows"), "'rows' is missing"),
        (lambda data: data.update(schema="other"), "its schema is not"),
        (lambda data: data.update(version=2), "its version is 2"),
        (lambda data: data["settings"].update(warm_up=0), "--warm-up 0 is too few"),
        (lambda data: data["rows"][0].update(value=1e12), "does not follow from its repeats"),
        (lambda data: data["rows"][0].update(repeats=[]), "has no repeats"),
        (lambda data: data["rows"][0].update(repeats=["1"]), "is not a number"),
        (lambda data: data["rows"].append(data["rows"][0]), "two rows of one name"),
        (lambda data: _rung(data).update(share_of_peak=1.01), "101.0% of the peak measured here; more than 100 %"),
        (lambda data: _rung(data).update(share_of_peak="much"), "'share_of_peak' is not of type"),
    ],
)
def test_a_report_that_is_not_in_order_is_refused_in_one_line(result, change, message, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(_with(result, change))
    with pytest.raises(ReportError) as caught:
        read_result(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "NaN", "[" * 100_000])
def test_what_is_no_report_is_refused(text, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ReportError, match=r"report\.json is not a usable report of bench-throughput: .*; measure anew"):
        read_result(path)


def test_what_a_row_says_is_typed_by_its_suite(result):
    assert {row.suite for row in result.about(LoaderDetails)} == {"loaders"}
    assert {row.suite for row in result.about(EndToEndDetails)} == {"end-to-end"}
    alone = {row.name for row in result.about(StepDetails)}
    assert alone
    assert {row.details.step_alone_row for row in result.about(EndToEndDetails)} <= alone


def test_trainings_read_back_as_they_were_written(result):
    epochs = (EpochEnd(epoch=1, seconds=1.0, accuracy=None), EpochEnd(epoch=2, seconds=2.0, accuracy=0.5))
    training = Training(
        seed=0,
        started_at=1.0,
        start_up_seconds=0.5,
        planned_epochs=2,
        began_at=2.0,
        compile_seconds=0.5,
        train_seconds=1.5,
        accuracy=0.5,
        reached=False,
        epochs=epochs,
    )
    details = AccuracyDetails(runs=(training,), diverged=(Diverged(seed=1, reason="nan"),), target=0.9, epochs=2)
    row = Row(suite="accuracy", name="test accuracy at the end", unit="accuracy", repeats=(0.5,), details=details)
    result.rows.append(row)
    assert Result.from_json(result.to_json(FORMAT), FORMAT) == result


def test_what_is_not_known_is_left_out(result):
    """Another version of the program may say more of a row, or have another suite."""
    data = json.loads(result.to_json(FORMAT))
    _rung(data)["colour"] = "red"
    (other,) = ({**row, "suite": "other", "details": {"colour": 1}} for row in data["rows"][:1])
    read = Result.from_json(json.dumps({**data, "rows": [*data["rows"], other], "more": 1}), FORMAT)
    assert read.rows[:-1] == result.rows
    assert read.rows[-1].details == Details()
