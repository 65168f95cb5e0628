"""What the processes of a run take from their machine: processor, memory, and memory of their GPU."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import psutil

EVERY_S = 10.0
"""Shortest time between two samples [s]."""


class SystemMeter:
    """Measures this process and its children, such as those that load images; nothing else on the machine."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._cpu_s, _ = _measure()
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
        cpu_s, memory = _measure()
        # below zero where a child has ended whose time this process has not been told yet
        cpu_percent = max(100 * (cpu_s - self._cpu_s) / passed, 0.0)
        sample = {"system/cpu_percent": cpu_percent, "system/memory_mb": memory}
        self._cpu_s, self._at, self._first = cpu_s, time.monotonic(), False
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            sample["system/gpu_memory_mb"] = torch.cuda.max_memory_reserved() / 2**20
        return sample


class PeakMemory:
    """The most memory that this process has held since this object was made, without its children."""

    def __init__(self) -> None:
        # Linux then counts the most anew; a process can train one trial after the other
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()

    def read(self) -> float:
        """Memory of the GPU that torch has held [MiB], where it uses one; else resident memory of the process."""
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            return float(torch.cuda.max_memory_reserved()) / 2**20
        with contextlib.suppress(OSError, ValueError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 2**10  # in KiB
        return float(psutil.Process().memory_info().rss) / 2**20


def _measure() -> tuple[float, float]:
    """CPU time [s] and memory [MiB] of all living processes; the time of those that have ended counts with this one."""
    this_process = psutil.Process()
    ended = this_process.cpu_times()
    cpu_s, memory = ended.children_user + ended.children_system, 0.0
    for process in [this_process, *this_process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            cpu_s += times.user + times.system
            memory += process.memory_info().rss / 2**20
    return cpu_s, memory
