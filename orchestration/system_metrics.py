"""What the processes of a run take from their machine: processor, memory, and memory of their GPU."""

from __future__ import annotations

import contextlib
import sys
import time

import psutil

EVERY_S = 10.0
"""Shortest time between two samples [s]."""


class SystemMeter:
    """Measures this process and its children, such as those that load images; nothing else on the machine."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._process = psutil.Process()
        self._cpu_s = self._cpu_time()
        self._at = time.monotonic()
        self._first = True

    def sample(self) -> dict[str, float]:
        """Numbers since the last sample, or nothing if that was a moment ago.

        Returns:
            `system/cpu_percent`, where 100 is one core; `system/memory_mb`, resident [MiB], shared pages counted in
            every process; and `system/gpu_memory_mb`, the most that torch has held [MiB], where it uses a GPU.
        """
        passed = time.monotonic() - self._at
        if passed < self._every_s and not (self._first and passed > 0):
            return {}
        cpu_s = self._cpu_time()
        found = {"system/cpu_percent": max(100 * (cpu_s - self._cpu_s) / passed, 0.0)}
        self._cpu_s, self._at, self._first = cpu_s, time.monotonic(), False
        memory = 0
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                memory += process.memory_info().rss
        found["system/memory_mb"] = memory / 2**20
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            found["system/gpu_memory_mb"] = torch.cuda.max_memory_reserved() / 2**20
        return found

    def _processes(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    def _cpu_time(self) -> float:
        """Seconds of all living processes; those that have ended count with this one."""
        total = 0.0
        own = self._process.cpu_times()
        total += own.children_user + own.children_system
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total
