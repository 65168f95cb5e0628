"""What the machine has: GPU, driver, versions, memory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import torch
import torchvision

from orchestration.record.origin import cpu_name

QUERY = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]


def look_around() -> Iterator[dict[str, str]]:
    """One dict: `gpu`, which is `no GPU` where torch can use none, then what else matters."""
    found = {
        "gpu": "no GPU",
        "cpu": f"{cpu_name()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    if torch.cuda.is_available():
        found |= _of_gpu()
    yield found


def _of_gpu() -> dict[str, str]:
    free, total = torch.cuda.mem_get_info()
    return {
        "gpu": torch.cuda.get_device_name(),
        "memory": f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free",
        "driver": _driver(),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "bf16": "yes" if torch.cuda.is_bf16_supported() else "no",
    }


def _driver() -> str:
    try:
        ended = subprocess.run(QUERY, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__})"
    return ended.stdout.split("\n")[0].strip()
