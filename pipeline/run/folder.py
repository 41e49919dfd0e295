"""Run folders: where a run is written, and which one is continued."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fast_train.common.files import is_running, locked
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.config.settings import Config
from fast_train.pipeline.engine.checkpoint import CHECKPOINT, CheckpointError, load_run_state
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.run.record import CONFIG, Resume, Saved


def default_folder(config: Config, prepared: PreparedSet) -> Path:
    """``runs/<set>-<architecture>-<recipe>``; `claim_folder` adds a number where it is taken."""
    recipe = Path(config.recipe).stem
    return Path("runs") / f"{prepared.root.resolve().name}-{config.model.arch}-{recipe}"


def _numbers(base: Path) -> list[int]:
    """Which of ``base``, ``base-2``, ``base-3`` ... hold a run, in rising order."""
    pattern = re.compile(re.escape(base.name) + r"(?:-([2-9]|[1-9]\d+))?")
    found = (pattern.fullmatch(path.parent.name) for path in base.parent.glob(f"*/{CONFIG}"))
    return sorted(int(match[1] or 1) for match in found if match)


def _numbered(base: Path, number: int) -> Path:
    return base if number == 1 else base.with_name(f"{base.name}-{number}")


class FolderInUse(ConfigError):
    """Another process writes into the run's folder."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run's folder, which is made if need be: no other process writes into it meanwhile.

    Raises FolderInUse where another does, and ConfigError where a file has that name.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a folder as --out")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder))
        except BlockingIOError:
            raise FolderInUse(
                f"another fast-train is writing into {folder}; wait for it, or give another --out"
            ) from None
        try:
            _clear(folder)
            yield
        finally:
            with suppress(OSError):
                # Up to the first that something was written into.
                for path in made:
                    path.rmdir()


def _clear(folder: Path) -> None:
    """Remove what processes that were killed left of the files that they were writing (`whole_file`)."""
    for left in folder.glob(".*.part"):
        number = re.fullmatch(r"\..+\.(\d+)\.part", left.name)
        if number is not None and not is_running(int(number[1])):
            left.unlink(missing_ok=True)


def _new_folder(out: Path | None, base: Path, held: ExitStack) -> Path:
    """The folder of a new run, `claimed` within ``held``: ``out``, or a free one beside ``base``. ConfigError if
    ``out`` is in use."""
    number = max(_numbers(base), default=0)
    while out is None:
        number += 1
        with suppress(FolderInUse):
            held.enter_context(claimed(_numbered(base, number)))
            return _numbered(base, number)
    if (out / CONFIG).exists():
        raise ConfigError(f"{out} holds a run already; add --resume auto to go on with it, or give another --out")
    held.enter_context(claimed(out))
    return out


def _folder_of(saved: Saved) -> Path:
    """The folder of the run that the checkpoint belongs to. ConfigError where that is no run's, or where its last
    checkpoint is further, which would be lost."""
    path, folder = saved.path, saved.path.parent
    if not (folder / CONFIG).exists():
        raise ConfigError(f"{folder} holds {path.name} but no run; give the folder of a new one as --out")
    last = folder / CHECKPOINT
    if last.exists() and not last.samefile(path):
        done, further = saved.state["done_steps"], 0
        # Of a damaged one nothing can be lost.
        with suppress(CheckpointError):
            further = load_run_state(last)["done_steps"]
        if further > done:
            raise ConfigError(
                f"{last} is at step {further:,}, {path} at {done:,}; give a new folder as --out, so that the later one "
                "is kept"
            )
    return folder


def claim_folder(base: Path, resume: Resume, out: Path | None, held: ExitStack) -> Path:
    """The folder of a new run, or of the one that ``resume`` means, `claimed` within ``held``.

    base: where a new run lies that has no ``out``.
    """
    folder = None
    if resume == "auto":
        # It may lack a checkpoint: a run that was killed before its first one begins anew in its own folder.
        candidates = [out] if out is not None else [_numbered(base, number) for number in _numbers(base)[-1:]]
        folder = next((candidate for candidate in candidates if (candidate / CONFIG).exists()), None)
    elif resume is not None and out is None:
        folder = _folder_of(resume)
    if folder is None:
        return _new_folder(out, base, held)
    held.enter_context(claimed(folder))
    return folder
