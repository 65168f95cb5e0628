"""`boxseg runs` and `boxseg report`: what is kept under a storage folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from boxseg.errors import BoxSegError, CheckpointError
from orchestration.cli.options import AsJson, Storage, optional
from orchestration.cli.output import (
    print_json,
    print_line,
    print_pairs,
    print_rich,
    print_table,
    say,
)
from orchestration.store.places import address_of, named, shown
from orchestration.words import show_duration

if TYPE_CHECKING:
    from orchestration.record.run_folder import RunStatus

app = typer.Typer(help="Look at runs and sweeps.", no_args_is_help=True, rich_markup_mode=None)

SHOWN_METRICS = {"AP": "val/mask_ap", "AP75": "val/mask_ap75", "box AP": "val/box_ap"}
"""Heading -> metric; of a run's best evaluation."""
SHOWN_FAULTS = 5
"""Runs that a warning about many names."""


@app.command("ls")
def list_all(
    storage: Storage = Path("runs"),
    name: str | None = typer.Option(None, help="Only runs of this experiment."),
    as_json: AsJson = False,
) -> None:
    """List runs, trials and sweeps, newest first."""
    from orchestration.record.find_runs import list_runs

    statuses = [status for status in list_runs(storage) if name in (None, status.name)]
    _warn_of_obvious_damage(statuses)
    if as_json:
        print_json(statuses)
        return
    if not statuses:
        say(f"no runs under {shown(storage)}; `boxseg train EXP.yaml` makes one")
        return
    fields = ("id", "name", "kind", "status", "step")
    headings = (*fields, *SHOWN_METRICS, "began", "folder", "why it failed")
    rows = []
    for status in statuses:
        values = [getattr(status, name) for name in fields]
        values += map(status.best_or_latest.get, SHOWN_METRICS.values())
        rows.append((*values, _began(status), named(Path(status.folder)), _why(status)))
    # the least important first
    first_to_go = ("folder", "why it failed", "AP75", "began", "kind", "box AP", "step")
    print_table(headings, rows, first_to_go=first_to_go)


@app.command()
def show(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="Run id, its folder or name (its newest), or best:SWEEP."
        ),
    ],
    storage: Storage = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Show one run or sweep: its state, metrics and, for a sweep, its trials."""
    from orchestration.record.find_runs import find_run, list_in

    folder = find_run(storage, run)
    status = folder.status()
    trials = list_in(folder.path) if status.kind == "sweep" else []

    from orchestration.config.spec import load_sweep
    from orchestration.record.table import read_table, render_table

    table, fault = None, None
    if trials:
        try:
            table = read_table(folder.path, load_sweep(folder.config_path))
        except BoxSegError as error:  # of settings that cannot be read
            fault = error
    if table is not None:
        # If a sweep was killed, its trials know more than its own record.
        status = replace(status, step=sum(row.is_final for row in table.rows))
        if best := table.best():
            status = replace(status, best_run=best.id, best=best.metrics)
    if status.is_final:
        _warn_of_damage(status, folder.best_checkpoint)
    if as_json:
        print_json(asdict(status) | ({"trials": trials} if status.kind == "sweep" else {}))
        return
    print_pairs(_summary(status))
    if fault is not None:
        raise fault
    if table is not None:
        typer.echo("")
        print_rich(render_table(table))


def _warn_of_damage(status: RunStatus, best: Path) -> None:
    """Warn if the best checkpoint is damaged or gone."""
    from boxseg.engine.checkpoint import require_sound

    if _should_have(status, best):
        try:
            require_sound(best.resolve())
        except CheckpointError as error:
            say(f"warning: the best checkpoint cannot be used: {error}")


def _warn_of_obvious_damage(statuses: list[RunStatus]) -> None:
    """Warn of best checkpoints that are gone or cut, all in one line; weights are not read."""
    from boxseg.engine.checkpoint import find_obvious_damage
    from orchestration.record.run_folder import RunFolder

    bests = [(status, RunFolder(status.folder).best_checkpoint) for status in statuses]
    faulty = [
        status.id
        for status, best in bests
        if status.is_final and _should_have(status, best) and find_obvious_damage(best)
    ]
    if faulty:
        listed = ", ".join(faulty[:SHOWN_FAULTS]) + (" …" if faulty[SHOWN_FAULTS:] else "")
        say(
            f"warning: the best checkpoint of {len(faulty)} of these is gone or damaged: {listed}; "
            "`boxseg runs show RUN` tells how"
        )


def _should_have(status: RunStatus, best: Path) -> bool:
    """Whether a best checkpoint should be there; one that is only in a store is checked when it is used."""
    is_told = status.best_step is not None or best.exists() or best.is_symlink()
    return is_told and address_of(best) is None


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN…", help="Two or more run ids, folders, or best:SWEEP."),
    ],
    storage: Storage = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Compare runs: settings that differ, then metrics, with their difference from the first run."""
    from orchestration.record.find_runs import find_run
    from orchestration.report.compare import compare_runs

    if len(runs) < 2:
        # typer can ask for one or more, not for two
        raise typer.BadParameter("name two or more runs", param_hint="RUN…")
    comparison = compare_runs([find_run(storage, run) for run in runs])
    states = comparison.runs
    if as_json:
        names = ("id", "status", "folder")
        plain = [{name: getattr(run, name) for name in names} for run in states]
        print_json(vars(comparison) | {"runs": plain})
        return
    ids = [run.id for run in states]
    differing = comparison.settings | comparison.origin
    if differing:
        print_table(("setting", *ids), [(name, *values) for name, values in differing.items()])
    else:
        typer.echo("all settings are the same")
    typer.echo("")
    rows: list[tuple[Any, ...]] = [("status", *(run.status for run in states))]
    rows.append(("step", *(run.step for run in states)))
    rows += [(name, *_with_difference(values)) for name, values in comparison.metrics.items()]
    print_table(("metric", *ids), rows)


@app.command()
def track(storage: Storage = Path("runs")) -> None:
    """Make MLflow's records anew from the folders, for runs that were deleted there, never arrived, or were moved."""
    from orchestration.tracking.repair import repair

    for change in repair(storage):
        print_line(change)


def report(
    sweep: Annotated[
        str, typer.Argument(metavar="SWEEP", help="Sweep id, its folder or its name (the newest).")
    ],
    output: Path | None = optional("DIR", "Where to write; default: report/ in its folder."),
    storage: Storage = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Write a page about a sweep, finished or not: ranking, importance, curves, masks, cost, failures."""
    from orchestration.record.find_runs import find_run
    from orchestration.report.page import write_report

    folder = find_run(storage, sweep)
    page = write_report(folder.path, output)
    if as_json:
        print_json({"id": folder.path.name, "report": page})
    else:
        print_line(page)


def _with_difference(values: list[float | None]) -> Iterator[str | None]:
    """As in `0.31` of the first run and `0.35 (+0.04)` of another."""
    first = values[0]
    for place, value in enumerate(values):
        text = None if value is None else f"{value:.4g}"
        if place and value is not None and first is not None:
            text = f"{text} ({value - first:+.4g})"
        yield text


def _why(status: RunStatus) -> str | None:
    """Why it failed, in one line; None if it did not."""
    failure = status.failure if status.status == "failed" else None
    return None if failure is None else failure.summary


def _began(status: RunStatus) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(status.created))


def _summary(status: RunStatus) -> list[tuple[str, Any]]:
    page = Path(status.folder) / "report" / "index.html"
    done = "trials" if status.kind == "sweep" else "step"
    pairs = {
        done: f"{status.step} of {status.steps}" if status.steps else status.step,
        "time": show_duration(status.took_s) if status.started else None,
        "folder": named(Path(status.folder)),
        "failure": f"{status.failure.kind}: {status.failure.text}" if status.failure else None,
        "report": page if page.exists() else None,
        "start": status.start or None,
        "workers": ", then ".join(map(str, status.workers)) if status.workers[1:] else None,
        "best trial": status.best_run,
        "best at step": status.best_step if status.best else None,
    }
    about = [(name, getattr(status, name)) for name in ("id", "name", "kind", "status")]
    present = [(name, value) for name, value in pairs.items() if value is not None]
    return about + present + sorted(status.best_or_latest.items()) + sorted(status.tags.items())
