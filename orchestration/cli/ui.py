"""`boxseg ui`: MLflow's web pages over the runs, for this machine only."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from orchestration.cli.options import Storage
from orchestration.cli.output import print_pairs, say

if TYPE_CHECKING:
    from orchestration.tracking.tracker import Tracked


def ui(
    storage: Storage = Path("runs"),
    port: int = typer.Option(5000, min=1, max=65535, help="Port on the loopback address."),
) -> None:
    """Serve MLflow over the runs of a storage folder on the loopback address, until interrupted.

    Prints the address of the latest experiment, and one that compares the trials of the latest sweep. If the runs are
    on a remote MLflow server, only the two addresses there are printed.
    """
    from orchestration.errors import ResourceError
    from orchestration.tracking.server import HOST, mlflow_server
    from orchestration.tracking.tracker import catch_up, latest_uri

    uri = latest_uri(storage)
    if uri.startswith(("http://", "https://")):
        _print_pages(uri, catch_up(storage, uri))
        return
    say("starting MLflow, this takes some seconds; Ctrl-C ends it")
    # before the pages are served, so that they show no dead run as running
    tracked = catch_up(storage, uri)
    artifacts = storage.absolute() / "mlartifacts"
    log = storage.absolute() / "logs" / "mlflow-server.log"
    try:
        with mlflow_server(uri, port=port, artifacts=artifacts, log=log) as server:
            _print_pages(f"http://{HOST}:{port}", tracked)
            code = server.wait()
    except KeyboardInterrupt:
        return
    # the server has ended by itself
    raise ResourceError(f"the MLflow server ended with code {code}; {log} tells why")


def _print_pages(server: str, tracked: Tracked) -> None:
    from orchestration.tracking.pages import comparison_url, experiment_url

    pages = [("experiment", experiment_url(server, tracked.experiment_id))]
    if tracked.sweep is not None:
        pages.append(("last sweep", comparison_url(server, *tracked.sweep)))
    print_pairs(pages)
    sys.stdout.flush()  # a reader at the end of a pipe waits for it
