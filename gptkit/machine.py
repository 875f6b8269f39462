"""The memory and the processors that this process may use.

Input: what the system reports of the machine and, on Linux, of the control groups (cgroups, versions 1 and
2) that a container, a batch system or systemd puts a process into: one that exceeds the memory of its group
is killed without a message. Output: bytes, counts, and words for messages. Knows nothing of torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from math import ceil
from pathlib import Path, PurePosixPath

MOUNTED = Path("/sys/fs/cgroup")  # where systemd and container engines mount the control groups
OWN_GROUPS = Path("/proc/self/cgroup")
_STATUS = Path("/proc/self/status")
_UNKNOWN = 2**46  # bytes: more than any machine has, where the system does not report it


def physical_memory() -> int:
    """Bytes of this machine's memory."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _UNKNOWN


def usable_memory() -> int:
    """Bytes that this process may use: the machine's memory, or the limit of its control groups."""
    limits = [
        limit
        for folder in _groups("memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (limit := _number(folder / name)) is not None
    ]
    return min([physical_memory(), *limits])


def memory_here() -> str:
    """For messages: "this machine has 16.8 GB"."""
    usable = usable_memory()
    whose = "this machine has" if usable >= physical_memory() else "this container or job may use"
    return f"{whose} {usable / 1e9:.1f} GB"


def used_memory() -> int:
    """Bytes of memory that this process has filled, without files mapped into it; 0 if unknown."""
    with suppress(OSError, ValueError, IndexError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def usable_processors() -> int:
    """Processors that this process may run on at the same time, at least 1.

    A group's share of time such as 1.5 processors counts as 2, so that none of it is left unused.
    """
    # Python 3.13 has a function for it, which also honours -X cpu_count
    count = getattr(os, "process_cpu_count", os.cpu_count)() or 1
    if hasattr(os, "sched_getaffinity"):
        count = min(count, len(os.sched_getaffinity(0)))
    return max(1, min([count, *_quotas()]))


def _quotas() -> Iterator[int]:
    """The processors that each control group allows in time, rounded up."""
    for folder in _groups("cpu"):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                yield ceil(int(quota) / int(period))
        quota_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota_us and period_us:
            yield ceil(quota_us / period_us)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups with that controller, up to the outermost.

    In a container the path may be that outside of it; then only the outermost folder exists, and is its own.
    """
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:  # version 2, alone or beside version 1
            roots = (MOUNTED, MOUNTED / "unified")
        elif controller in controllers.split(","):
            roots = (MOUNTED / controllers, MOUNTED / controller)
        else:
            continue
        parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
        for root in dict.fromkeys(roots):
            for depth in range(len(parts), -1, -1):
                yield root.joinpath(*parts[:depth])


def _number(path: Path) -> int | None:
    """The number in a file; None for "max", a negative number (no limit) or no such file."""
    with suppress(OSError, ValueError):
        number = int(path.read_text())
        return number if number >= 0 else None
    return None
