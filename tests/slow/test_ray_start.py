"""A real Ray whose agent starts too late for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SLOW_AGENT = """
import sys, time
if any(word.endswith("dashboard/agent.py") for word in sys.orig_argv):
    time.sleep(25)
"""
PROGRAM = """
import os, sys
from pathlib import Path
from orchestration.connect.ray_start import embedded_ray
with embedded_ray(dashboard=False, logs=Path(sys.argv[1])):
    import ray
    niceness = ray.get(ray.remote(lambda: os.nice(0)).remote())
    assert niceness == os.nice(0), niceness
"""


def test_a_ray_whose_agent_is_late_starts_at_the_second_try_and_its_workers_are_not_nicer_than_we_are(
    tmp_path: Path,
):
    (tmp_path / "sitecustomize.py").write_text(SLOW_AGENT)
    hidden = ("RAY_ADDRESS", "RAY_worker_niceness", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    # Ray's sockets allow no long paths
    environment |= {"PYTHONPATH": f"{tmp_path}:{ROOT}", "TMPDIR": "/tmp"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "logs")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("trying again with more patience") == 1
    assert (
        "Timed out waiting for file"
        in (tmp_path / "logs" / "ray-start-1" / "raylet.err").read_text()
    )
