"""Run folders: where a run is written, and which one is continued."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fast_train.common.files import is_running, locked, remove_empty
from fast_train.common.text import show
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.config.settings import Config
from fast_train.pipeline.engine.checkpoint import DamagedCheckpoint, load_run_state
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.paths import (
    CHECKPOINT,
    CONFIG,
    KEPT,
    check_new,
    holds_run,
    make_folder,
    run_folder,
)
from fast_train.pipeline.run.record import Resume, Saved


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

    Raises FolderInUse where another does, and ConfigError where the folder can't be made.
    """
    made = make_folder(folder)
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder))
        except BlockingIOError:
            raise FolderInUse(
                f"another fast-train is writing into {show(folder)}; wait for it, or give another --out"
            ) from None
        held.callback(remove_empty, made)
        _clear(folder)
        yield


def _clear(folder: Path) -> None:
    """Remove what processes that were killed left of the files that they were writing (`whole_file`)."""
    for left in (*folder.glob(".*.part"), *folder.glob(f"{KEPT}/.*.part")):
        number = re.fullmatch(r"\..+\.(\d+)\.part", left.name)
        # Of this process's number it is another one's: this one writes nothing yet.
        if number is not None and (int(number[1]) == os.getpid() or not is_running(int(number[1]))):
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
    check_new(out)
    held.enter_context(claimed(out))
    return out


def _check_latest(saved: Saved, folder: Path) -> None:
    """ConfigError where ``folder``, which the checkpoint lies in, is no run's, or where its last checkpoint is further,
    which would be lost."""
    path = saved.path
    if not (folder / CONFIG).exists():
        raise ConfigError(f"{show(folder)} holds {path.name} but no run; give the folder of a new one as --out")
    last = folder / CHECKPOINT
    if last.exists() and not last.samefile(path):
        done, further = saved.state["done_steps"], 0
        # Of a damaged one nothing can be lost.
        with suppress(DamagedCheckpoint):
            further = load_run_state(last)["done_steps"]
        if further > done:
            raise ConfigError(
                f"{show(last)} is at step {further:,}, {show(path)} at {done:,}; give a new folder as --out, so that "
                "the later one is kept"
            )


def claim_folder(base: Path, resume: Resume, out: Path | None, held: ExitStack) -> Path:
    """The folder of a new run, or of the one that ``resume`` means, `claimed` within ``held``.

    base: where a new run lies that has no ``out``.
    """
    folder = None
    if resume == "auto":
        # It may lack a checkpoint: a run that was killed before its first one begins anew in its own folder.
        candidates = [out] if out is not None else [_numbered(base, number) for number in _numbers(base)[-1:]]
        folder = next((candidate for candidate in candidates if holds_run(candidate)), None)
    elif resume is not None:
        own = run_folder(resume.path)
        if out is None or out.resolve() == own.resolve():
            _check_latest(resume, own)
            folder = own
    if folder is None:
        return _new_folder(out, base, held)
    held.enter_context(claimed(folder))
    return folder
