"""The flags of `fast-train`. Those that name a setting take their help, type and choices from
`pipeline.config.settings`; the other ones from `Actions`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from fast_train.common.command import Parser
from fast_train.common.files import user_path
from fast_train.pipeline.config.convert import Setting, describe, is_none
from fast_train.pipeline.config.recipe import Given, check_overruled, merge, parse_value
from fast_train.pipeline.config.settings import settings
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.paths import check_given, check_new, check_writable, of_name

PROGRAM = "fast-train"
_EPILOG = """Defaults are those of the recipe. Every setting, its default and its meaning: docs/recipes.md

examples:
  fast-train --arch resnet18 --amp                  train on data/cifar10
  fast-train --recipe record-94                     94 % on CIFAR-10 in the shortest time
  fast-train --recipe paper --arch resnet56         the setting of He et al. 2015
  fast-train --arch resnet18 --amp --resume auto    go on with the last such run, or start it
  fast-train --evaluate runs/cifar10-resnet18-fast  evaluate a run's checkpoint

exit status: 0 done, 1 diverged or target accuracy not reached, 2 bad input or out of memory,
  129/130/143 stopped by a signal"""


@dataclass(frozen=True, kw_only=True)
class Actions:
    """The flags that are no settings."""

    recipe: str | None = None
    """A recipe's name, or a TOML file (default: fine-tune with --weights; else fast on an NVIDIA GPU or with --arch;
    else cpu-quick, or cpu-short on up to three cores without AVX-512. For images that keep their shapes: photos, else
    photos-cpu)."""
    set: tuple[str, ...] = ()
    """Any other setting, such as optimizer.momentum=0.8."""
    out: str | None = None
    """The run's folder (default: runs/<set>-<arch>-<recipe>)."""
    resume: str | None = None
    """Go on with a run: auto takes the last one of the same name, with this command's settings; PATH is a run's folder
    or a checkpoint, which keeps its own settings."""
    stop_after: int | None = None
    """Save and stop after epoch N; --resume goes on."""
    save_as: str | None = None
    """Keep the checkpoint that the command ends with as checkpoints/NAME.pt."""
    evaluate: str | None = None
    """Evaluate a checkpoint (or a run's folder), do not train."""
    show_batch: bool = False
    """Write a picture of augmented training images, do not train."""
    brief: bool = False
    """End with one line instead of the table of classes and the pictures."""
    list_loaders: bool = False
    """Which loaders can run here, and what the others lack."""
    verify: bool = False
    """Check the prepared set's SHA-256 sums first."""
    debug: bool = False
    """Show the trace of an error."""


#: Flags that name a setting, by the group that --help shows them in.
_FLAGS = {
    "data": {
        "--data": "data.path",
        "--loader": "data.loader",
        "--batch-size": "data.batch_size",
        "--workers": "data.workers",
        "--resident-memory": "data.resident_memory",
        "--shard-resident": "data.shard_resident",
        "--dali-augment": "data.dali_augment",
        "--image-size": "crop.size",
        "--progressive": "crop.progressive",
    },
    "model": {
        "--arch": "model.arch",
        "--shortcut": "model.shortcut",
        "--activation": "model.activation",
        "--weights": "model.weights",
    },
    "training": {
        "--epochs": "run.epochs",
        "--lr": "optimizer.lr",
        "--grad-clip": "optimizer.grad_clip",
        "--seed": "run.seed",
        "--target-accuracy": "run.target_accuracy",
        "--patience": "run.patience",
        "--tta": "run.tta",
    },
    "checkpoints": {"--save-every": "run.save_every", "--keep": "run.keep", "--keep-best": "run.keep_best"},
    "speed": {
        "--device": "run.device",
        "--amp": "run.amp",
        "--compile": "run.compile",
        "--compile-mode": "run.compile_mode",
        "--fuse": "run.fuse",
        "--channels-last": "run.channels_last",
        "--graph": "run.graph",
        "--sync-batchnorm": "run.sync_batchnorm",
        "--deterministic": "run.deterministic",
        "--threads": "run.threads",
    },
}
_METAVARS = {
    "data.path": "DIR",
    "crop.progressive": "S,S,S",
    "model.arch": "NAME",
    "model.weights": "PATH",
    "run.device": "NAME",
    "run.save_every": "STEPS|TIME",
    "save_as": "NAME",
    "recipe": "NAME",
    "set": "SECTION.X=Y",
    "out": "DIR",
    "resume": "auto|PATH",
    "evaluate": "CKPT",
}
# Built-in recipes leave these alone, so that their defaults are everyone's.
_SHOWN_DEFAULTS = ("data.path", "data.loader", "run.seed", "run.device")
# What a flag without a value stands for.
_WITHOUT_VALUE = {"run.amp": "auto", "run.tta": "flip"}
_OF_TYPES: dict[type, dict[str, Any]] = {int: {"type": int, "metavar": "N"}, float: {"type": float, "metavar": "X"}}


def _sizes(text: str) -> tuple[int, ...]:
    return () if is_none(text) else tuple(int(part) for part in text.split(","))


# argparse names it in its error.
_sizes.__name__ = "sizes"


def build_parser() -> Parser:
    """The flags. None has a default here: a setting that is not given is left to the recipe."""
    parser = Parser(
        prog=PROGRAM,
        description="Train an image classifier on a prepared set, fast.",
        epilog=_EPILOG,
        argument_default=argparse.SUPPRESS,
    )
    known = settings()
    for title, flags in _FLAGS.items():
        group = parser.add_argument_group(title)
        for flag, place in flags.items():
            setting = known[place]
            options: dict[str, Any] = {"action": argparse.BooleanOptionalAction} if setting.plain is bool else {}
            _add(group, flag, setting, place, {"type": _sizes} if setting.plain is tuple else options)
    group = parser.add_argument_group("run")
    for action in describe("", Actions):
        flag = f"--{action.name.replace('_', '-')}"
        how = "store_true" if action.plain is bool else "append" if action.plain is tuple else "store"
        _add(group, flag, action, action.name, {"action": how})
    return parser


def _add(group: argparse._ArgumentGroup, flag: str, setting: Setting, dest: str, options: dict[str, Any]) -> None:
    options = {**_OF_TYPES.get(setting.plain, {}), **options}
    if "type" in options and setting.kind != setting.plain:
        options["type"] = _or_none(options["type"])
    if setting.choices:
        options["metavar"] = "|".join(setting.choices)
    if dest in _METAVARS:
        options["metavar"] = _METAVARS[dest]
    text = setting.text
    if dest in _SHOWN_DEFAULTS:
        text = f"{text.removesuffix('.')} (default: {setting.default})."
    if dest in _WITHOUT_VALUE:
        options |= {"nargs": "?", "const": _WITHOUT_VALUE[dest]}
        text += f" Without a value: {_WITHOUT_VALUE[dest]}."
    group.add_argument(
        flag, dest=dest, help=text.replace("`", "").replace("none for", "default:").replace("%", "%%"), **options
    )


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """``kind``, for a flag that can also leave open what a recipe sets."""

    def parse(text: str) -> Any:
        return None if is_none(text) else kind(text)

    # argparse names it in its error.
    parse.__name__ = kind.__name__
    return parse


def parse_flags(arguments: list[str] | None = None) -> tuple[Given, Actions]:
    """The settings that were given, nested by section, and the other flags."""
    nested: dict[str, dict[str, Any]] = {}
    actions: dict[str, Any] = {}
    parser = build_parser()
    for name, value in vars(parser.parse_args(arguments)).items():
        section, dot, key = name.partition(".")
        if isinstance(value, str) and value.startswith("~"):
            try:
                value = str(user_path(value))
            except ValueError as error:
                parser.error(str(error))
        if dot:
            nested.setdefault(section, {})[key] = value
        else:
            actions[name] = tuple(value) if isinstance(value, list) else value
    return nested, Actions(**actions)


def as_typed(text: str, given: Given) -> str:
    """A line about settings that names those of ``given``, which are of flags, as they were typed: crop.size as
    --image-size."""
    for flag, place in chain.from_iterable(flags.items() for flags in _FLAGS.values()):
        section, _, name = place.partition(".")
        if name in given.get(section, {}):
            text = re.sub(rf"(?<![\w.]){re.escape(place)}(?!\w| ?=)", flag, text)
    return text


def check_flags(given: Given, actions: Actions) -> Given:
    """All settings that are given, those of ``--set`` too; ConfigError for flags that do not go together, and for
    settings that would be overruled without a word."""
    given = merge(given, parse_sets(actions.set))
    if actions.stop_after is not None and actions.stop_after < 1:
        raise ConfigError(f"--stop-after {actions.stop_after} is no epoch; give 1 or more")
    for name in ("out", "resume", "evaluate", "recipe"):
        if getattr(actions, name) == "":
            raise ConfigError(f"--{name} is empty; give it a value, or leave it out")
    without: tuple[str, ...] = ()
    if actions.evaluate is not None:
        action, without = "--evaluate", ("recipe", "resume", "stop_after", "save_as", "show_batch")
        if actions.brief:
            action, without = "--evaluate --brief", (*without, "out")
    elif actions.show_batch:
        action, without = "--show-batch", ("stop_after", "resume", "save_as", "brief")
    elif actions.resume not in (None, "auto"):
        action, without = f"--resume {actions.resume}", ("recipe",)
    for name in without:
        if getattr(actions, name) not in (None, False):
            raise ConfigError(f"{action} does not go with --{name.replace('_', '-')}; leave one of them out")
    if actions.save_as is not None:
        of_name(Path(), actions.save_as)
    if "recipe" in given:
        raise ConfigError("--set changes no recipe; choose one by --recipe")
    check_overruled(given)
    return given


def check_paths(actions: Actions) -> None:
    """ConfigError for a checkpoint that is not there, and for a folder that can't be written or holds another run."""
    for given in (actions.resume, actions.evaluate):
        if given not in (None, "auto"):
            check_given(Path(given))
    if actions.list_loaders:
        return
    if actions.out is not None and actions.resume is None and actions.evaluate is None and not actions.show_batch:
        check_new(Path(actions.out))
    if actions.out is not None:
        check_writable(Path(actions.out))


def parse_sets(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings that ``--set SECTION.NAME=VALUE`` gives, nested by section; ConfigError for what is none."""
    nested: dict[str, dict[str, Any]] = {}
    for text in assignments:
        place, equals, value = text.partition("=")
        section, dot, name = place.strip().partition(".")
        if not (equals and dot and section and name):
            raise ConfigError(f"--set {text} is no assignment; write it as SECTION.NAME=VALUE")
        nested.setdefault(section, {})[name] = parse_value(value)
    return nested
