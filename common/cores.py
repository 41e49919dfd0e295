"""How many cores this process may use, which in containers and batch jobs is fewer than the machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from fast_train.common.processes import local_ranks


def usable_cores(root: Path = Path("/")) -> int:
    """What the affinity, the CPU quotas of the cgroups (version 1 and 2) and OMP_NUM_THREADS, where set, leave; at
    least 1. root: where ``proc`` and the cgroups' file systems are found.

    A quota of one core and a half counts as two: two threads use all of it, one thread only two thirds. The processes
    that torchrun started on a machine share its cores; the OMP_NUM_THREADS=1 that it then sets is nobody's wish.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sharing = local_ranks()
    limits = [min([affinity, *map(math.ceil, _quotas(root))]) // sharing]
    # "4,2" is for nested regions.
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if asked.isdecimal() and not (sharing > 1 and asked == "1" and "TORCHELASTIC_RUN_ID" in os.environ):
        limits.append(int(asked))
    return max(min(limits), 1)


def _quotas(root: Path) -> Iterator[float]:
    """The CPU quota, in cores, of each cgroup around this process that has one."""
    try:
        memberships = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    paths = {}
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            paths["cgroup" if controllers else "cgroup2"] = path
    for line in mounts:
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in paths and (kind == "cgroup2" or "cpu" in options.split(",")):
            mounted, place = before.split(" ")[3:5]
            yield from _quotas_along(root / place.lstrip("/"), mounted, paths[kind])


def _quotas_along(top: Path, mounted: str, path: str) -> Iterator[float]:
    """The quotas of the cgroup ``path`` and of those around it. top: where the cgroup ``mounted`` is mounted.

    A container may see its own cgroup mounted and a path that its host knows: the mount is then all that there is.
    """
    inner = PurePosixPath(path)
    inside = inner.relative_to(mounted) if inner.is_relative_to(mounted) else PurePosixPath()
    for folder in (top / inside, *(top / parent for parent in inside.parents)):
        for read in (_quota_of_version_2, _quota_of_version_1):
            try:
                quota, period = read(folder)
            except (OSError, ValueError):
                # The root has none, "max" is no number, and -1 is for no quota.
                continue
            if quota > 0 and period > 0:
                yield quota / period


def _quota_of_version_2(folder: Path) -> tuple[int, int]:
    """Microseconds of CPU time, and of the time in which they may be used."""
    quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
    return int(quota), int(period)


def _quota_of_version_1(folder: Path) -> tuple[int, int]:
    quota, period = ((folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
    return int(quota), int(period)
