"""What a job runs on the cluster: one boxseg command, whose state and output are kept under the storage as well."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from boxseg.files.writing import no_link, write_atomic


def main(folder: Path, arguments: list[str]) -> int:
    """Run `boxseg` with these arguments and give its exit code.

    Args:
        folder: Gets `job.json` (command, state, exit code, times) and `log.txt` (all that the command prints).
        arguments: The command, as in `["sweep", "EXP.yaml"]`.
    """
    # Ray sends it to the command as well, which then saves its state
    signal.signal(signal.SIGTERM, lambda *_: None)
    folder.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {
        "id": folder.name,
        "command": shlex.join(["boxseg", *arguments]),
        "started": time.time(),
    }
    note(folder, about | {"status": "running"})
    command = [sys.executable, "-u", "-m", "orchestration.cli", *arguments]
    with open(folder / "log.txt", "ab", opener=no_link) as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # one stream, so that its lines keep their order
            bufsize=0,  # read() gives what there is, and does not wait for 64 KiB
        )
        assert process.stdout is not None
        while chunk := process.stdout.read(65536):
            for output in (sys.stdout.buffer, log):
                output.write(chunk)
                output.flush()
        code = process.wait()
    if code < 0:
        code = 128 - code  # killed by a signal: the exit code that a shell gives
    # 75 is `ExitCode.INTERRUPTED`
    status = {0: "finished", 75: "interrupted"}.get(code, "failed")
    note(folder, about | {"status": status, "exit_code": code, "ended": time.time()})
    return code


def note(folder: Path, about: dict[str, Any]) -> None:
    """Write the job's state."""
    write_atomic(folder / "job.json", json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
