"""Recipes: small TOML files of defaults. A flag wins over the recipe, the recipe over the built-in default."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fast_train.pipeline.config.settings import Config
from fast_train.pipeline.errors import ConfigError, check_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parents[1] / "recipes"


def recipe_names() -> list[str]:
    """The built-in recipes, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_recipe(name: str) -> dict[str, Any]:
    """A recipe's settings as nested dictionaries; ``name`` is a built-in one or the path of a TOML file."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        if name.endswith(".toml"):
            raise ConfigError(f"no recipe file {name}; give a path that exists, or one of {', '.join(recipe_names())}")
        check_name("recipe", name, recipe_names())
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} is no valid TOML: {error}") from error


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries merged; ``over`` wins."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def resolve(recipe: str, flags: Mapping[str, Any]) -> Config:
    """The configuration of a run: built-in defaults, then the recipe, then the flags that were given."""
    settings = merge(read_recipe(recipe), without_steps_if_epochs(flags))
    return Config.from_dict({**settings, "recipe": recipe})


def without_steps_if_epochs(flags: Mapping[str, Any]) -> Mapping[str, Any]:
    """Flags whose length in epochs also replaces a length in steps that they are merged over."""
    run = flags.get("run", {})
    return merge({"run": {"steps": None}}, flags) if "epochs" in run else flags
