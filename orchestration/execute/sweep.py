"""`boxseg sweep`: from settings to the best checkpoint. Ray Tune runs the trials; their folders say how they went."""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from boxseg.engine.checkpoint import BEST, find_checkpoint_damage, folder_of, newest_step
from boxseg.errors import CheckpointError
from boxseg.files.writing import naming_storage_faults, sync_folder, sync_tree, write_atomic
from orchestration.config.spec import SweepSpec
from orchestration.connect.desk import open_desk
from orchestration.connect.session import start_ray
from orchestration.connect.shares import open_shares
from orchestration.execute.payload import TrainFn
from orchestration.execute.supervise import supervise
from orchestration.execute.trials import SweepPayload, Trials
from orchestration.execute.tune import make_tuner
from orchestration.planning.known import find_known
from orchestration.planning.preflight import concurrency, runner_of
from orchestration.record.failures import Failure, error_of
from orchestration.record.find_runs import resolve_start_from
from orchestration.record.journal import drive_sweep, read_past
from orchestration.record.origin import check_same_data, open_folder, prepare_data, provenance
from orchestration.record.progress import SweepProgress
from orchestration.record.resume import OTHER_SWEEP, Start, extend_sweep, find_sweep
from orchestration.record.run_folder import RunFolder, Status, new_folder
from orchestration.record.table import SweepTable, markdown_table, read_table
from orchestration.record.trial import TrialStatus
from orchestration.report.page import PAGE, try_report
from orchestration.store.mirror import fetch_checkpoint

logger = logging.getLogger("boxseg.sweep")


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended."""

    folder: Path
    status: Status
    """`finished`; `interrupted` with the trials' state saved; `failed` if no trial has a value."""
    table: SweepTable
    best: TrialStatus | None
    best_checkpoint: Path | None
    """Copy of the best trial's best checkpoint, in the sweep's folder."""
    report: Path | None = None
    """The page about the sweep; None if it was interrupted, or the page could not be made."""
    stopped_by: str = ""
    """The setting by which it ended before all trials were run; empty where none did."""

    @property
    def id(self) -> str:
        """The name of its folder."""
        return self.folder.name


def run_sweep(
    spec: SweepSpec,
    *,
    start: Start | None = None,
    earlier: str | None = None,
    more: int = 0,
    max_failures: int | None = None,
    train_fn: TrainFn | None = None,
) -> SweepResult:
    """Run all trials, keep the best checkpoint, and wait for the end.

    Args:
        spec: All settings.
        start: What to do about an earlier sweep of this name; None: refuse to start beside an interrupted one.
        earlier: Id, folder or name of the sweep to go on with; None: the newest of this name.
        more: Settings to try besides those that are planned, if `start` is `more`.
        max_failures: Once this many trials have failed, end as after a signal; None: never.
        train_fn: The training loop; None: that of boxseg.

    Returns:
        The result, also if trials failed. SIGINT, SIGTERM and SIGHUP end the running trials with their state saved.

    Raises:
        BoxSegError: the sweep itself cannot run (resources, data, an earlier sweep of this name).
        StorageError: a trial or the sweep could not be written; `start="resume"` goes on once it can.
        KeyboardInterrupt: a second signal came before the state was saved.
    """
    spec = resolve_start_from(spec)
    going_on = find_sweep(spec, start, earlier)
    tags = prepare_data(spec) | provenance(spec)
    if going_on is not None:
        check_same_data(going_on, spec, tags, otherwise=OTHER_SWEEP)
        spec = extend_sweep(spec, going_on, more)
    else:
        spec = spec.trying(find_known(spec).points)
    tags |= {"search": spec.sweep.search, "trial_scheduler": spec.sweep.trial_scheduler}
    storage = spec.storage.absolute()
    folder = going_on or new_folder(storage / spec.name)
    payload = SweepPayload(spec, folder.path, storage / ".data", runner_of(spec), train_fn)
    with drive_sweep(folder) as syncer:
        open_folder(folder, spec, tags)
        past = read_past(folder, spec.sweep, retry_failed=start == "retry_failed")
        with supervise(folder, spec, syncer) as supervisor:
            trials = Trials(payload, tags, supervisor, past, max_failures=max_failures)
            _run_trials(trials)
            result = conclude(trials)
    if trials.storage_failure is not None:
        raise error_of(trials.storage_failure)
    return result


def _run_trials(trials: Trials) -> None:
    """Start Ray, run the trials that have not ended, wait for them, and close all of them."""
    spec, signals = trials.payload.spec, trials.supervisor.signals
    planned = spec.sweep.num_trials
    try:
        with SweepProgress(spec.name, planned) as display:
            display.begin(trials.table())
            if trials.num_ended < planned:
                with start_ray(
                    spec, logs=trials.folder.logs, give_up=signals.has_received
                ) as nodes:
                    at_once = concurrency(spec, nodes)
                    trials.payload = replace(
                        trials.payload,
                        driver_link=open_desk(spec, trials.folder.path),
                        shares=open_shares(spec.resources, at_once),
                    )
                    tuner = make_tuner(trials, at_once)
                    try:
                        with trials.supervisor.reached_by(trials.payload.driver_link):
                            trials.supervisor.watch(
                                tuner.fit, functools.partial(trials.look, display)
                            )
                    finally:
                        # The shares are in an actor, which ends with Ray.
                        trials.payload = replace(trials.payload, shares=None)
            trials.close_all(interrupted=signals.has_received())
            display.update(trials.table())
    finally:
        trials.close_all(interrupted=True)  # those that an error left open


def conclude(trials: Trials) -> SweepResult:
    """Copy the best checkpoint, write table, report and the sweep's end."""
    folder = trials.folder
    interrupted = trials.supervisor.signals.has_received()
    table, checkpoint = _keep_best(trials)
    best = table.best()
    # Again, because the driver may not have seen the end of each trial, nor their ends in the order of the table.
    trials.write_best(best)
    write_atomic(folder.path / "table.md", markdown_table(table) + "\n")
    report = None if interrupted else try_report(folder.path)
    status: Status = "failed" if best is None else "finished"
    if interrupted:
        status = "interrupted"
    folder.update(front=[row.id for rows in table.front() for row in rows])
    folder.finish(status, _common_failure(table) if status == "failed" else None)
    folder.note(
        "sweep_end",
        status=status,
        best=best.id if best else None,
        stopped_by=trials.stopped_by or None,
    )
    return SweepResult(
        folder.path,
        status,
        table,
        best,
        best_checkpoint=checkpoint,
        report=report,
        stopped_by=trials.stopped_by,
    )


def read_result(folder: RunFolder, spec: SweepSpec) -> SweepResult:
    """The result of a sweep that has ended, from its folder; `spec` is that of a file that asks for no more trials."""
    table = read_table(folder.path, extend_sweep(spec, folder))
    kept, page = folder.path / BEST, folder.path / "report" / PAGE
    return SweepResult(
        folder.path,
        folder.stored().status,
        table,
        table.best(),
        best_checkpoint=kept if kept.exists() else None,
        report=page if page.exists() else None,
    )


def _keep_best(trials: Trials) -> tuple[SweepTable, Path | None]:
    """Copy the best trial's best checkpoint to the sweep's folder; returns the table with that trial as the best.

    A trial whose best checkpoint is lost loses its value as well, and the next trial is the best.
    """
    while True:
        table = read_table(trials.folder.path, trials.payload.spec)
        best = table.best()
        try:
            return table, _copy_best(trials, best)
        except CheckpointError as error:
            assert best is not None
            logger.warning("%s has lost its best checkpoint: %s", best.label, error)
            trials.lose_best(best, str(error))


def _copy_best(trials: Trials, best: TrialStatus | None) -> Path | None:
    """The copy gets its name only once it is complete; one of an earlier end is removed even if there is no best trial.

    Raises:
        CheckpointError: the checkpoint of the best evaluation is damaged or gone.
        StorageError: the disk is full, or has another fault.
    """
    scratch, kept = trials.folder.path / ".best", trials.folder.path / BEST
    for old in (scratch, kept):
        shutil.rmtree(old, ignore_errors=True)
    if best is None:
        return None
    checkpoints = Path(best.folder) / "checkpoints"
    if trials.payload.train_fn is not None and newest_step(checkpoints) == 0:
        return None  # another training loop need not write checkpoints
    source = folder_of(checkpoints, best.best_step or 0)
    with contextlib.suppress(FileNotFoundError):
        shutil.copytree(fetch_checkpoint(source), scratch, copy_function=_copy_file)
    if (fault := find_checkpoint_damage(scratch)) is not None:
        shutil.rmtree(scratch, ignore_errors=True)
        raise CheckpointError(fault.replace(str(scratch), str(source)))
    sync_tree(scratch)
    scratch.rename(kept)
    sync_folder(kept.parent)
    return kept


def _copy_file(source: str, target: str) -> None:
    # `shutil.copytree` gathers the errors of the system as texts, which name neither fault nor way out.
    with naming_storage_faults(Path(target)):
        shutil.copy2(source, target)


def _common_failure(table: SweepTable) -> Failure:
    """Why no trial has a value; of the class of their failures, if that is the same for all."""
    failures = [row.failure for row in table.rows if row.failure is not None]
    errors = {type(error_of(failure)).__name__ for failure in failures}
    reason = f"the first: {failures[0].text}" if failures else "none reported a value"
    kind = errors.pop() if len(errors) == 1 else "BoxSegError"
    return Failure(kind, f"all {len(table.rows)} trials failed; {reason}")
