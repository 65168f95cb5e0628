"""The most memory that a training process has held."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import psutil


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
