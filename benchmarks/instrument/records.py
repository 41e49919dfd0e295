"""What the rows of a report are about: plain records, which neither numpy nor torch is needed to read."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")


class ReportError(ValueError):
    """A report that can't be read."""


class ImpossibleError(ReportError):
    """A figure that can't be true, such as more than the device's peak."""


@dataclass(frozen=True, kw_only=True)
class Details:
    """What a row says besides its repeats: nothing. Each suite that has more to say has a subclass with fields of the
    types that JSON knows, with tuples for lists and records for objects."""

    def shares(self) -> Mapping[str, float | None]:
        """Fractions of limits that were measured too, by what the limit is; None where it was not measured."""
        return {}


@dataclass(frozen=True, kw_only=True)
class CopyDetails(Details):
    """A row of a copy within the device's memory. bytes: of the tensor that is copied."""

    bytes: int


@dataclass(frozen=True, kw_only=True)
class ProductDetails(Details):
    """A row of a matrix product. side: rows and columns of both matrices. kind: the type that is computed in."""

    side: int
    kind: str


def read_details(values: Mapping[str, Any], kinds: Sequence[type[Details]]) -> Details:
    """The first of ``kinds`` whose required fields are all among ``values``; a plain `Details` where none fits.

    Unknown fields, and all that an unknown suite says, are left out. ReportError for a value of a wrong type.
    """
    kind = next((kind for kind in kinds if _required(kind) <= values.keys()), Details)
    return _build(kind, values)


def _required(cls: type) -> set[str]:
    return {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}


def _build(cls: type[T], values: Mapping[str, Any]) -> T:
    hints = typing.get_type_hints(cls)
    given = {f.name for f in fields(cls)} & values.keys()  # type: ignore[arg-type]
    return cls(**{name: field_of(values, name, hints[name]) for name in sorted(given | _required(cls))})


def field_of(values: Mapping[str, Any], name: str, hint: Any) -> Any:
    """A value of JSON's types as one of a type that a record's field may have; ReportError where it can't be that."""
    if name not in values:
        raise ReportError(f"'{name}' is missing")
    return _convert(f"'{name}'", values[name], hint)


def _convert(what: str, value: Any, hint: Any) -> Any:
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    for option in typing.get_args(hint) if union else (hint,):
        plain = typing.get_origin(option) or option
        if plain is tuple and isinstance(value, list):
            return tuple(_convert(f"an item of {what}", part, typing.get_args(option)[0]) for part in value)
        if is_dataclass(plain) and isinstance(value, dict):
            return _build(typing.cast(type, plain), value)
        if plain is float and type(value) is int:
            return float(value)
        if type(value) is plain:
            return value
    kind = "a number" if hint is float else f"of type {getattr(hint, '__name__', hint)}"
    raise ReportError(f"{what} is not {kind}")
