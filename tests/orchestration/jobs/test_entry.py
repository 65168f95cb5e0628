"""What a job keeps of itself under the storage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from orchestration.jobs.entry import main


def test_output_and_exit_code_are_kept_and_passed_on(tmp_path: Path, capfdbinary):
    assert main(tmp_path / "job", ["runs", "ls", "--storage", str(tmp_path / "none")]) == 0
    about = json.loads((tmp_path / "job" / "job.json").read_text())
    assert (about["status"], about["exit_code"]) == ("finished", 0)
    assert about["command"].startswith("boxseg runs ls")
    log = (tmp_path / "job" / "log.txt").read_bytes()
    assert b"no runs under" in log
    assert main(tmp_path / "other", ["train", "nothing.yaml"]) == 2
    assert json.loads((tmp_path / "other" / "job.json").read_text())["status"] == "failed"


def test_a_request_to_stop_leaves_the_end_to_the_command(tmp_path: Path):
    """Ray signals the whole tree at once: the entry waits, and reports how the command ended."""
    program = (
        "import sys, orchestration.jobs.entry as entry\n"
        "sys.executable = sys.argv[1]\n"
        "from pathlib import Path\n"
        "sys.exit(entry.main(Path(sys.argv[2]), []))\n"
    )
    fake = tmp_path / "fake"
    fake.write_text(
        "#!/bin/sh\ntrap 'echo saved; exit 75' TERM\necho up\nwhile true; do sleep 0.1; done\n"
    )
    fake.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(fake), str(tmp_path / "job")],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=30) == 75
    about = json.loads((tmp_path / "job" / "job.json").read_text())
    assert (about["status"], about["exit_code"]) == ("interrupted", 75)
    log = (tmp_path / "job" / "log.txt").read_text()
    assert (log[:3], log[-6:]) == ("up\n", "saved\n")
