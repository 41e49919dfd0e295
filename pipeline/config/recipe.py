"""Recipes: small TOML files of defaults. A flag wins over the recipe, the recipe over the built-in default."""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fast_train.common.text import one_line, show_path
from fast_train.pipeline.config.convert import build, is_none
from fast_train.pipeline.config.settings import OF_THE_DATA, SECTIONS, Config
from fast_train.pipeline.errors import ConfigError, check_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Settings as a user gives them, nested by section: ``{"run": {"epochs": 8}}``.
Given = Mapping[str, Mapping[str, Any]]

FOLDER = Path(__file__).parents[1] / "recipes"
# In bytes. Python's reader takes a minute for some files of 200 KiB.
_LONGEST = 64 << 10
GPU_RECIPE = "fast"
# Both of one network. The shorter one is there so that a first training ends within five minutes.
CPU_RECIPE, SLOW_CPU_RECIPE = "cpu-quick", "cpu-short"
# For images that keep their own shapes.
PHOTOS_GPU_RECIPE, PHOTOS_CPU_RECIPE = "photos", "photos-cpu"
# For weights to begin with.
FINE_TUNE_RECIPE = "fine-tune"
# The settings that an evaluation depends on; the network's and the training's are the checkpoint's.
_EVALUATED_BY = {
    *("data.path", "data.loader", "data.workers"),
    *("run.device", "run.amp", "run.tf32", "run.tta", "run.channels_last", "run.deterministic", "run.threads"),
    *("run.tta_share", "run.eval_size"),
}


def recipe_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_recipe(name: str) -> dict[str, Any]:
    """A recipe's settings as nested dictionaries; ``name`` is a built-in one or the path of a TOML file."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        if name.endswith(".toml"):
            raise ConfigError(f"no recipe file {name}; give a path that exists, or one of {', '.join(recipe_names())}")
        check_name("recipe", name, recipe_names())
    if path.stat().st_size > _LONGEST:
        raise ConfigError(f"recipe {path} is longer than {_LONGEST // 1024} KiB; give a recipe")
    try:
        # Some editors begin a file with a byte-order mark.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        # Beside errors of TOML and of the encoding, Python's own: numbers of 5,000 digits, lists in lists in lists.
        raise ConfigError(f"recipe {path} is no valid TOML: {one_line(error)}") from error


def parse_value(text: str) -> Any:
    """A setting's value as TOML or Python writes it; other text stands for itself, so that names need no quotes."""
    text = text.strip()
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries merged; ``over`` wins."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def resolve(recipe: str, flags: Mapping[str, Any]) -> Config:
    """The configuration of a run: built-in defaults, then the recipe, then the flags that were given."""
    settings = merge(read_recipe(recipe), without_overruled(flags))
    return Config.from_dict({**settings, "recipe": recipe})


def override(config: Config, given: Mapping[str, Any]) -> Config:
    """``config`` with the settings that are given, nested by section; ConfigError as of `Config.from_dict`."""
    changed: dict[str, Any] = {}
    for section, values in given.items():
        check_name("setting in config", section, SECTIONS)
        if not isinstance(values, Mapping):
            raise ConfigError(f"config.{section} is {values!r}; it must be a table of settings")
        whole = {**vars(getattr(config, section)), **values}
        changed[section] = build(SECTIONS[section], whole, f"config.{section}")
    return dataclasses.replace(config, **changed)


def weights_of(given: Mapping[str, Any]) -> str | None:
    """The path of the weights that a training begins with, where ``given``, or a recipe's settings, have one."""
    model = given.get("model")
    path = model.get("weights") if isinstance(model, Mapping) else None
    return path if isinstance(path, str) and path and not is_none(path) else None


def recipe_for_network(given: Mapping[str, Any], *, ragged: bool) -> str | None:
    """The recipe of a network that is given, whatever the device; None where none is given, or the CPU's own: the rates
    of the CPU's recipes are those of the network that they were made for. ragged: for images that keep their shapes."""
    gpu, cpu = (PHOTOS_GPU_RECIPE, PHOTOS_CPU_RECIPE) if ragged else (GPU_RECIPE, CPU_RECIPE)
    own = read_recipe(cpu)["model"]["arch"]
    return gpu if given.get("model", {}).get("arch", own) != own else None


def check_given(recipe: str | None, given: Mapping[str, Any]) -> Config | None:
    """Look for what is wrong with settings before it is known which recipe suits the device and the images.

    Returns the configuration where the recipe is known already. Raises ConfigError where the settings fit none that may
    be taken.
    """
    if recipe is None and weights_of(given) is not None:
        recipe = FINE_TUNE_RECIPE
    if recipe is not None:
        return resolve(recipe, given)
    candidates = {recipe_for_network(given, ragged=ragged) for ragged in (False, True)}
    if None in candidates:
        candidates = {GPU_RECIPE, CPU_RECIPE, SLOW_CPU_RECIPE, PHOTOS_GPU_RECIPE, PHOTOS_CPU_RECIPE}
    errors = []
    for candidate in filter(None, sorted(candidates, key=str)):
        try:
            resolve(candidate, given)
            return None
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def check_overruled(given: Given) -> None:
    """ConfigError for settings that would be overruled without a word."""
    for place in OF_THE_DATA:
        section, _, name = place.partition(".")
        if name in given.get(section, {}):
            raise ConfigError(f"{place} is what the data say; leave it out")
    run = given.get("run", {})
    if not any(is_none(run.get(name)) for name in ("epochs", "steps")):
        raise ConfigError("run.epochs and run.steps both say how long to train; leave one of them out")
    crop = given.get("crop", {})
    if not is_none(crop.get("size")) and crop.get("progressive"):
        raise ConfigError("--image-size and --progressive both say how large the crops are; leave one of them out")


def check_evaluated(given: Given, checkpoint: Path) -> None:
    """ConfigError for settings that an evaluation of ``checkpoint`` does not depend on."""
    for section, values in given.items():
        for name in values:
            if f"{section}.{name}" not in _EVALUATED_BY:
                raise ConfigError(
                    f"{show_path(checkpoint)} says how the network is built and was trained; leave out {section}.{name}"
                )


def without_overruled(flags: Mapping[str, Any]) -> Mapping[str, Any]:
    """Flags that also take back what they replace of the settings that they are merged over: a length in epochs one in
    steps, one size of the crops several, and the other way round, and either the size of evaluated ones."""
    replaced: dict[str, Any] = {"run": {"steps": None}} if "epochs" in flags.get("run", {}) else {}
    if {"size", "progressive"} & {*flags.get("crop", {})}:
        replaced = merge(replaced, {"crop": {"size": None, "progressive": ()}, "run": {"eval_size": None}})
    return merge(replaced, flags)
