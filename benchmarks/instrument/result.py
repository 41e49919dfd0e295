"""What a report holds, and its JSON file: written whole, checked when it is read.

``report.json`` is an object that begins with ``schema`` and ``version``, ``complete`` (false where Ctrl-C ended it),
``settings``, ``data`` and ``machine``. That of a measurement goes on with ``config`` (of the training), ``rows``,
``skipped`` and ``warnings``. A row keeps its raw repeats; value, interval and spread follow from them, and are compared
with them on reading.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from fast_train.benchmarks.instrument.flags import check_counts
from fast_train.benchmarks.instrument.records import Details, ImpossibleError, ReportError, field_of, read_details
from fast_train.benchmarks.instrument.statistics import STATISTICS, bootstrap, estimate, spread
from fast_train.common.text import one_line

_BETTER = ("higher", "lower")

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

    def to_json(self, values: Mapping[str, Any]) -> bytes:
        """The file. values: what it holds besides its kind and version, in JSON's types."""
        kind = {"schema": self.schema, "version": self.version}
        return json.dumps({**kind, **values}, indent=1, allow_nan=False).encode() + b"\n"

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
        _require(self.statistic in STATISTICS, f"{where}: statistic is '{self.statistic}'")
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
        return estimate(self.repeats, self.statistic)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The bootstrap's interval of `value`; None for one repeat."""
        return bootstrap(self.repeats, self.statistic)

    @property
    def ends(self) -> tuple[float, float]:
        """The interval's; of one repeat its value, twice."""
        return self.interval or (self.value, self.value)

    @property
    def spread(self) -> float:
        """Largest minus smallest repeat, as a part of the median."""
        return spread(self.repeats)

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types, with the figures that follow from the repeats."""
        return {**asdict(self), "value": self.value, "interval": self.interval, "spread": self.spread}


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
        return [row for row in self.rows if row.suite == name]

    def about(self, kind: type[D]) -> list[Row[D]]:
        return rows_about(self.rows, kind)

    def find(self, suite: str, name: str) -> Row[Details] | None:
        return next((row for row in self.rows if (row.suite, row.name) == (suite, name)), None)

    def to_json(self, kind: Format, more: Mapping[str, Any] | None = None) -> bytes:
        """The report's JSON file. more: what such a report holds besides, in JSON's types."""
        rows, skipped = [row.to_dict() for row in self.rows], [vars(skipped) for skipped in self.skipped]
        # What says whether it is whole comes first.
        return kind.to_json({"complete": self.complete, **vars(self), "rows": rows, "skipped": skipped, **(more or {})})

    @classmethod
    def from_json(cls, text: str | bytes, kind: Format) -> Result:
        data = kind.parse(text)
        parts = {name: field_of(data, name, dict) for name in ("settings", "config", "data", "machine")}
        check_counts(field_of(parts["settings"], "repeats", int), field_of(parts["settings"], "warm_up", int))
        rows = [_row_of(item, kind) for item in field_of(data, "rows", tuple[dict[str, Any], ...])]
        names = [(row.suite, row.name) for row in rows]
        _require(len(names) == len(set(names)), "it has two rows of one name")
        return cls(
            **parts,
            rows=rows,
            skipped=list(field_of(data, "skipped", tuple[Skipped, ...])),
            warnings=list(field_of(data, "warnings", tuple[str, ...])),
            complete=field_of(data, "complete", bool),
        )


def _row_of(item: dict[str, Any], kind: Format) -> Row[Details]:
    texts = {name: field_of(item, name, str) for name in ("suite", "name", "unit", "better", "statistic")}
    for before, now in kind.renamed.items():
        texts["name"] = texts["name"].replace(before, now)
    row = Row(
        **texts,
        repeats=field_of(item, "repeats", tuple[float, ...]),
        warm_up=field_of(item, "warm_up", tuple[float, ...]),
        details=read_details(field_of(item, "details", dict), kind.details.get(texts["suite"], ())),
    )
    for what, meant in (("value", row.value), ("spread", row.spread)):
        close = math.isclose(field_of(item, what, float), meant, rel_tol=1e-9, abs_tol=1e-12)
        _require(close, f"the {what} of row '{row.name}' does not follow from its repeats")
    return row


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ReportError(message)
