"""The SLURM script, with stand-ins for SLURM's commands: Ray starts, a sweep runs, has to end, and continues."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestration.errors import ExitCode

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docker" / "slurm.sbatch"
STAND_INS = {
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo "$3"; else echo "$@" >> "$ASKED"; fi',
    "hostname": "echo 127.0.0.1 10.9.8.7",
}
EXPERIMENT = {
    "name": "slurm",
    "data": {"toy": {"train_images": 4, "val_images": 2, "size": 64}},
    "model": {"backbone": "timm/test_resnet", "weights": "none", "channels": 16, "tower_convs": 1},
    "cond": {"branch_channels": 16, "branch_convs": 1},
    "train": {
        "steps": 120,
        "batch_size": 2,
        "image_size": 64,
        "report_every": 5,
        "eval_every": 120,
        "panels": 0,
    },
    "resources": {"runner": "inline"},
    "sweep": {
        "search": "grid",
        "trial_scheduler": "none",
        "space": {"qam.iou_thr": {"choice": [0.3, 0.5]}},
    },
}


def test_the_linter_finds_nothing_in_scripts():
    linter = Path(sys.executable).parent / "shellcheck"
    if not linter.exists():
        pytest.skip("shellcheck has no wheel for this machine")
    scripts = [SCRIPT, ROOT / "docker" / "secrets.sh", ROOT / ".ci" / "run"]
    done = subprocess.run([linter, *scripts], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An allocation of one node, this machine."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in STAND_INS.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    python = Path(sys.executable).parent
    path = f"{commands}:{python}:{os.environ['PATH']}"
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    job = {"SLURM_JOB_NODELIST": "here", "SLURM_JOB_ID": str(os.getpid()), "ASKED": "asked"}
    return {**own, **job, "PATH": path, "SLURM_CPUS_PER_TASK": "2", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Iterator[object]:
    """Starts the script in a folder of its own; what is left of it ends with the test."""
    (tmp_path / "exp.yaml").write_text(json.dumps(EXPERIMENT))
    started: list[psutil.Process] = []

    def start(**more: str) -> subprocess.Popen[bytes]:
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen(
                ["bash", SCRIPT, "sweep", "exp.yaml", "--set", "storage=runs"],
                cwd=tmp_path,
                env={**environment, **more},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        started.append(psutil.Process(process.pid))
        return process

    yield start
    for process in started:
        if process.is_running():
            for child in [*process.children(recursive=True), process]:
                child.kill()


def furthest_step(storage: Path) -> int:
    texts = [path.read_text() for path in storage.glob("slurm/*/*/status.json")]
    return max((json.loads(text)["step"] for text in texts), default=0)


def wait_for_the_end_of_ray() -> None:
    """Its processes name the port of the job; each ends within seconds."""
    port = str(20000 + os.getpid() % 2000 * 10)
    deadline = time.monotonic() + 60
    while left := list(named_processes(port)):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def named_processes(port: str) -> Iterator[str]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended
            command = " ".join(process.cmdline())
            if f"port={port}" in command or f":{port}" in command:
                yield command


@pytest.mark.skipif(shutil.which("bash") is None, reason="the script is for bash")
def test_a_sweep_that_has_to_end_is_queued_again_and_continues(tmp_path: Path, start):
    first = start()
    deadline = time.monotonic() + 300
    while furthest_step(tmp_path / "runs") < 10 and first.poll() is None:
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)  # to the script alone, as `--signal=B:TERM` says
    assert first.wait(200) == ExitCode.INTERRUPTED, (tmp_path / "log").read_text()
    assert (tmp_path / "asked").read_text() == f"requeue {os.getpid()}\n"
    wait_for_the_end_of_ray()
    assert start(SLURM_RESTART_COUNT="1").wait(400) == 0, (tmp_path / "log").read_text()
    (sweep,) = (tmp_path / "runs" / "slurm").glob("*/table.md")
    assert sweep.read_text().count("finished") == 2
    wait_for_the_end_of_ray()
