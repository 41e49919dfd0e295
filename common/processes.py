"""What torchrun tells a process by its environment: whether it is one of several that do one work, and which one."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_PLACE = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """rank: this process's number among ``size``; local_rank: among the ``local_size`` of this machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int


def world() -> World | None:
    """This process's place among those that were started together; None where it was started alone.

    Raises ValueError, in one line, where the environment says a part of that, or what can't be. Not of those that Slurm
    or MPI started without torchrun's variables: each of them may have flags of its own.
    """
    given = {name: os.environ.get(name, "").strip() for name in (*_NUMBERS, *_PLACE)}
    if not (given["RANK"] or given["WORLD_SIZE"]):
        return None
    missing = [name for name, value in given.items() if not value]
    if missing and given["WORLD_SIZE"] == "1":
        # Some platforms say of a single process that it is alone.
        return None
    if missing:
        there = " and ".join(name for name in ("RANK", "WORLD_SIZE") if given[name])
        raise ValueError(
            f"the environment has {there}, as for one of several processes, and lacks {', '.join(missing)}; start them "
            "by torchrun, or unset what is there"
        )
    odd = [f"{name}={given[name]}" for name in _NUMBERS if not (given[name].isdecimal() and len(given[name]) < 8)]
    if not odd:
        place = World(*(int(given[name]) for name in _NUMBERS))
        if place.rank < place.size and place.local_rank < place.local_size <= place.size:
            return place
        odd = [f"{name}={given[name]}" for name in _NUMBERS]
    raise ValueError(f"the environment has {', '.join(odd)}, which names no process; start them by torchrun")


def leave_for_torchrun(line: str) -> None:
    """Write why this process fails to where torchrun looks for it, if torchrun started it; it shows that at its own
    end. The form is that of torch.distributed.elastic's ErrorHandler."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        reason = {"message": {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}}
        with suppress(OSError):
            Path(path).write_text(json.dumps(reason), encoding="utf-8")


def local_ranks() -> int:
    """How many processes share this machine's cores; 1 where this one was started alone."""
    try:
        place = world()
    except ValueError:
        return 1
    return place.local_size if place else 1
