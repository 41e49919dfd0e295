"""The command `fast-train`: parse, build, run, close."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from fast_train.common.command import run_command
from fast_train.common.startup import quick_imports
from fast_train.pipeline.errors import TrainingDiverged

PROGRAM = "fast-train"
_EPILOG = """examples:
  fast-train --arch resnet18 --amp                  train on data/cifar10
  fast-train --recipe record-94                     94 % on CIFAR-10 in the shortest time
  fast-train --recipe paper --arch resnet56         the setting of He et al. 2015
  fast-train --arch resnet18 --amp --resume auto    go on with the last such run, or start it
  fast-train --evaluate runs/cifar10-resnet18-fast  evaluate a run's checkpoint

exit status: 0 done, 1 diverged or target accuracy not reached, 2 bad input or out of memory,
  129/130/143 stopped by a signal"""


# Flags that name a setting: where it stands in the configuration, its help, argparse's options.
_Settings = dict[str, tuple[str, str, dict[str, Any]]]
_SWITCH = {"action": argparse.BooleanOptionalAction}
_INT, _FLOAT, _NAME = {"type": int, "metavar": "N"}, {"type": float, "metavar": "X"}, {"metavar": "NAME"}
_SETTINGS: dict[str, _Settings] = {
    "data": {
        "--data": ("data.path", "prepared set (default: data/cifar10)", {"metavar": "DIR"}),
        "--loader": ("data.loader", "resident (default), ffcv, dali or torch; see --list-loaders", _NAME),
        "--batch-size": ("data.batch_size", "images a step", _INT),
        "--workers": ("data.workers", "loading processes (torch) or threads (ffcv, dali)", _INT),
        "--dali-augment": (
            "data.dali_augment",
            "augment by our kernel (default), or native: inside DALI's graph",
            {"choices": ["kernel", "native"]},
        ),
    },
    "model": {
        "--arch": ("model.arch", "architecture: resnet18, preact-resnet18, plain-20, speednet8 ...", _NAME),
        "--shortcut": (
            "model.shortcut",
            "A zero padding, B projection where shapes differ, C projection everywhere",
            {"choices": ["A", "B", "C"]},
        ),
        "--activation": ("model.activation", "default: relu", {"choices": ["relu", "leaky_relu", "elu"]}),
    },
    "training": {
        "--epochs": ("run.epochs", "length of the run", _INT),
        "--lr": ("optimizer.lr", "peak learning rate; with Muon that of the filters", _FLOAT),
        "--grad-clip": ("optimizer.grad_clip", "largest norm of the gradient", _FLOAT),
        "--seed": ("run.seed", "of weights, order and augmentation (default: 0)", _INT),
        "--target-accuracy": ("run.target_accuracy", "stop when the test accuracy reaches X, a fraction", _FLOAT),
        "--tta": (
            "run.tta",
            "test-time augmentation; without a kind: flip. multicrop: also moved by a pixel",
            {"nargs": "?", "const": "flip", "choices": ["none", "flip", "multicrop"]},
        ),
    },
    "speed": {
        "--device": ("run.device", "cpu, cuda or cuda:N (default: a GPU if there is one)", _NAME),
        "--amp": (
            "run.amp",
            "mixed precision; without a type: auto, which is bf16 where the hardware has it",
            {"nargs": "?", "const": "auto", "choices": ["bf16", "fp16", "auto", "off"]},
        ),
        "--compile": ("run.compile", "torch.compile (default: on a GPU)", _SWITCH),
        "--compile-mode": (
            "run.compile_mode",
            "of torch.compile (default: default); max-autotune times more kernels before the first step",
            {"choices": ["default", "max-autotune-no-cudagraphs"]},
        ),
        "--fuse": (
            "run.fuse",
            "norm: BatchNorm, addition and ReLU in one kernel; conv: BatchNorm's sums in the convolutions too "
            "(default: none)",
            {"choices": ["none", "norm", "conv"]},
        ),
        "--channels-last": ("run.channels_last", "memory format (default: on)", _SWITCH),
        "--graph": ("run.graph", "the whole step as one CUDA graph (default: on a GPU)", _SWITCH),
        "--deterministic": ("run.deterministic", "bit-reproducible algorithms, slower", {"action": "store_true"}),
    },
}
# The other flags, with the defaults that `parse_flags` fills in.
_ACTIONS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "--recipe": (
        None,
        "its name, or a TOML file (default: fast on a GPU or with --arch; else cpu-quick, or cpu-short on up to three "
        "cores without AVX-512)",
        _NAME,
    ),
    "--set": ([], "any other setting, such as optimizer.momentum=0.8", {"action": "append", "metavar": "SECTION.X=Y"}),
    "--out": (None, "the run's folder (default: runs/<set>-<arch>-<recipe>)", {"metavar": "DIR"}),
    "--resume": (
        None,
        "go on: auto with the last such run and this command's settings, PATH with a run or checkpoint and its own",
        {"metavar": "auto|PATH"},
    ),
    "--stop-after": (None, "save and stop after epoch N; --resume goes on", _INT),
    "--evaluate": (None, "evaluate a checkpoint (or a run's folder), do not train", {"metavar": "CKPT"}),
    "--show-batch": (False, "write a picture of augmented training images, do not train", {"action": "store_true"}),
    "--brief": (False, "end with one line instead of the table of classes and the pictures", {"action": "store_true"}),
    "--list-loaders": (False, "which loaders can run here, and what the others lack", {"action": "store_true"}),
    "--verify": (False, "check the prepared set's SHA-256 sums first", {"action": "store_true"}),
    "--debug": (False, "show the trace of an error", {"action": "store_true"}),
}


def build_parser() -> argparse.ArgumentParser:
    """The flags. None has a default here: a setting that is not given is left to the recipe."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Train an image classifier on a prepared set, fast.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    for title, settings in _SETTINGS.items():
        group = parser.add_argument_group(title)
        for flag, (place, text, options) in settings.items():
            group.add_argument(flag, dest=place, help=text, **options)
    group = parser.add_argument_group("run")
    for flag, (_, text, options) in _ACTIONS.items():
        group.add_argument(flag, help=text, **options)
    return parser


def parse_flags(arguments: list[str] | None = None) -> tuple[dict[str, Any], argparse.Namespace]:
    """The settings that were given, nested by section, and the other arguments."""
    namespace = build_parser().parse_args(arguments)
    settings: dict[str, Any] = {}
    defaults = {flag.removeprefix("--").replace("-", "_"): default for flag, (default, _, _) in _ACTIONS.items()}
    others = argparse.Namespace(**defaults)
    for name, value in vars(namespace).items():
        section, dot, key = name.partition(".")
        if dot:
            settings.setdefault(section, {})[key] = value
        else:
            setattr(others, name, value)
    return settings, others


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status. arguments: None for those that the process was started with, which ends
    with the command."""
    settings, others = parse_flags(arguments)
    return run_command(
        PROGRAM,
        lambda: _run(settings, others),
        debug=others.debug,
        ends_process=arguments is None,
        statuses={TrainingDiverged: 1},
        explain=_explain,
    )


def _explain(error: Exception) -> Exception | None:
    # Where it is not imported, torch has raised no error.
    memory = sys.modules.get("fast_train.pipeline.engine.memory")
    return memory.memory_error(error) if memory else None


def _run(settings: dict[str, Any], others: argparse.Namespace) -> int:
    # After parsing: torch takes seconds to import, and --help needs none of it.
    with quick_imports():
        from fast_train.pipeline import commands
    return commands.run(settings, others)


if __name__ == "__main__":
    sys.exit(main())
