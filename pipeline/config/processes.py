"""Whether this process trains by itself, or was started as one of several that would train one run together."""

from __future__ import annotations

import os

from fast_train.pipeline.errors import ConfigError


def rank() -> int | None:
    """This process's number among those that torchrun started; None where it is the only one.

    Not those that Slurm or MPI started: each of them may have flags of its own.
    """
    count, number = (os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK"))
    return int(number) if count.isdecimal() and number.isdecimal() and int(count) > 1 else None


def check_alone() -> None:
    """ConfigError where several processes would each train the whole run."""
    if rank() is not None:
        raise ConfigError(
            f"{os.environ['WORLD_SIZE']} processes were started, and a run is trained by one, on one GPU; start it "
            "without torchrun, or with --nproc-per-node 1"
        )
