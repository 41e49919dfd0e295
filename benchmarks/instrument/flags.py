"""Flags that several commands of this room share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from fast_train.pipeline.errors import ConfigError, check_name


def add_subject(parser: argparse.ArgumentParser, *, recipe: str | None = None) -> None:
    """Add the flags that say what is measured: on which images, of which network, by which recipe, where. recipe: the
    default, None for what fast-train takes."""
    add = parser.add_argument
    default = recipe or "fast on a GPU or with --arch, cpu-quick or cpu-short without"
    add("--data", default="data/cifar10", metavar="DIR", help="prepared set (default: data/cifar10)")
    add("--arch", metavar="NAME", help="network (default: the recipe's)")
    add("--recipe", default=recipe, metavar="NAME", help=f"whose step is measured (default: {default})")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: a GPU if there is one)")


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
