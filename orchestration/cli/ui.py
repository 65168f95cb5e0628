"""`boxseg ui`: MLflow's web pages over the runs, for this machine only."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from boxseg.errors import ConfigError
from orchestration.cli.output import Storage, say
from orchestration.errors import ResourceError

HOST = "127.0.0.1"


def ui(
    storage: Storage = Path("runs"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on the loopback address.")] = 5000,
) -> None:
    """Serve MLflow over the runs of a storage folder on the loopback address, until interrupted."""
    database = storage.absolute() / "mlflow.db"
    if not database.exists():
        raise ConfigError(f"{database}: no tracking store here; `boxseg train EXP.yaml` makes one, or name --storage")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ResourceError(f"port {port} on {HOST} is in use; choose another with --port") from error
    typer.echo(f"http://{HOST}:{port}")
    say("starting MLflow, this takes some seconds; Ctrl-C ends it")
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    sys.stdout.flush()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}"]
    command += ["--host", HOST, "--port", str(port), "--workers", "1"]
    os.execve(sys.executable, command, {**os.environ, **quiet})
