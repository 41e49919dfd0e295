"""What a report holds, and its JSON file: written whole, checked when it is read.

``report.json`` is an object that begins with ``schema`` and ``version``, ``complete`` (false where Ctrl-C ended it),
``settings``, ``data`` and ``machine``. That of a measurement goes on with ``config`` (of the training), ``rows``,
``skipped`` and ``warnings``. A row keeps its raw repeats; value, interval and spread follow from them, and are compared
with them on reading.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fast_train.benchmarks.instrument.flags import check_counts
from fast_train.benchmarks.instrument.records import Details, ImpossibleError, ReportError, read_details
from fast_train.benchmarks.instrument.statistics import bootstrap, estimate, spread
from fast_train.common.text import one_line

_STATISTICS, _BETTER = ("median", "mean"), ("higher", "lower")

D = TypeVar("D", bound=Details)
D_co = TypeVar("D_co", bound=Details, covariant=True)


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of report.json. details: what the rows of a suite may say. renamed: words in the names of rows of older
    reports, and what they are called in their place."""

    schema: str
    version: int
    details: Mapping[str, Sequence[type[Details]]] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)

    def to_json(
        self,
        *,
        complete: bool,
        settings: Mapping[str, Any],
        data: Mapping[str, Any],
        machine: Mapping[str, Any],
        body: Mapping[str, Any],
    ) -> bytes:
        """The file: what every report begins with, and then ``body``; all in JSON's types."""
        envelope = {
            "schema": self.schema,
            "version": self.version,
            "complete": complete,
            "settings": settings,
            "data": data,
            "machine": machine,
        }
        return json.dumps({**envelope, **body}, indent=1, allow_nan=False).encode() + b"\n"

    def parse(self, text: str | bytes) -> dict[str, Any]:
        """The values of a file; ReportError where it is none of this kind."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ReportError(one_line(error)) from error
        _require(isinstance(values, dict) and values.get("schema") == self.schema, f"its schema is not {self.schema}")
        version = values.get("version")
        _require(version == self.version, f"its version is {version}, this program reads {self.version}")
        return dict(values)


@dataclass(frozen=True, kw_only=True)
class Row(Generic[D_co]):
    """One thing measured. name: unique in its suite. unit: of the repeats. better: ``higher`` or ``lower``. statistic:
    what stands for the repeats. warm_up: what was measured before them; empty where warming up would change what is
    meant, as of a cold start. details: what the row is about."""

    suite: str
    name: str
    unit: str
    repeats: tuple[float, ...]
    details: D_co
    warm_up: tuple[float, ...] = ()
    better: str = "higher"
    statistic: str = "median"

    def __post_init__(self) -> None:
        where = f"row '{self.name}' of {self.suite}"
        _require(len(self.repeats) > 0, f"{where} has no repeats")
        _require(self.better in _BETTER, f"{where}: better is '{self.better}', not {' or '.join(_BETTER)}")
        _require(self.statistic in _STATISTICS, f"{where}: statistic is '{self.statistic}'")
        finite = all(math.isfinite(v) and v >= 0 for v in self.repeats + self.warm_up)
        _require(finite, f"{where} has repeats that are not finite numbers of 0 or more")
        for limit, share in self.details.shares().items():
            if share is not None and not 0 <= share <= 1:
                raise ImpossibleError(
                    f"{where}: {share:.1%} of the {limit} measured here; more than 100 % can't be: something else used "
                    "the machine while one of them was measured"
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
            "details": dataclasses.asdict(self.details),
        }


def rows_about(rows: Iterable[Row[Details]], kind: type[D]) -> list[Row[D]]:
    """Those whose details are a ``kind``, in order."""
    # Narrower than a type checker can see.
    return [row for row in rows if isinstance(row.details, kind)]  # type: ignore[misc]


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
    rows: list[Row[Details]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    complete: bool = True

    def suite(self, name: str) -> list[Row[Details]]:
        """The rows of a suite, in order."""
        return [row for row in self.rows if row.suite == name]

    def about(self, kind: type[D]) -> list[Row[D]]:
        """The rows whose details are a ``kind``, in order."""
        return rows_about(self.rows, kind)

    def find(self, suite: str, name: str) -> Row[Details] | None:
        """A row, or None."""
        return next((row for row in self.rows if (row.suite, row.name) == (suite, name)), None)

    def to_json(self, kind: Format, more: Mapping[str, Any] | None = None) -> bytes:
        """The report's JSON file. more: what such a report holds besides, in JSON's types."""
        return kind.to_json(
            complete=self.complete,
            settings=self.settings,
            data=self.data,
            machine=self.machine,
            body={
                "config": self.config,
                "rows": [row.to_dict() for row in self.rows],
                "skipped": [vars(skipped) for skipped in self.skipped],
                "warnings": self.warnings,
                **(more or {}),
            },
        )

    @classmethod
    def from_json(cls, text: str | bytes, kind: Format) -> Result:
        """Read and check; ReportError for anything out of order."""
        data = kind.parse(text)
        parts = {name: _field(data, name, dict) for name in ("settings", "config", "data", "machine")}
        check_counts(_field(parts["settings"], "repeats", int), _field(parts["settings"], "warm_up", int))
        rows = [_row_of(item, kind) for item in _field(data, "rows", list)]
        names = [(row.suite, row.name) for row in rows]
        _require(len(names) == len(set(names)), "it has two rows of one name")
        return cls(
            **parts,
            rows=rows,
            skipped=[_skipped_of(item) for item in _field(data, "skipped", list)],
            warnings=[_typed("a warning", item, str) for item in _field(data, "warnings", list)],
            complete=_field(data, "complete", bool),
        )


def _row_of(item: Any, kind: Format) -> Row[Details]:
    _typed("a row", item, dict)
    suite, name = _field(item, "suite", str), _field(item, "name", str)
    for before, now in kind.renamed.items():
        name = name.replace(before, now)
    row = Row(
        suite=suite,
        name=name,
        unit=_field(item, "unit", str),
        better=_field(item, "better", str),
        statistic=_field(item, "statistic", str),
        repeats=_numbers(item, "repeats"),
        warm_up=_numbers(item, "warm_up"),
        details=read_details(_field(item, "details", dict), kind.details.get(suite, ())),
    )
    for what, meant in (("value", row.value), ("spread", row.spread)):
        close = math.isclose(_number(what, item.get(what)), meant, rel_tol=1e-9, abs_tol=1e-12)
        _require(close, f"the {what} of row '{row.name}' does not follow from its repeats")
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
