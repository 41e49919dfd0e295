"""How much memory this process could still take."""

from __future__ import annotations

from pathlib import Path


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process could take without swapping: what Linux calls available, and not more than the process's
    container has left. None on other systems. root: where the file system begins that tells of it."""
    try:
        lines = dict(line.split(":", 1) for line in _lines(root / "proc/meminfo"))
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    # What a container sees as the root is its own group (version 2).
    left = _container_memory(root / "sys/fs/cgroup")
    return free if left is None else min(free, left)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="ascii").splitlines()


def _container_memory(group: Path) -> int | None:
    """Bytes up to the limit of a control group; None where it has none."""
    try:
        limit, used = (int((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):
        # No such file, or "max".
        return None
    try:
        # Pages of files that nobody has read again lately: the kernel drops them before it refuses memory.
        reclaimable = int(dict(line.split(" ", 1) for line in _lines(group / "memory.stat"))["inactive_file"])
    except (OSError, KeyError, ValueError):
        reclaimable = 0
    return max(limit - max(used - reclaimable, 0), 0)
