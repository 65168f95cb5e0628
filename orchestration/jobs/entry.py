"""What a job runs on the cluster: one boxseg command, whose state and output are kept under the storage as well."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from boxseg.errors import StorageError
from boxseg.files.writing import no_link, write_atomic
from orchestration.errors import ExitCode
from orchestration.store.places import address_of, storage_folder


def main(place: Path | str, arguments: list[str]) -> int:
    """Run `boxseg` with these arguments and give its exit code.

    Args:
        place: A folder, or the address of one in an object store. Gets `job.json` (command, state, exit code, times)
            and `log.txt` (all that the command prints).
        arguments: The command, as in `["sweep", "EXP.yaml"]`.
    """
    # Ray sends it to the command as well, which then saves its state
    signal.signal(signal.SIGTERM, lambda *_: None)
    folder = storage_folder(str(place))
    folder.mkdir(parents=True, exist_ok=True)
    code: int = ExitCode.RESOURCES
    try:
        with _sent(folder):
            code = _run(folder, arguments)
    except StorageError as error:
        # only the job's own files were not sent; the command has reported on its run
        sys.stderr.write(f"boxseg: {error}\n")
    return code


@contextlib.contextmanager
def _sent(folder: Path) -> Iterator[None]:
    """Send what the job writes into its folder, if that is one of a store.

    Raises:
        StorageError: the store does not answer or refuses the connection; or it did not take the end.
    """
    if address_of(folder) is None:
        yield
        return
    from orchestration.store.mirror import in_hand
    from orchestration.store.syncer import Syncer

    with in_hand(folder) as mirror, Syncer(mirror, None):
        yield


def _run(folder: Path, arguments: list[str]) -> int:
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
            bufsize=0,  # read() returns what there is, and does not wait for 64 KiB
        )
        assert process.stdout is not None
        while chunk := process.stdout.read(65536):
            for output in (sys.stdout.buffer, log):
                output.write(chunk)
                output.flush()
        code = process.wait()
    if code < 0:
        code = 128 - code  # killed by a signal: the exit code that a shell gives
    ends: dict[int, str] = {ExitCode.DONE: "finished", ExitCode.INTERRUPTED: "interrupted"}
    status = ends.get(code, "failed")
    note(folder, about | {"status": status, "exit_code": code, "ended": time.time()})
    return code


def note(folder: Path, about: dict[str, Any]) -> None:
    """Write the job's state."""
    write_atomic(folder / "job.json", json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
