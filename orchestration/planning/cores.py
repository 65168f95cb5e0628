"""CPU cores that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
"""Tells in which group of CGROUPS this process is."""


def count_cpus() -> int:
    """Cores that the kernel gives to this process, or the time of as many that its container may use, if that is less.

    A quota leaves all cores in sight: whoever starts a thread for each of them is stopped most of the time.
    """
    quota = read_quota()
    cores = _visible_cores()
    # half a core of time still runs one thread
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def read_quota() -> float | None:
    """Cores whose time the control groups of this process allow; None where they set no limit.

    Source: the kernel's documentation of `cpu.max`, of version 2 of control groups.
    """
    limits = []
    for folder in _own_groups():
        quota, period = _read_limit(folder)
        if quota is not None and period:
            limits.append(quota / period)
    return min(limits, default=None)


def _visible_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux has it, macOS not
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _own_groups() -> list[Path]:
    """The folder of this process's group, and of those around it; in a container its own one is the root."""
    try:
        lines = OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return [CGROUPS]
    # as in `0::/docker/…`; lines with other numbers are of version 1
    paths = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
    groups = [Path(path.lstrip("/")) for path in paths]
    return [CGROUPS / part for group in groups for part in (group, *group.parents)] or [CGROUPS]


def _read_limit(folder: Path) -> tuple[float | None, float]:
    """Time that a group may use in each period, and the period, both in the kernel's unit; None without a limit."""
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        return (None if quota == "max" else float(quota)), float(period)
    except (OSError, ValueError):  # there is no such group here, or no such file
        return None, 0.0
