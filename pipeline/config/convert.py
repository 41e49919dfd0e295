"""Plain values, as TOML and JSON hold them, to typed settings and back to their descriptions."""

from __future__ import annotations

import ast
import dataclasses
import sys
import threading
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from fast_train.pipeline.errors import ConfigError, check_name

T = TypeVar("T")
_WORDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list, such as [0.5, 0.75]",
    type(None): "none",
}
# Two threads that parse at once can crash Python 3.11.
_PARSING = threading.Lock()


@dataclass(frozen=True)
class Setting:
    """A setting as a person meets it. kind: its type, with None where it may be left open. text: its docstring."""

    section: str
    name: str
    kind: Any
    default: Any
    text: str

    @property
    def place(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it may have, where these are names; empty where they are not."""
        return _literals(self.kind)

    @property
    def plain(self) -> type:
        """The type of its values: bool, int, float, str or tuple."""
        return next(_plain(option) for option in _options(self.kind) if option is not type(None))


def describe(section: str, cls: type) -> Iterator[Setting]:
    """The settings of a dataclass, each with the docstring that stands below it in the source: in its own class, or in
    the one that it is inherited from."""
    texts = dict[str, str]()
    with _PARSING:
        for base in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
            texts |= _docstrings(base)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield Setting(section, field.name, hints[field.name], field.default, texts[field.name])


def _docstrings(cls: type) -> dict[str, str]:
    source = Path(str(sys.modules[cls.__module__].__file__)).read_text(encoding="utf-8")
    tree = ast.parse(source)
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    found = {}
    for field, below in pairwise(body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def check_choice(what: str, settings: object, name: str) -> None:
    """ConfigError unless the field ``name`` has one of the values of its Literal; None passes where its type has it.
    what: the setting in words."""
    value = getattr(settings, name)
    if value is not None:
        check_name(what, value, _literals(typing.get_type_hints(type(settings))[name]))


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """A dataclass from nested plain values; ConfigError on unknown keys and on values of a wrong type."""
    hints = typing.get_type_hints(cls)
    arguments = {}
    for name, value in values.items():
        check_name(f"setting in {where}", name, hints)
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}.{name} is {value!r}; it must be a table of settings")
            arguments[name] = build(hints[name], value, f"{where}.{name}")
        else:
            arguments[name] = _convert(value, hints[name], f"{where}.{name}")
    return cls(**arguments)


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Check a plain value against a field's type; whole numbers serve as floats, lists as tuples, and "none", for which
    TOML has no word, leaves open what may be. Which names a Literal allows, the dataclass itself checks."""
    if getattr(value, "shape", None) == ():
        # A scalar of NumPy, such as a sweep by np.arange gives.
        value = value.item()
    if is_none(value) and type(None) in _options(hint):
        return None
    for option in _options(hint):
        plain = _plain(option)
        if plain is tuple and isinstance(value, (list, tuple)):
            return tuple(_convert(part, typing.get_args(option)[0], where) for part in value)
        if plain is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            # A whole number may be larger than any float.
            with suppress(OverflowError):
                return float(value)
        if type(value) is plain:
            return value
    raise ConfigError(f"{where} is {value!r}; it must be {' or '.join(_WORDS[_plain(o)] for o in _options(hint))}")


def is_none(value: Any) -> bool:
    """Whether a value stands for a setting that is left open."""
    return value is None or (isinstance(value, str) and value.lower() == "none")


def _options(hint: Any) -> tuple[Any, ...]:
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if union else (hint,)


def _plain(option: Any) -> type:
    origin = typing.get_origin(option) or option
    return str if origin is typing.Literal else origin


def _literals(hint: Any) -> tuple[str, ...]:
    return tuple(
        name for option in _options(hint) if typing.get_origin(option) is typing.Literal
        for name in typing.get_args(option)
    )  # fmt: skip
