"""The report's JSON file, written and read."""

from __future__ import annotations

from pathlib import Path

from fast_train.benchmarks.instrument.records import ReportError
from fast_train.benchmarks.instrument.result import Format, Result
from fast_train.benchmarks.throughput.suites import SUITES
from fast_train.common.text import one_line, show

NAME = "report.json"
FORMAT = Format(
    schema="fast-train.bench-throughput",
    version=1,
    details={suite.name: suite.details for suite in SUITES.values()},
    renamed={"notes' DataLoader": "baseline DataLoader", "the notes' step": "the baseline's step"},
)


def read_result(path: Path) -> Result:
    """Read a report.json, or the one in a folder; ReportError, naming it, for anything out of order."""
    path = path / NAME if path.is_dir() else path
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ReportError(f"{show(path)} can't be read: {one_line(error)}") from error
    try:
        return Result.from_json(text, FORMAT)
    except ValueError as error:
        raise ReportError(
            f"{show(path)} is not a usable report of bench-throughput: {one_line(error)}; measure anew"
        ) from error
