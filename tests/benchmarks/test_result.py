import dataclasses
import json

import pytest

from fast_train.benchmarks.instrument.result import ImpossibleError, ReportError, Result, Row, read_result


def test_a_report_reads_back_as_it_was_written(result):
    assert Result.from_json(result.to_json(), where="here") == result
    assert result.complete
    assert result.settings["warm_up"] == 1


def _with(result, change):
    data = json.loads(result.to_json())
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
        (lambda data: data["rows"][0]["details"].update(share_of_peak=1.01), "more than 100 % can't be"),
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
def test_what_is_no_report_is_refused(text):
    with pytest.raises(ReportError, match="somewhere is not a usable report"):
        Result.from_json(text, where="somewhere")


def test_more_than_the_peak_is_an_error():
    row = Row(suite="ladder", name="step", unit="images/s", repeats=(1.0,))
    with pytest.raises(ImpossibleError, match=r"105\.0% of the peak measured here"):
        dataclasses.replace(row, details={"share_of_peak": 1.05})
