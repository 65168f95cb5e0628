"""`boxseg report`: the page that says what a sweep found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestration.cli.output import AsJson, Storage, print_json


def report(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="Sweep id or its folder.")],
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Where to write; default: report/ in its folder.")
    ] = None,
    storage: Storage = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Write a page about a sweep, finished or not: ranking, importance, curves, masks, cost, failures."""
    from orchestration.report import write_report
    from orchestration.run_folder import find_run

    folder = find_run(storage, sweep)
    page = write_report(folder.path, output)
    if as_json:
        print_json({"id": folder.path.name, "report": page})
    else:
        typer.echo(page)
