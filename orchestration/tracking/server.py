"""An MLflow server on this machine as a child process that never outlives its block."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from boxseg.files.writing import no_link
from orchestration.errors import ResourceError
from orchestration.proxies import spare_loopback

HOST = "127.0.0.1"
START_S = 300.0
"""How long a server may take to answer [s]; a busy machine needs half a minute."""
STOP_S = 10.0
"""How long it may take to end before it is killed [s]."""
QUIET = {
    # Its job queues are not used here and would be several more processes.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


@contextlib.contextmanager
def mlflow_server(
    store: str, *, port: int, artifacts: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Serve a store on the loopback address while the block runs.

    The server and all it started have ended when the block is left. It answers requests that name the loopback address
    only, so that a foreign page cannot reach it through a name of its own.

    Args:
        store: SQLAlchemy address of runs, such as `sqlite:///runs/mlflow.db`.
        port: TCP port.
        artifacts: Folder for artifacts of experiments that the server makes; created if missing.
        log: File for the server's output.

    Raises:
        ResourceError: the port is in use, or the server does not come up.
    """
    spare_loopback()
    _check_free(port)
    log.parent.mkdir(parents=True, exist_ok=True)
    names = ",".join(f"{name}:{port}" for name in (HOST, "localhost"))
    command = [sys.executable, "-m", "mlflow", "server"]
    # One worker: the default of four, with the queues, takes 3 GB and three times as long to start.
    command += ["--backend-store-uri", store, "--workers", "1"]
    command += ["--host", HOST, "--port", str(port), "--allowed-hosts", names]
    command += ["--artifacts-destination", str(artifacts)]
    with open(log, "ab", opener=no_link) as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **QUIET},
            stdout=output,
            stderr=output,
            start_new_session=True,  # so that all that it starts can be ended with it
        )
    try:
        _wait_until_ready(process, port, log)
        yield process
    finally:
        _stop(process)


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        # The last connections of a server that has ended linger for a while; they do not keep the next one out.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            message = f"port {port} on {HOST} is in use; choose another with --port"
            raise ResourceError(message) from error


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    health = f"http://{HOST}:{port}/health"
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(health, timeout=2):
            return
        time.sleep(0.2)
    state = "ended" if process.poll() is not None else f"does not answer after {START_S:.0f} s"
    raise ResourceError(f"the MLflow server on port {port} {state}; {log} tells why")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server's whole process group: first asked, then killed."""
    # Both in any case: the server may end before the processes that it started do.
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
