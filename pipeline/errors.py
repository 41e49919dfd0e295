"""The errors of this room, and the one of a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from fast_train.common.text import show


class ConfigError(ValueError):
    """A setting that cannot work: what is wrong, where, what to do."""


class CompileError(ConfigError):
    """torch.compile can't compile the step on this machine."""


class LoadingError(ValueError):
    """A loader gives no more batches: what it reads by failed, such as a process that was killed."""


class RankLost(RuntimeError):
    """Another rank has ended, or this one's error is another's too, so that a run on several ranks can't go on.

    told: another rank has told the reason, so that this one is silent. status: to exit with.
    """

    def __init__(self, reason: str, *, told: bool = False, status: int = 1) -> None:
        super().__init__(reason)
        self.told, self.status = told, status


class TrainingDiverged(RuntimeError):
    """The loss, of training or of test images, or a weight is no finite number any more."""


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raise ConfigError with the nearest names, whatever their case, hyphens and underscores, if it is not known."""
    names = list(known)
    if name in names:
        return
    squeezed = {_squeeze(k): k for k in names}
    # A caller in Python may give anything.
    name = str(name)
    wanted = _squeeze(name)
    near = [wanted] if wanted in squeezed else difflib.get_close_matches(wanted, squeezed, n=3)
    if near:
        hint = f"did you mean {' or '.join(repr(squeezed[n]) for n in near)}?"
    else:
        hint = f"choose from {', '.join(names)}"
    raise ConfigError(f"unknown {what} '{show(name)}'; {hint}")


def _squeeze(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
