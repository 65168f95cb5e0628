"""`boxseg train` and `boxseg sweep`: load, check, run, print; `--plan` stops before anything starts."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from boxseg.errors import ConfigError
from orchestration.cli import output
from orchestration.cli.options import AsJson, Experiment, Overrides, flag, optional
from orchestration.cli.output import print_json, print_pairs, say, warn
from orchestration.errors import ExitCode, exit_code_for
from orchestration.store.places import shown
from orchestration.terminal import leave_gone_terminal

if TYPE_CHECKING:
    from orchestration.config.spec import RunSpec, SweepSpec
    from orchestration.execute.sweep import SweepResult
    from orchestration.record.resume import Start
    from orchestration.record.run_folder import RunFolder, RunStatus
    from orchestration.record.trial import TrialStatus

AutoResume = Annotated[
    bool,
    typer.Option(
        "--auto-resume",
        help="Go on with the newest one of this name. If there is none, or it ended with other settings or data, begin "
        "a new one; if it ended well with these, run nothing.",
    ),
]
PlanOnly = Annotated[
    bool, typer.Option("--plan", help="Print data, trials, time and disk estimate; start nothing.")
]


def train(
    experiment: Path | None = typer.Argument(None, metavar="EXP.yaml", help="Experiment file."),
    from_run: str | None = optional("RUN", "Repeat this run: its id, folder or best:SWEEP."),
    resume: str | None = optional("RUN", "Go on with this run: its id or folder."),
    auto_resume: AutoResume = False,
    overrides: Overrides = None,
    plan: PlanOnly = False,
    as_json: AsJson = False,
) -> None:
    """Train once; a `sweep` section in the file is ignored."""
    from orchestration.config.spec import load_run
    from orchestration.record.find_runs import find_run
    from orchestration.record.origin import look_at_data
    from orchestration.record.resume import check_resumable, find_newest_run

    # one of the two; a repeat is a new run, with nothing to resume
    if (experiment is None) == (from_run is None) or (from_run and (resume or auto_resume)):
        raise typer.BadParameter(
            "name an experiment file, or a run with --from-run", param_hint="EXP.yaml"
        )
    # ids are looked for in the default folder; runs elsewhere have to be named by their folder
    original = None if from_run is None else find_run(Path("runs"), from_run)
    file = original.config_path if original is not None else experiment
    assert file is not None
    spec = load_run(file, overrides or [])
    if auto_resume and resume is None:
        newest = find_newest_run(spec)
        resume = None if newest is None else newest.path.name
        if newest is not None and newest.stored().status == "finished":
            _say_it_is_done(newest)
            _print_run(newest.stored(), as_json)
            return
        _say_what_is_resumed(spec, resume)
    if plan:
        if resume is not None:
            folder = find_run(spec.storage.absolute(), resume)
            check_resumable(spec, folder, resume, look_at_data(spec))
        _print_plan(spec, as_json)
        return
    _check(spec, goes_on=resume is not None)
    from orchestration.execute.run import train_run

    result = train_run(spec, resume=resume, repeat=original)
    # so that a terminal that was closed meanwhile does not turn a run that ended well into a failed command
    leave_gone_terminal()
    _print_run(result, as_json)
    if original is not None and result.status == "finished":
        say(f"compare: boxseg runs compare {shlex.join([str(original.path), result.folder])}")
    if result.status == "interrupted":
        _end_interrupted("train", file, overrides, "--resume", result.id)


def sweep(
    experiment: Experiment,
    earlier: str | None = typer.Argument(
        None,
        metavar="SWEEP",
        help="The sweep to go on with, by id, folder or name; default: the newest of the file's name.",
        show_default=False,
    ),
    resume: bool = flag(
        "--resume",
        "Go on with a sweep that was interrupted, or for which the file asks for more trials, seeds or values.",
    ),
    auto_resume: AutoResume = False,
    new: bool = flag(
        "--new", "Start another sweep beside one that was interrupted or is running."
    ),
    retry_failed: bool = flag(
        "--retry-failed",
        "Go on with a sweep, ended or not, and retry trials whose cause of failure may be gone.",
    ),
    more: int | None = typer.Option(
        None, min=1, metavar="N", help="Go on with a sweep, ended or not, and try N more settings."
    ),
    max_failures: int | None = typer.Option(
        None, min=1, metavar="N", help="End, with all states saved, once N trials have failed."
    ),
    overrides: Overrides = None,
    plan: PlanOnly = False,
    as_json: AsJson = False,
) -> None:
    """Train many trials over a space of settings, and name the best."""
    from orchestration.config.spec import load_sweep

    spec = load_sweep(experiment, overrides or [])
    wanted: dict[Start, bool] = {
        "new": new,
        "resume": resume,
        "retry_failed": retry_failed,
        "more": more is not None,
    }
    start = _beginning(spec, wanted, earlier, auto_resume=auto_resume)
    if auto_resume:
        if start is None and _show_done_sweep(spec, as_json):
            return
        _say_what_is_resumed(spec, "the newest sweep of this name" if start else None)
    goes_on = start in ("resume", "retry_failed", "more")
    if spec.sweep.start_from and not goes_on:
        from orchestration.planning.known import find_known

        known = find_known(spec)
        for sentence in known.sentences:
            say(sentence)
        if plan:
            spec = spec.trying(known.points)
    if plan:
        from orchestration.planning.plan import as_it_goes_on

        spec, ended = as_it_goes_on(spec, start, earlier, more or 0) if goes_on else (spec, 0)
        _print_plan(spec, as_json, ended)
        return
    _check(spec)
    from orchestration.execute.sweep import run_sweep

    result = run_sweep(
        spec,
        start=start,
        earlier=earlier,
        more=more or 0,
        max_failures=max_failures,
    )
    leave_gone_terminal()
    _show_sweep(spec, result, as_json)
    if start == "retry_failed":
        _say_what_was_not_retried(result)
    if result.status == "interrupted":
        if max_failures:
            say(f"{len(result.table.failed)} of {len(result.table.rows)} trials failed")
        # with its id, if it need not be the newest
        which = [result.id] if earlier else []
        _end_interrupted("sweep", experiment, overrides, "--resume", *which)
    _end_sweep(result)


def _beginning(
    spec: SweepSpec, wanted: dict[Start, bool], earlier: str | None, *, auto_resume: bool
) -> Start | None:
    """What the options ask for about sweeps that exist already.

    Raises:
        ConfigError: they contradict each other, or name a sweep but not what to do with it.
    """
    if sum([*wanted.values(), auto_resume]) > 1:
        raise ConfigError(
            "--new starts another sweep, --resume, --auto-resume, --retry-failed and --more go on with one; give one "
            "of them"
        )
    if earlier is not None and (auto_resume or wanted["new"]):
        option = "--auto-resume" if auto_resume else "--new"
        raise ConfigError(f"{earlier}: {option} takes no sweep; leave the name out")
    if earlier is not None and not any(wanted.values()):
        raise ConfigError(
            f"{earlier}: say what to do with this sweep: --resume, --retry-failed or --more N"
        )
    if auto_resume:
        from orchestration.record.resume import choose_start

        return choose_start(spec)
    return next((start for start, is_wanted in wanted.items() if is_wanted), None)


def _end_sweep(result: SweepResult) -> None:
    """Say what ended the sweep early and how many trials failed; exit with the code for that."""
    from orchestration.record.failures import error_of
    from orchestration.record.run_folder import RunFolder

    trials, failed = len(result.table.rows), len(result.table.failed)
    if result.stopped_by:
        say(
            f"ended after {trials} trials by {result.stopped_by}; --resume goes on for as long again"
        )
    failure = RunFolder(result.folder).status().failure
    # no trial has a value, so the exit code is that of the cause
    if result.best is None and failure is not None:
        raise error_of(failure)
    if failed:
        say(f"{failed} of {trials} trials failed; `boxseg runs show {result.id}` tells why")
        raise typer.Exit(ExitCode.SOME_TRIALS_FAILED)


def _say_what_is_resumed(spec: RunSpec, name: str | None) -> None:
    """Say what --auto-resume has chosen, as it asks nobody."""
    if name is None:
        say(f"no {spec.name} to go on with under {shown(spec.storage)}: starting a new one")
    else:
        say(f"goes on with {name}")


def _say_it_is_done(folder: RunFolder) -> None:
    say(
        f"{folder.path.name} has ended well, with these settings and data: nothing is run; without --auto-resume "
        "another one begins"
    )


def _print_run(result: RunStatus, as_json: bool) -> None:
    if as_json:
        names = ("id", "name", "status", "folder", "metrics", "best")
        print_json({name: getattr(result, name) for name in names} | result.metrics)
        return
    rows: list[tuple[str, Any]] = [("run", result.id), ("status", result.status)]
    rows.append(("folder", shown(Path(result.folder))))
    if result.best:
        rows.append(("best at step", result.best_step))
    metrics = sorted(result.best_or_latest.items())
    print_pairs(rows + [(name, value) for name, value in metrics if name.startswith("val/")])


def _end_interrupted(
    command: str, experiment: Path, overrides: list[str] | None, *resume: str
) -> NoReturn:
    settings = [f"--set={text}" for text in overrides or []]
    again = shlex.join(["boxseg", command, str(experiment), *settings, *resume])
    say(f"interrupted, state saved; go on with: {again}")
    raise typer.Exit(ExitCode.INTERRUPTED)


def _show_done_sweep(spec: SweepSpec, as_json: bool) -> bool:
    """Print the newest sweep again if nothing is left to do; returns whether it did."""
    from orchestration.record.resume import find_done_sweep

    done = find_done_sweep(spec)
    if done is None:
        return False
    from orchestration.execute.sweep import read_result

    _say_it_is_done(done)
    _show_sweep(spec, read_result(done, spec), as_json)
    return True


def _say_what_was_not_retried(result: SweepResult) -> None:
    for row in result.table.failed:
        if row.failure is not None and row.failure.rule.policy == "stop":
            say(f"{row.label} was not run again, as it would fail again: {row.outcome}")


def _show_sweep(spec: SweepSpec, result: SweepResult, as_json: bool) -> None:
    if as_json:
        print_json(_sweep_as_json(spec, result))
    else:
        _print_sweep(spec, result)


def _sweep_as_json(spec: SweepSpec, result: SweepResult) -> dict[str, Any]:
    def trial(row: TrialStatus) -> dict[str, Any]:
        names = ("id", "status", "values", "seed", "value", "step", "folder", "failure")
        about = {name: getattr(row, name) for name in names}
        if spec.sweep.against:
            about["against"] = {name: row.metrics.get(name) for name in spec.sweep.against}
        return about

    best = None
    if result.best is not None:
        best = trial(result.best) | {"checkpoint": result.best_checkpoint}
    return {
        "id": result.id,
        "name": spec.name,
        "status": result.status,
        "folder": result.folder,
        "report": result.report,
        "metric": spec.sweep.metric,
        "best": best,
        "trials": [trial(row) for row in result.table.ranked()],
        # the trials of each setting that no other beats
        "front": [[row.id for row in rows] for rows in result.table.front()],
    }


def _print_sweep(spec: SweepSpec, result: SweepResult) -> None:
    from orchestration.record.table import render_table

    # a sweep that was interrupted before its first trial has none
    if result.table.rows:
        output.print_rich(render_table(result.table))
    metric, best, front = spec.sweep.metric, result.best, result.table.front()
    rows: list[tuple[str, Any]] = [("sweep", result.id), ("folder", shown(result.folder))]
    rows.append(("report", result.report or result.folder / "table.md"))
    if best is not None:
        rows.append(("best trial", f"{best.id}: {metric} {best.outcome} with {best.description}"))
    if result.best_checkpoint is not None:
        rows.append(("checkpoint", shown(result.best_checkpoint)))
    if front:
        against = ", ".join(spec.sweep.against)
        rows.append(
            ("front", f"{len(front)} settings that no other beats in {metric} and {against}")
        )
    # a database has no page until a server is started
    storage = shlex.quote(shown(spec.storage))
    rows.append(("MLflow", spec.tracking.uri or f"boxseg ui --storage {storage}"))
    print_pairs(rows)


def _check(spec: RunSpec, *, goes_on: bool = False) -> None:
    """Refuse what cannot work, and warn of what is probably not meant."""
    from boxseg.coco.checks import reading_once
    from orchestration.planning.preflight import check, warnings

    with reading_once():
        # a run that goes on has started already
        check(spec.starting_from(None) if goes_on else spec)
        warn(warnings(spec))


def _print_plan(spec: RunSpec, as_json: bool, ended: int = 0) -> None:
    from orchestration.planning.plan import make_plan, plan_rows

    plan = make_plan(spec, ended=ended)
    if as_json:
        print_json(plan)
    else:
        print_pairs(plan_rows(plan))
    warn(plan.warnings)
    for fault in plan.faults:
        say(f"would not start: {fault}")
    if plan.faults:
        # with the code of the fault that the run would end with
        raise typer.Exit(exit_code_for(plan.faults[0]))
