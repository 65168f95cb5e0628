"""`boxseg doctor`: what works here."""

from __future__ import annotations

from pathlib import Path

import typer

from orchestration.cli.options import AsJson, Storage
from orchestration.cli.output import print_json, print_table, say
from orchestration.errors import ExitCode


def doctor(storage: Storage = Path("runs"), as_json: AsJson = False) -> None:
    """Check packages, GPU, disk and Ray (which is started once); each fault comes with one way to repair it."""
    from orchestration.planning.doctor import examine

    say("checking packages, GPU and Ray; this takes up to a minute, more on a busy machine")
    findings = list(examine(storage))
    if as_json:
        print_json(findings)
    else:
        rows = [(finding.what, finding.state, finding.found, finding.fix) for finding in findings]
        print_table(("", "", "found", "what to do"), rows)
    if any(finding.state == "fault" for finding in findings):
        raise typer.Exit(ExitCode.FAILED)
