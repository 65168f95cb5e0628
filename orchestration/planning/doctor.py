"""Checks what works on this machine: packages, GPU, disk, Ray and who can reach it; each fault has one way out."""

from __future__ import annotations

import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from boxseg.errors import BoxSegError
from orchestration.planning.machine import count_cpus, read_quota
from orchestration.planning.preflight import check_storage, find_address_fault, free_bytes
from orchestration.record.scratch import RAY_LETTERS, find_place
from orchestration.store.places import shown

# the lower limits of pyproject.toml; raise both together
FLOORS = {"torch": "2.10", "torchvision": "0.25", "ray": "2.54", "mlflow": "3.13"}
"""Package -> oldest version that works."""
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
IMPORT_S = 120
"""How long a package may take to load [s]."""
START_S = 240
"""How long Ray may take to start, with all attempts [s]."""


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    what: str
    found: str
    fix: str | None = None
    """How to repair it; None if nothing is wrong."""
    fatal: bool = True
    """False: boxseg works without it."""

    @property
    def state(self) -> str:
        """`ok`, `fault`, or `note` for a fault that boxseg works with."""
        if self.fix is None:
            return "ok"
        return "fault" if self.fatal else "note"


def examine(storage: Path) -> Iterator[Finding]:
    """Check everything, quick things first; Ray is started and ended, and nothing is left behind."""
    yield Finding("python", platform.python_version())  # too old a version is refused by pip
    yield _cores()
    yield _disk(storage)
    yield _temporary_folder()
    yield _proxies()
    yield _ray_address()
    yield _ray_token()
    yield _ray_auth()
    yield _onnx()
    for package, floor in FLOORS.items():
        yield _package(package, floor)
    yield _gpu()
    yield _ray_start()


def _disk(storage: Path) -> Finding:
    free = f"{shown(storage)}: {free_bytes(storage) / 1e9:.1f} GB free"
    try:
        check_storage(storage)
    except BoxSegError as fault:
        return Finding("storage", free, f"{fault}; or with --storage")
    return Finding("storage", free)


def _cores() -> Finding:
    quota = read_quota()
    limit = "" if quota is None else f", by the quota of its container ({quota:g})"
    return Finding("CPU cores", f"{count_cpus()} of {os.cpu_count()} may be used{limit}")


def _temporary_folder() -> Finding:
    """Whether there is a folder for Ray's sockets, whose names must not be long."""
    chosen = tempfile.gettempdir()
    try:
        place = find_place(RAY_LETTERS)
    except BoxSegError as fault:
        return Finding("temporary files", chosen, str(fault))
    if str(place) == chosen:
        return Finding("temporary files", chosen)
    return Finding("temporary files", f"{chosen} is too long for sockets; Ray's are in {place}")


def _proxies() -> Finding:
    named = [name for name in PROXIES if os.environ.get(name) or os.environ.get(name.lower())]
    if not named:
        return Finding("web proxy", "none")
    return Finding("web proxy", f"{', '.join(named)}; this machine itself is asked without it")


def _ray_address() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Finding("RAY_ADDRESS", "not set; runs start a Ray of their own where they need one")
    fault = find_address_fault(address, "RAY_ADDRESS")
    return Finding("RAY_ADDRESS", address, fault)


def _ray_token() -> Finding:
    path = Path.home() / ".ray" / "auth_token"
    if not path.exists():
        return Finding("ray token", "none stored")
    is_open = path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    fix = f"others on this machine can read it: chmod 600 {path}" if is_open else None
    return Finding("ray token", str(path), fix, fatal=False)


def _ray_auth() -> Finding:
    mode = os.environ.get("RAY_AUTH_MODE")
    fix = None
    if mode == "disabled":
        fix = "anyone who reaches Ray's ports can run code: unset RAY_AUTH_MODE"
    return Finding("ray access", mode or "by token", fix, fatal=False)


def _onnx() -> Finding:
    installed = _version("onnxruntime")
    way_out = "export --format onnx needs it: pip install -c constraints.txt -e '.[onnx]'"
    fix = None if installed else way_out
    return Finding("onnxruntime", installed or "not installed", fix, fatal=False)


def _package(package: str, floor: str) -> Finding:
    installed = _version(package)
    if installed is None:
        fix = "make install, or pip install -c constraints.txt -e ."
        return Finding(package, "not installed", fix)
    if _numbers(installed) < _numbers(floor):
        fix = f"pip install -c constraints.txt '{package}>={floor}'"
        return Finding(package, f"{installed}, older than {floor}", fix)
    problem = _run_python(f"import {package}")
    if problem is not None:
        fix = f"it does not load: pip install --force-reinstall {package}"
        return Finding(package, problem, fix)
    return Finding(package, installed)


def _gpu() -> Finding:
    """Whether torch can use the GPU that the machine has, if any."""
    if shutil.which("nvidia-smi") is None:
        return Finding("gpu", "none; runs use CPU cores")
    problem = _run_python("import torch; torch.ones(1, device='cuda') + 1")
    fix = "install a torch wheel for the driver that nvidia-smi shows (pytorch.org lists them)"
    return Finding("gpu", problem or "works", problem and fix, fatal=False)


def _ray_start() -> Finding:
    """Whether Ray starts, in the same way as for a sweep on this machine."""
    began = time.monotonic()
    program = "from orchestration.connect.session import start_briefly; start_briefly()"
    problem = _run_python(program, START_S)
    if problem is None:
        return Finding("ray starts", f"within {time.monotonic() - began:.0f} s")
    # the last line of a traceback begins with the error's full name
    reason = problem.removeprefix("orchestration.errors.ResourceError: ")
    fix = (
        "run sweeps when less runs on this machine, or on a cluster (resources.address); "
        "`train` with one worker on CPU cores works without Ray"
    )
    return Finding("ray starts", reason, fix)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    numbers = []
    for part in text.split(".")[:2]:
        digits = "".join(filter(str.isdigit, part))  # 0rc1 counts as 01
        numbers.append(int(digits or 0))
    return tuple(numbers)


def _run_python(program: str, limit_s: float = IMPORT_S) -> str | None:
    """The last line on stderr of a Python program; None if it ended well."""
    try:
        # in a process of its own, which a broken package may crash
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        return f"takes longer than {limit_s:.0f} s"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    # the last line of a traceback is the error; a killed process says nothing
    return lines[-1] if lines else "crashed"
