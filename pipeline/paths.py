"""What lies where in a run's folder, and whether a command can use a path that it was given. Needs no torch."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from pathlib import Path

from fast_train.common.files import remove_empty
from fast_train.common.text import is_plain, one_line, show
from fast_train.pipeline.errors import ConfigError, check_name

CONFIG, METRICS, CHECKPOINT, BEST = "config.json", "metrics.jsonl", "last.pt", "best.pt"
#: Where the time of the last command that trained went: seconds by name.
SECONDS = "seconds.json"
#: The folder, in a run's, of the checkpoints that are kept beside the last and the best one.
KEPT = "checkpoints"
#: What `fast-export` makes of a network, and how the name of such a file ends.
EXPORTS = {"onnx": ".onnx", "pt2": ".pt2", "weights": ".safetensors"}
_OF_STEP = re.compile(r"step-(\d+)\.pt")


def of_step(folder: Path, step: int) -> Path:
    """Where a run keeps its checkpoint of a step."""
    return folder / KEPT / f"step-{step:06}.pt"


def kept_steps(folder: Path) -> dict[int, Path]:
    """The checkpoints that a run keeps by their steps, in rising order."""
    found = ((_OF_STEP.fullmatch(path.name), path) for path in (folder / KEPT).glob("step-*.pt"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def of_name(folder: Path, name: str) -> Path:
    """Where a run keeps a checkpoint under a name; ConfigError for one that can't be a file's, or that is a step's."""
    fits = is_plain(name) and "/" not in name and not name.startswith((".", "step-")) and 0 < len(name.encode()) < 200
    if not fits:
        raise ConfigError(
            f"'{show(name)}' can't be a checkpoint's name; give one without slashes, such as --save-as warm"
        )
    return folder / KEPT / f"{name.removesuffix('.pt')}.pt"


def checkpoints(folder: Path) -> list[Path]:
    """All that a run's folder holds, the last one first."""
    there = (path for path in (folder / CHECKPOINT, folder / BEST) if path.exists())
    return [*there, *sorted((folder / KEPT).glob("*.pt"))]


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint lies in."""
    parent = checkpoint.parent
    return parent.parent if parent.name == KEPT and (parent.parent / CONFIG).exists() else parent


def holds_run(folder: Path) -> bool:
    return (folder / CONFIG).exists() or (folder / CHECKPOINT).exists()


def check_given(checkpoint: Path) -> None:
    """ConfigError unless there is a checkpoint, or a folder with one."""
    if checkpoint.is_dir():
        if not checkpoints(checkpoint):
            raise ConfigError(f"{show(checkpoint)} holds no checkpoint; give the folder of a run that saved one")
    elif not checkpoint.is_file():
        raise ConfigError(f"no checkpoint at {show(checkpoint)}; give a run's folder, or a .pt file that it holds")


def of_export(run: Path, to: str, out: Path | None, *, overwrite: bool) -> Path:
    """Where the network of a run's folder or a checkpoint is exported to: ``out``, by default beside the checkpoint.
    ConfigError where there is no checkpoint, ``to`` is none of `EXPORTS` or needs what is not installed, and where the
    file can't be written or is there already."""
    check_name("format", to, EXPORTS)
    check_given(run)
    missing = [name for name in ("onnx", "onnxscript") if to == "onnx" and importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"--to onnx needs {' and '.join(missing)}; pip install 'fast-train[onnx]', or give --to pt2")
    beside = run / f"{run.resolve().name}.pt" if run.is_dir() else run
    path = out or beside.with_name(f"{beside.name.removesuffix('.pt')}{EXPORTS[to]}")
    if path.exists() and not path.is_file():
        # A device would become a file.
        raise ConfigError(f"{show(path)} is no file; give one as --out")
    if path.exists() and not overwrite:
        raise ConfigError(f"{show(path)} is there already; add --overwrite, or give another --out")
    check_writable(path.parent)
    return path


def check_new(folder: Path) -> None:
    """ConfigError where a new run would write over another one."""
    if holds_run(folder):
        raise ConfigError(
            f"{show(folder)} holds a run already; add --resume auto to go on with it, or give another --out"
        )


def check_writable(folder: Path) -> None:
    """ConfigError unless files can be written into a folder, which need not be there and is not there afterwards."""
    made = make_folder(folder)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{show(folder)} can't be written to ({error.strerror}); give another --out") from error
    finally:
        remove_empty(made)


def make_folder(folder: Path) -> list[Path]:
    """Make a folder and those above it; returns the ones that were not there. ConfigError where that can't be."""
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ConfigError(f"{show(folder)} is a file, and no folder; name another place") from error
    except OSError as error:
        raise ConfigError(
            f"the folder {show(folder)} can't be made ({error.strerror or one_line(error)}); name another place"
        ) from error
    return made
