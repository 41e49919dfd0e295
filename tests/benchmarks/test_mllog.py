"""MLPerf's log lines of a report: their values, of figures that are written here."""

import json

import pytest

from fast_train.benchmarks.instrument.result import Result, Row
from fast_train.benchmarks.throughput.mllog import log_lines
from fast_train.benchmarks.throughput.suites import accuracy


def training(seed, *accuracies, reached):
    """Started at second 100, began at second 110; an epoch takes 2 seconds."""
    epochs = [
        {"epoch": number + 1, "seconds": 2.0 * (number + 1), "accuracy": value}
        for number, value in enumerate(accuracies)
    ]
    return {"seed": seed, "started_at": 100.0, "began_at": 110.0, "reached": reached, "epochs": epochs}


def report(*runs, target=0.9, optimizer="sgd"):
    """Steps of 16 images were measured alone; trainings, if any, took 512."""
    rows = [Row(suite="ladder", name="step", unit="images/s", repeats=(10.0, 30.0), details={"batch_size": 16})]
    if runs:
        details = {"runs": list(runs), "target": target, "batch_size": 512}
        finals = tuple(run["epochs"][-1]["accuracy"] for run in runs)
        rows.append(Row(suite=accuracy.SUITE, name=accuracy.FINAL, unit="accuracy", repeats=finals, details=details))
    return Result(
        settings={"started_at": 90.0},
        config={
            "model": {"arch": "resnet8"},
            "data": {"batch_size": 16},
            "optimizer": {"name": optimizer, "lr": 0.25},
        },
        data={"train_images": 64, "test_images": 8},
        machine={"cpu": "a processor"},
        rows=rows,
    )


def lines_of(result, key):
    parsed = [json.loads(line.removeprefix(":::MLLOG ")) for line in log_lines(result)]
    return [line for line in parsed if line["key"] == key]


@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_the_optimizer_is_the_trainings(name):
    (line,) = lines_of(report(optimizer=name), "opt_name")
    assert line["value"] == name
    (line,) = lines_of(report(optimizer=name), "opt_base_learning_rate")
    assert line["value"] == 0.25


def test_the_batch_is_the_trainings_where_there_are_any():
    (line,) = lines_of(report(), "global_batch_size")
    assert line["value"] == 16
    result = report(training(0, 0.5, reached=False))
    (line,) = lines_of(result, "global_batch_size")
    assert line["value"] == 512
    (line,) = lines_of(result, "tracked_stats")
    assert (line["value"]["throughput"], line["metadata"]["batch_size"]) == (20.0, 16)


def test_accuracies_stand_where_they_were_evaluated():
    result = report(training(3, None, 0.5, 0.75, reached=False))
    found = [(line["time_ms"], line["value"], line["metadata"]) for line in lines_of(result, "eval_accuracy")]
    assert found == [
        (114_000, 0.5, {"seed": 3, "epoch_num": 2}),
        (116_000, 0.75, {"seed": 3, "epoch_num": 3}),
    ]


@pytest.mark.parametrize(
    ("reached", "target", "status"), [(True, 0.9, "success"), (False, 0.9, "aborted"), (False, None, "success")]
)
def test_a_run_succeeds_where_it_reached_its_target_or_had_none(reached, target, status):
    result = report(training(0, 0.5, 0.95, reached=reached), training(1, 0.95, reached=True), target=target)
    stops = [(line["time_ms"], line["metadata"]) for line in lines_of(result, "run_stop")]
    assert stops == [(114_000, {"seed": 0, "status": status}), (112_000, {"seed": 1, "status": "success"})]
    starts = [(line["time_ms"], line["metadata"]["seed"]) for line in lines_of(result, "run_start")]
    assert starts == [(110_000, 0), (110_000, 1)]
