"""A report as MLPerf's log lines, ``:::MLLOG {...}``, with the keys of mlperf_logging's constants.

Of each training: ``init_start``, ``init_stop``, ``run_start``, ``epoch_start``, ``epoch_stop``, ``eval_accuracy``,
``run_stop``; of each rate, ``tracked_stats``. No run of this project is an MLPerf submission, and
``submission_benchmark`` says so.
Format: github.com/mlcommons/logging, mlperf_logging/mllog.
"""

from __future__ import annotations

import json
from typing import Any

from fast_train.benchmarks.instrument.result import Result, Row
from fast_train.benchmarks.throughput.suites import accuracy

_POINT, _START, _STOP = "POINT_IN_TIME", "INTERVAL_START", "INTERVAL_END"


def log_lines(result: Result) -> list[str]:
    """The lines; times are those of the measurements."""
    started = float(result.settings["started_at"])
    final = result.find(accuracy.SUITE, accuracy.FINAL)
    # Of the trainings where there are any; a step that is measured alone may take fewer images on a CPU.
    batch_size = final.details["batch_size"] if final else result.config["data"]["batch_size"]
    lines = [
        _line(started, _POINT, "submission_benchmark", f"{result.config['model']['arch']}, no submission"),
        _line(started, _POINT, "submission_platform", result.machine["cpu"]),
        _line(started, _POINT, "global_batch_size", batch_size),
        _line(started, _POINT, "train_samples", result.data["train_images"]),
        _line(started, _POINT, "eval_samples", result.data["test_images"]),
        # MLPerf spells `sgd` so too.
        _line(started, _POINT, "opt_name", result.config["optimizer"]["name"]),
        _line(started, _POINT, "opt_base_learning_rate", result.config["optimizer"]["lr"]),
    ]
    for row in result.rows:
        if row.unit == "images/s":
            lines.append(_rate(row, started))
    if final:
        for run in final.details["runs"]:
            lines += _training(run, final.details["target"])
    return lines


def _rate(row: Row, at: float) -> str:
    metadata = {"suite": row.suite, "name": row.name, "repeats": len(row.repeats)}
    if "batch_size" in row.details:
        metadata["batch_size"] = row.details["batch_size"]
    return _line(at, _POINT, "tracked_stats", {"throughput": row.value}, metadata)


def _training(run: dict[str, Any], target: float | None) -> list[str]:
    began, seed = run["began_at"], {"seed": run["seed"]}
    lines = [
        _line(run["started_at"], _POINT, "seed", run["seed"]),
        _line(run["started_at"], _START, "init_start", None, seed),
        _line(began, _STOP, "init_stop", None, seed),
        _line(began, _START, "run_start", None, seed),
    ]
    before = 0.0
    for epoch in run["epochs"]:
        number = {**seed, "epoch_num": epoch["epoch"]}
        lines.append(_line(began + before, _START, "epoch_start", None, number))
        before = epoch["seconds"]
        if epoch["accuracy"] is not None:
            lines.append(_line(began + before, _POINT, "eval_accuracy", epoch["accuracy"], number))
        lines.append(_line(began + before, _STOP, "epoch_stop", None, number))
    status = "success" if run["reached"] or target is None else "aborted"
    return [*lines, _line(began + before, _STOP, "run_stop", None, {**seed, "status": status})]


def _line(at: float, kind: str, key: str, value: Any, metadata: dict[str, Any] | None = None) -> str:
    record = {
        "namespace": "",
        "time_ms": round(1000 * at),
        "event_type": kind,
        "key": key,
        "value": value,
        "metadata": metadata or {},
    }
    return f":::MLLOG {json.dumps(record)}"
