"""What a report holds, and its JSON file: written whole, checked when it is read.

``report.json`` is an object with ``schema`` and ``version``, ``settings``, ``config`` (of the training), ``data``,
``machine``, ``complete`` (false where Ctrl-C ended it), ``rows``, ``skipped`` and ``warnings``. A row keeps its raw
repeats; value, interval and spread follow from them, and are compared with them on reading.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fast_train.benchmarks.instrument.statistics import bootstrap, check_counts, estimate, spread
from fast_train.common.text import one_line, show

SCHEMA, VERSION = "fast-train.bench-throughput", 1
_STATISTICS, _BETTER = ("median", "mean"), ("higher", "lower")


class ReportError(ValueError):
    """A report that can't be read."""


class ImpossibleError(ReportError):
    """A figure that can't be true, such as more than the device's peak."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing measured. name: unique in its suite. unit: of the repeats. better: ``higher`` or ``lower``. statistic:
    what stands for the repeats. warm_up: what was measured before them; empty where warming up would change what is
    meant, as of a cold start. details: what the row is about, in JSON's types."""

    suite: str
    name: str
    unit: str
    repeats: tuple[float, ...]
    warm_up: tuple[float, ...] = ()
    better: str = "higher"
    statistic: str = "median"
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"row '{self.name}' of {self.suite}"
        _require(len(self.repeats) > 0, f"{where} has no repeats")
        _require(self.better in _BETTER, f"{where}: better is '{self.better}', not {' or '.join(_BETTER)}")
        _require(self.statistic in _STATISTICS, f"{where}: statistic is '{self.statistic}'")
        finite = all(math.isfinite(v) and v >= 0 for v in self.repeats + self.warm_up)
        _require(finite, f"{where} has repeats that are not finite numbers of 0 or more")
        for name in ("share_of_peak", "share_of_copy"):
            share = self.details.get(name)
            if share is not None and not 0 <= share <= 1:
                raise ImpossibleError(
                    f"{where}: {share:.1%} of the {'peak' if name == 'share_of_peak' else 'copy bandwidth'} measured "
                    "here; more than 100 % can't be: something else used the machine while one of them was measured"
                )

    @property
    def value(self) -> float:
        """What stands for the repeats."""
        return estimate(self.repeats, self.statistic)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The bootstrap's interval of `value`; None for one repeat."""
        return bootstrap(self.repeats, self.statistic)

    @property
    def spread(self) -> float:
        """Largest minus smallest repeat, as a part of the median."""
        return spread(self.repeats)

    def to_dict(self) -> dict[str, Any]:
        """The row in JSON's types."""
        low_high = self.interval
        return {
            "suite": self.suite,
            "name": self.name,
            "unit": self.unit,
            "better": self.better,
            "statistic": self.statistic,
            "value": self.value,
            "interval": None if low_high is None else list(low_high),
            "spread": self.spread,
            "repeats": list(self.repeats),
            "warm_up": list(self.warm_up),
            "details": self.details,
        }


@dataclass(frozen=True)
class Skipped:
    """What was not measured, and why."""

    suite: str
    name: str
    reason: str


@dataclass(kw_only=True)
class Result:
    """A whole report's figures."""

    settings: dict[str, Any]
    config: dict[str, Any]
    data: dict[str, Any]
    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    complete: bool = True

    def suite(self, name: str) -> list[Row]:
        """The rows of a suite, in order."""
        return [row for row in self.rows if row.suite == name]

    def find(self, suite: str, name: str) -> Row | None:
        """A row, or None."""
        return next((row for row in self.rows if (row.suite, row.name) == (suite, name)), None)

    def to_json(self) -> str:
        """The text of report.json."""
        return json.dumps(
            {
                "schema": SCHEMA,
                "version": VERSION,
                "complete": self.complete,
                "settings": self.settings,
                "config": self.config,
                "data": self.data,
                "machine": self.machine,
                "rows": [row.to_dict() for row in self.rows],
                "skipped": [vars(skipped) for skipped in self.skipped],
                "warnings": self.warnings,
            },
            indent=1,
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str) -> Result:
        """Read and check; ReportError, naming ``where``, for anything out of order."""
        try:
            return _result_of(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise ReportError(
                f"{where} is not a usable report of bench-throughput: {one_line(error)}; measure anew"
            ) from error


def read_result(path: Path) -> Result:
    """Read a report.json, or the one in a folder."""
    path = path / "report.json" if path.is_dir() else path
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ReportError(f"{show(path)} can't be read: {one_line(error)}") from error
    return Result.from_json(text, where=show(path))


def _result_of(data: Any) -> Result:
    _require(isinstance(data, dict) and data.get("schema") == SCHEMA, f"its schema is not {SCHEMA}")
    _require(data.get("version") == VERSION, f"its version is {data.get('version')}, this program reads {VERSION}")
    parts = {name: _field(data, name, dict) for name in ("settings", "config", "data", "machine")}
    check_counts(_field(parts["settings"], "repeats", int), _field(parts["settings"], "warm_up", int))
    rows = [_row_of(item) for item in _field(data, "rows", list)]
    names = [(row.suite, row.name) for row in rows]
    _require(len(names) == len(set(names)), "it has two rows of one name")
    return Result(
        **parts,
        rows=rows,
        skipped=[_skipped_of(item) for item in _field(data, "skipped", list)],
        warnings=[_typed("a warning", item, str) for item in _field(data, "warnings", list)],
        complete=_field(data, "complete", bool),
    )


def _row_of(item: Any) -> Row:
    _typed("a row", item, dict)
    row = Row(
        suite=_field(item, "suite", str),
        name=_field(item, "name", str),
        unit=_field(item, "unit", str),
        better=_field(item, "better", str),
        statistic=_field(item, "statistic", str),
        repeats=_numbers(item, "repeats"),
        warm_up=_numbers(item, "warm_up"),
        details=_field(item, "details", dict),
    )
    for name, meant in (("value", row.value), ("spread", row.spread)):
        close = math.isclose(_number(name, item.get(name)), meant, rel_tol=1e-9, abs_tol=1e-12)
        _require(close, f"the {name} of row '{row.name}' does not follow from its repeats")
    return row


def _skipped_of(item: Any) -> Skipped:
    _typed("a skipped entry", item, dict)
    return Skipped(*(_field(item, name, str) for name in ("suite", "name", "reason")))


def _numbers(data: Mapping[str, Any], name: str) -> tuple[float, ...]:
    return tuple(_number(f"an item of '{name}'", value) for value in _field(data, name, list))


def _number(what: str, value: Any) -> float:
    _require(isinstance(value, (int, float)) and not isinstance(value, bool), f"{what} is not a number")
    return float(value)


def _field(data: Mapping[str, Any], name: str, kind: type) -> Any:
    _require(name in data, f"'{name}' is missing")
    return _typed(f"'{name}'", data[name], kind)


def _typed(what: str, value: Any, kind: type) -> Any:
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    _require(fits, f"{what} is not of type {kind.__name__}")
    return value


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ReportError(message)
