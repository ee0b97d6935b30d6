"""What of this machine is this process's own: cores and memory, within what a container or batch job allows.

The kernel's accounts are read as its documentation describes them (admin-guide/cgroup-v2, cgroup-v1/memory);
SLURM's limits from sbatch's output environment variables, for sites that do not enforce them by cgroups.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

MIB = 2**20


def cores() -> int:
    """How many cores this process may keep busy: by its affinity and its groups' quotas, 1 at least."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min((usable, *(math.ceil(quota) for quota in _quotas()))))


def total_memory() -> int:
    """Bytes of memory that this process and its children may have at most."""
    limits = (limit for limit, _ in _accounts())
    return min((psutil.virtual_memory().total, *limits, *_promised()))


def free_memory() -> int:
    """Bytes of memory that this process and its children could take now; cached files are not taken."""
    left = (max(0, limit - taken) for limit, taken in _accounts())
    return min((psutil.virtual_memory().available, *left, *_promised()))


def _accounts() -> Iterator[tuple[int, int]]:
    """Of every memory group above this process that has a limit: the limit, and what is taken, in bytes."""
    for folder in _groups("memory"):
        unified = (folder / "memory.max").exists()
        limit = _number(folder / ("memory.max" if unified else "memory.limit_in_bytes"))
        taken = _number(folder / ("memory.current" if unified else "memory.usage_in_bytes"))
        if limit is not None and taken is not None:
            yield limit, taken - _cached(folder / "memory.stat", "" if unified else "total_")


def _cached(statistics: Path, prefix: str) -> int:
    """Bytes of files, which the kernel gives up before it refuses memory."""
    entries = (line.partition(" ") for line in _text(statistics).splitlines())
    files = (f"{prefix}active_file", f"{prefix}inactive_file")
    return sum(int(value) for name, _, value in entries if name in files)


def _quotas() -> Iterator[float]:
    """Of every processor group above this process that has a quota: how many cores it comes to."""
    for folder in _groups("cpu"):
        if unified := _text(folder / "cpu.max").split():
            quota, period = unified
        else:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):  # "max" or -1: there is none
            yield int(quota) / int(period)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's group and of all above it, each of which may set a limit.

    A container often sees its own group as the root, while its path is told as the host knows it: what of the
    path does not exist is passed over.
    """
    for line in _text(_OF_PROCESS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _CGROUPS / controllers if controllers else _CGROUPS
        group = root / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def _promised() -> tuple[int, ...]:
    """Bytes that SLURM promised this job on this node, where it says so; 0 is all of the node."""
    environment = os.environ
    if whole := _megabytes(environment.get("SLURM_MEM_PER_NODE")):
        return (whole,)
    each = _megabytes(environment.get("SLURM_MEM_PER_CPU"))
    count = environment.get("SLURM_CPUS_ON_NODE", "")
    return (each * int(count),) if each and count.isdecimal() else ()


def _megabytes(value: str | None) -> int:
    return int(value) * MIB if value and value.isdecimal() else 0


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdecimal() else None


def _text(file: Path) -> str:
    """What the kernel says there; nothing where it does not."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


_CGROUPS, _OF_PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
