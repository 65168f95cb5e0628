"""What this machine has for a run: CPU cores that this process may use, GPUs, memory."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestration.words import show_bytes

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
"""Says in which group of CGROUPS this process is."""
MOST_CORES = 16
"""Most torch threads: more were never tried on batches of this size."""
GPU_SPEED = 12.0
"""A GPU counts as this many such cores: an assumption, never measured."""


@dataclass(frozen=True)
class Machine:
    """What a run may use."""

    cores: int
    gpus: int
    memory_bytes: int
    has_bf16: bool = False
    """Whether the processor has bf16 arithmetic."""

    @classmethod
    def here(cls, *, device: str = "auto") -> Machine:
        """This machine; without its GPUs if `device` is cpu."""
        gpus = 0 if device == "cpu" else count_gpus()
        # memory of the machine; the limit of a container is not taken into account
        return cls(count_cpus(), gpus, psutil.virtual_memory().total, _has_bf16())

    @property
    def threads(self) -> int:
        """Torch threads of a run."""
        return max(1, min(self.cores, MOST_CORES))

    @property
    def speed(self) -> float:
        """How many single cores a run here is worth; each further thread gives less."""
        # the same power as in `estimate_step`
        return GPU_SPEED if self.gpus else self.threads**0.8

    def __str__(self) -> str:
        cores = f"{self.cores} CPU core{'s' if self.cores > 1 else ''}"
        gpu = "a GPU" if self.gpus else "no GPU"
        return f"{cores}, {gpu}, {show_bytes(self.memory_bytes)} of memory"


def count_cpus() -> int:
    """Cores that the kernel gives to this process, or the quota of its container, if that is less.

    With a quota all cores are visible, but a process with a thread for each of them would be stopped most of the time.
    """
    quota = read_quota()
    cores = len(os.sched_getaffinity(0))
    # half a core still runs one thread
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def read_quota() -> float | None:
    """Number of cores that the control groups of this process allow; None if they set no limit.

    Source: the kernel's documentation of `cpu.max`, of version 2 of control groups.
    """
    limits = [_read_limit(folder) for folder in _own_groups()]
    return min((limit for limit in limits if limit is not None), default=None)


def _own_groups() -> list[Path]:
    """The folders of this process's group and of the groups around it; in a container the root is its own group."""
    try:
        lines = OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return [CGROUPS]
    # as in `0::/docker/…`; lines with other numbers belong to version 1
    paths = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
    groups = [Path(path.lstrip("/")) for path in paths]
    return [CGROUPS / part for group in groups for part in (group, *group.parents)] or [CGROUPS]


def _read_limit(folder: Path) -> float | None:
    """Number of cores that one group allows; None without a limit."""
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        return None if quota == "max" else float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # there is no such group or file here
        return None


def count_gpus() -> int:
    """NVIDIA GPUs that this process may use, counted without torch; 0 if the driver does not answer."""
    # CUDA hides all GPUs for an empty list, or for -1
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        ended = subprocess.run(
            [tool, "-L"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    # as in "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-…)"
    return sum(line.startswith("GPU ") for line in ended.stdout.splitlines())


def _has_bf16() -> bool:
    """Whether Linux lists bf16 arithmetic among what this processor can do."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    # names of x86; other processors count as without bf16
    return re.search(r"\b(avx512_bf16|amx_bf16)\b", flags) is not None
