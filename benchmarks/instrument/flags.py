"""Flags and settings that several commands of this room share. Nothing here needs torch."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fast_train.benchmarks.instrument.folder import check_empty
from fast_train.common.command import Parser, flag_path, run_command
from fast_train.common.startup import quick_imports
from fast_train.pipeline.config.recipe import check_given, check_overruled, merge
from fast_train.pipeline.config.settings import DataConfig
from fast_train.pipeline.errors import ConfigError, check_name
from fast_train.pipeline.flags import parse_sets

#: The recipe of the study notes' script, which this project's figures are compared with.
BASELINE = "notes"
#: How a flag's value is read and shown.
COUNT: dict[str, Any] = {"type": int, "metavar": "N"}
NUMBER: dict[str, Any] = {"type": float, "metavar": "X"}
FOLDER: dict[str, Any] = {"type": flag_path, "metavar": "DIR"}
DATA: dict[str, Any] = {
    "type": lambda text: str(flag_path(text)), "metavar": "DIR", "help": f"prepared set (default: {DataConfig.path})"
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Common:
    """The flags of every command of this room. debug: whether to show the trace of an error."""

    debug: bool = False

    def check(self) -> None:
        """Refuse what can be refused without torch, which takes seconds to import: ValueError."""


F = TypeVar("F", bound=Common)


def run_program(
    parser: Parser,
    cls: type[F],
    work: Callable[[F, list[str]], int],
    arguments: list[str] | None,
    *,
    interrupted: str = "",
) -> int:
    """What each command of this room does: parse, ``work``, end as `run_command` says; returns the exit status.

    work: gets the flags, and the command line. arguments: None for those that the process was started with, which ends
    with the command. interrupted: what a signal's line says besides; ``{command}`` in it is what was typed.
    """
    given = sys.argv[1:] if arguments is None else arguments
    flags = parser.parse(cls, given)
    command = [*shlex.split(parser.prog), *given]
    return run_command(
        parser.prog,
        lambda: work(flags, command),
        debug=flags.debug,
        ends_process=arguments is None,
        interrupted=interrupted.replace("{command}", shlex.join(command)),
    )


def measured_by(module: str) -> Callable[[Common, list[str]], int]:
    """Work for `run_program`: check the flags, import a module, which may need torch, and call its ``measure`` with the
    flags and the command line."""

    def work(flags: Common, command: list[str]) -> int:
        flags.check()
        with quick_imports():
            found = importlib.import_module(f"fast_train.benchmarks.{module}")
        return int(found.measure(flags, command))

    return work


# What --set does not change, and what does.
_NOT_OF_A_RECIPE = {
    "data.path": "give --data",
    "run.device": "give --device",
    "run.seed": "each run has one of its own",
}


@dataclass(frozen=True, kw_only=True)
class Subject(Common):
    """What is measured, as flags say it: on which prepared set, of which network, by which recipe, where; how
    thoroughly; and where the report goes. None for what was not given."""

    data: str = DataConfig.path
    arch: str | None = None
    recipe: str | None = None
    set: Sequence[str] = ()
    device: str | None = None
    quick: bool = False
    repeats: int | None = None
    out: Path | None = None

    @property
    def rounds(self) -> int:
        if self.repeats is not None:
            return self.repeats
        return 2 if self.quick else 5

    def settings(self) -> dict[str, dict[str, Any]]:
        """As settings that are given over any recipe, nested by section."""
        given: dict[str, dict[str, Any]] = {"data": {"path": self.data}}
        if self.device:
            given["run"] = {"device": self.device}
        if self.arch:
            given["model"] = {"arch": self.arch}
        return given

    def over_recipe(self) -> dict[str, Any]:
        """The same, and those of ``--set``, which are over the recipe that is measured alone."""
        return merge(self.settings(), parse_sets(self.set))

    def check(self) -> None:
        """Also a network, a recipe or a set that is not there, and a folder for the report that is not empty."""
        changed = parse_sets(self.set)
        for place, instead in _NOT_OF_A_RECIPE.items():
            section, _, name = place.partition(".")
            if name in changed.get(section, {}):
                raise ValueError(f"--set {place} is no setting of a recipe here; {instead}")
        given = self.over_recipe()
        check_overruled(given)
        check_given(self.recipe or None, given)
        if self.out is not None:
            check_empty(self.out)
        # NumPy, which reading a set needs, takes a tenth of a second to import.
        from fast_train.data_prep.manifest import PreparedSet

        PreparedSet.open(self.data)


def plain_parser(program: str, description: str, epilog: str = "") -> Parser:
    """A parser whose flags have no defaults: a record's fields say what one is that is not given."""
    parser = Parser(prog=program, description=description, epilog=epilog, argument_default=argparse.SUPPRESS)
    parser.add_argument("--debug", action="store_true", help="show the trace of an error")
    return parser


def add_subject(parser: Parser, default: str = "fast on a GPU or with --arch, cpu-quick or cpu-short without") -> None:
    """Add those flags of `Subject` that come first in a command's help. default: the recipe, in words."""
    add = parser.add_argument
    add("--data", **DATA)
    add("--arch", metavar="NAME", help="network (default: the recipe's)")
    add("--recipe", metavar="NAME", help=f"whose step is measured (default: {default})")
    add("--set", action="append", metavar="SECTION.X=Y", help="change a setting of the recipe; may be given again")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:N or mps (default: a GPU if there is one)")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure. seconds: of one repeat."""

    repeats: int = 5
    warm_up: int = 1
    seconds: float = 0.5
    quick: bool = False


def repeat_seconds(*, quick: bool, cuda: bool) -> float:
    """How long a repeat takes: on a CPU less, so that two cores end within a quarter of an hour."""
    return 0.1 if quick else 0.5 if cuda else 0.3


def check_counts(repeats: int, warm_up: int) -> None:
    """ValueError without at least one repeat of each kind."""
    if warm_up < 1:
        raise ValueError(
            f"--warm-up {warm_up} is too few; give 1 or more: first runs compile, allocate and fill caches"
        )
    if repeats < 1:
        raise ValueError(f"--repeats {repeats} is too few; give 1 or more")


def names_in(text: str) -> list[str]:
    """The names of a flag that takes several, with commas between."""
    return [name.strip() for name in text.split(",") if name.strip()]


def known_names(flag: str, text: str, what: str, known: Iterable[str]) -> list[str]:
    """The names that a flag was given; ConfigError for an unknown one, and where it was given none."""
    names = names_in(text)
    if not names:
        raise ConfigError(f"{flag} '{text}' names no {what}; give one of {', '.join(known)}")
    for name in names:
        check_name(what, name, known)
    return names
