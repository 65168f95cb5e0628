"""A sweep from settings to the best checkpoint: Ray Tune runs the trials, their folders tell how they went."""

from __future__ import annotations

import itertools
import logging
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from boxseg.engine.checkpoint import BEST, find_checkpoint_damage
from boxseg.errors import ConfigError
from boxseg.files.writing import sync_folder, sync_tree, write_atomic
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import RunSpec, SweepSpec, load_run
from orchestration.execute.cluster import silent_nodes
from orchestration.execute.run import (
    POLL_S,
    StopSignals,
    check_present,
    check_same_settings,
    prepare_data,
    run_beside,
    tracked,
)
from orchestration.execute.search import PastTrial, Trial
from orchestration.execute.session import start_ray
from orchestration.execute.tune import make_tuner
from orchestration.execute.worker import Payload, TrainFn, split_batch
from orchestration.planning.preflight import concurrency, runner_of
from orchestration.record.failures import Failure, FailureClass, error_of
from orchestration.record.find_runs import find_start, list_trials, sound_status
from orchestration.record.journal import (
    DAMAGED,
    ENDED,
    driving,
    is_concluded,
    newest_sweep,
    read_past,
)
from orchestration.record.origin import provenance, write_changes
from orchestration.record.progress import SweepProgress
from orchestration.record.records import DamagedError
from orchestration.record.run_folder import RunFolder, RunStatus, Status, new_folder, own_process
from orchestration.record.table import (
    EndedTrials,
    SweepTable,
    TrialRow,
    describe,
    markdown_table,
    read_table,
)
from orchestration.report.page import try_report
from orchestration.tracking.mirror import Tracker

logger = logging.getLogger("boxseg.sweep")

TUNE_END_S = 10.0
"""How long Tune may take to end after an interruption [s]."""
SHOW_S = 1.0
"""Time between two looks at the trials [s]; longer where a look takes more than a twentieth of it."""


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended."""

    id: str
    folder: Path
    status: Status
    """`finished`; `interrupted` with the trials' state saved; `failed` if no trial has a value."""
    table: SweepTable
    best: TrialRow | None
    best_checkpoint: Path | None
    """Copy of the best trial's best checkpoint, in the sweep's folder."""
    report: Path | None = None
    """The page about the sweep; None if it was interrupted, or the page could not be made."""


@dataclass(frozen=True)
class SweepPlan:
    """What the process of each trial gets."""

    spec: SweepSpec
    folder: Path
    data_root: Path
    runner: Literal["inline", "ray_train"]
    train_fn: TrainFn | None = None

    def trial_folder(self, trial: Trial) -> RunFolder:
        """Where a trial lives."""
        return RunFolder(self.folder / f"{self.folder.name}-{trial.number:02d}")

    def payload(self, trial: Trial) -> Payload:
        """What the trial's workers get.

        Raises:
            ConfigError: the trial's values are not possible together.
        """
        spec = find_start(self.spec.trial(trial.values, trial.seed))
        sweep = self.spec.sweep
        folder = self.trial_folder(trial).path
        return Payload(
            spec,
            folder,
            self.data_root,
            metric=sweep.metric,
            mode=sweep.mode,
            train_fn=self.train_fn,
        )


Start = Literal["resume", "retry_failed", "beside"]
"""What to do where there is a sweep of the same name: go on with the newest one, which was interrupted; so too if it
has ended, and run again what failed for a reason that may have gone; start another one even though it is interrupted
or running."""


def run_sweep(
    spec: SweepSpec,
    *,
    start: Start | None = None,
    max_failures: int | None = None,
    train_fn: TrainFn | None = None,
    progress: bool = True,
) -> SweepResult:
    """Run all trials, keep the best checkpoint, and wait for the end.

    Args:
        spec: All settings.
        start: What to do about an earlier sweep of this name; null: refuse to start beside an interrupted one.
        max_failures: End as after a signal once so many trials have failed; null: go on.
        train_fn: The training loop; null: that of boxseg.
        progress: Show progress on stderr.

    Returns:
        The result, also if trials failed. SIGINT and SIGTERM end the running trials with their state saved.

    Raises:
        BoxSegError: the sweep itself cannot run (resources, data, an earlier sweep of this name).
        StorageError: a trial or the sweep could not be written; `start="resume"` goes on once it can.
        KeyboardInterrupt: a second signal came before the state was saved.
    """
    storage = spec.storage.absolute()
    spec = find_start(spec)
    earlier = find_sweep(spec, start)
    tags = prepare_data(spec) | provenance(spec)
    folder = earlier or new_folder(storage / spec.name)
    tags |= {"search": spec.sweep.search, "trial_scheduler": spec.sweep.trial_scheduler}
    planned = spec.sweep.num_trials
    status = RunStatus(
        folder.path.name,
        spec.name,
        kind="sweep",
        steps=planned,
        tags=tags,
        **own_process(),
    )
    with driving(folder):
        folder.open(status, dump_resolved(spec))
        write_changes(folder)
        tracker = Tracker(storage, spec.name, uri=spec.tracking.uri, logs=folder.logs)
        past = read_past(
            folder,
            spec.sweep.criterion,
            sweep=spec.sweep,
            retry_failed=start == "retry_failed",
        )
        sweep = Sweep(
            SweepPlan(spec, folder.path, storage / ".data", runner_of(spec), train_fn),
            tags,
            tracker,
            past,
        )
        sweep.max_failures = max_failures
        with tracked(tracker, folder), StopSignals() as signals:
            try:
                with SweepProgress(spec.name, planned, shown=progress) as display:
                    if sweep.ended < planned:
                        _run_trials(sweep, signals, display)
                    sweep.close_trials(interrupted=signals.has_received())
                    display.update(sweep.table())
            finally:
                sweep.close_trials(interrupted=True)  # those that an error left open
            result = sweep.conclude(interrupted=signals.has_received())
    if sweep.storage_failure is not None:
        raise error_of(sweep.storage_failure)
    return result


def _run_trials(sweep: Sweep, signals: StopSignals, display: SweepProgress) -> None:
    """Start Ray, run the trials that have not ended, and wait for them."""
    spec = sweep.plan.spec
    with start_ray(spec, logs=sweep.folder.logs, give_up=signals.has_received) as nodes:
        tuner = make_tuner(sweep, concurrency(spec, nodes))
        sweep.watch(run_beside(tuner.fit), signals, display)


SWEEP_MAY_CHANGE = ("sweep.concurrency", "train.panels", "data.loader_workers")
"""Settings that a resumed sweep may have otherwise, besides those of `resources`, `storage` and `tracking`."""


def find_sweep(spec: SweepSpec, start: Start | None = None) -> RunFolder | None:
    """The sweep to go on with; None for a new one.

    Raises:
        ConfigError: the newest sweep of this name runs, or was interrupted and nobody said what to do about it; or it
            cannot be resumed.
    """
    folder = None if start == "beside" else newest_sweep(spec.storage.absolute(), spec.name)
    ended = folder is None or folder.stored().status in ENDED
    if folder is not None and start == "resume":
        ended = is_concluded(folder)  # one that ended by a fault of its driver can go on too
    if folder is None or (ended and start != "retry_failed"):
        if start in ("resume", "retry_failed"):
            what = "there is no sweep" if start == "retry_failed" else "no interrupted sweep"
            raise ConfigError(
                f"{what} {spec.name} under {spec.storage}; start one without --resume and --retry-failed"
            )
        return None
    with driving(folder):
        if start is None:
            raise ConfigError(
                f"sweep {folder.path.name} was interrupted; go on with it by --resume, or start "
                "another one beside it with --new"
            )
        check_same_settings(spec, folder, SWEEP_MAY_CHANGE)
    return folder


class Sweep:
    """The driver's side of a sweep: opens and closes trials in folders, journal and tracking."""

    def __init__(
        self,
        plan: SweepPlan,
        tags: dict[str, str],
        tracker: Tracker,
        past: Sequence[PastTrial] = (),
    ) -> None:
        """`past` trials are those of the sweep before it was interrupted."""
        self.plan = plan
        self.past = past
        self.folder = RunFolder(plan.folder)
        self._ended = EndedTrials(plan.spec)
        for past_trial in past:
            if past_trial.ended:
                self._ended.add(plan.trial_folder(past_trial.trial).path)
        self._drawn = {past_trial.trial.number for past_trial in past}
        self.max_failures: int | None = None
        self.storage_failure: Failure | None = None
        """What the storage did not take of a trial; no other trial would fare better, so the sweep is to stop."""
        self.is_over = False
        """Whether Tune is to end although not all trials were run."""
        self._failures = 0
        self._tags = tags
        self._tracker = tracker
        self._open: dict[int, RunFolder] = {}
        self._first: dict[int, RunStatus] = {}
        """State of each open trial before it began."""
        planned = plan.spec.sweep.num_trials
        self.folder.note("sweep_start", id=plan.folder.name, planned=planned, ended=self.ended)

    @property
    def ended(self) -> int:
        """Number of trials that have ended."""
        return len(self._ended.rows)

    def table(self) -> SweepTable:
        """All trials as they are now."""
        return read_table(self.folder.path, self.plan.spec, self._ended.rows)

    def note_drawn(self, trial: Trial) -> None:
        """Write down what a trial is before anything else knows of it."""
        if trial.number not in self._drawn:
            self._drawn.add(trial.number)
            self.folder.note("trial_drawn", **asdict(trial))

    def value_of(self, trial: Trial) -> float | None:
        """The deciding metric of a trial's best evaluation so far, as the table has it."""
        return self.plan.spec.sweep.criterion.value(self.plan.trial_folder(trial).stored().best)

    def open_trial(self, trial: Trial) -> None:
        """Make the trial's folder before its process looks for it; values that are impossible end it at once."""
        # Tune starts a trial again after a loss
        if self.folder.stop_requested() or trial.number in self._open:
            return
        folder = self.plan.trial_folder(trial)
        spec: RunSpec = self.plan.spec
        impossible = None
        try:
            spec = self.plan.payload(trial).spec
        except ConfigError as error:
            impossible = error
        tags = {
            "seed": str(trial.seed),
            "trial": str(trial.number),
            "profile": spec.profile,
            "method": spec.method,
        }
        status = RunStatus(
            folder.path.name,
            spec.name,
            steps=spec.train.steps,
            tags=self._tags | tags,
            values=trial.values,
            description=describe(trial.values),
            parent="..",
            **own_process(),
        )
        self._first[trial.number] = status
        folder.open(status, dump_resolved(spec))
        if impossible is not None:
            folder.finish("failed", impossible)
        self._open[trial.number] = folder
        self.folder.note("trial_start", trial=status.id, step=folder.stored().step)
        self._tracker.add(folder)

    def close_trial(self, number: int, status: Status, failure: Failure | None = None) -> None:
        """Write down how a trial ended, unless its own process has; then bring the sweep's best value up to date."""
        folder = self._open.pop(number, None)
        if folder is None:
            return
        if status == "stopped" and self.folder.stop_requested():
            status = "interrupted"  # its process may have gone at once, with nothing done
        try:
            end = folder.finish(status, failure)
        except DamagedError as error:  # what somebody wrote into one trial ends no other
            folder.status_path.rename(folder.path / DAMAGED)
            folder.create(self._first[number], folder.config_path.read_text(encoding="utf-8"))
            end = folder.finish("failed", error)
        self._tracker.settle(folder)
        self._note_end(end)
        self._failures += end.status == "failed"
        if end.failure is not None and end.failure.failure_class is FailureClass.DISK_FULL:
            self.storage_failure = end.failure
        self._ended.add(folder.path)
        best = self._ended.best()
        if best is None:
            self.folder.update(step=self.ended)
            return
        metrics = {**best.metrics, "sweep/trials_ended": self.ended}
        self.folder.append_metrics(self.ended, metrics)
        self.folder.update(
            step=self.ended,
            metrics=best.metrics,
            best=best.metrics,
            best_run=best.id,
        )

    def _note_end(self, end: RunStatus) -> None:
        """Write a trial's end into the journal, with its cause where it did not come by itself."""
        details: dict[str, Any] = {"cause": ""}
        if end.failure is not None:
            details["cause"] = end.failure.text
        elif end.status == "stopped":
            details["cause"] = self.plan.spec.sweep.trial_scheduler
        details["step"] = end.step
        if end.failure is not None:
            details["failure_class"] = end.failure.failure_class
        if end.retries:
            details["retries"] = end.retries
        self.folder.note("trial_end", trial=end.id, status=end.status, **details)

    def trial_lost(self, number: int, error: BaseException | None) -> None:
        """Note that Tune starts a trial's process again; with less memory if that was short."""
        folder = self._open.get(number)
        if folder is None or sound_status(folder.path) is None:
            return
        failure = Failure("WorkerLost", Failure.of(error).text if error else "the process ended")
        if failure.failure_class is FailureClass.WORKER_LOST and (silent := silent_nodes()):
            failure = Failure("NodeDiedError", f"node {', '.join(silent)} does not answer")
        if not split_batch(load_run(folder.config_path), folder, failure):
            folder.note_retry(failure, "a new process goes on from the last checkpoint")

    def close_trials(self, *, interrupted: bool) -> None:
        """Close what is still open when no trial runs any more."""
        reason = f"the trial's process ended without a word; {self.folder.logs} may tell why"
        for number in list(self._open):
            if interrupted:
                self.close_trial(number, "interrupted")
            else:
                self.close_trial(number, "failed", Failure("WorkerLost", reason))
        # a worker may have written a status after the end of its trial
        for trial in list_trials(self.folder.path):
            if trial.status == "created":
                RunFolder(trial.folder).finish("interrupted")
            elif trial.status == "running":
                RunFolder(trial.folder).finish("stopped")

    def watch(self, ticks: Iterator[None], signals: StopSignals, display: SweepProgress) -> None:
        """Show progress until Tune ends; after a signal, until all trials have saved their state.

        Raises:
            StorageError: the sweep's folder is gone.
        """
        due = 0.0
        for _ in ticks:
            check_present(self.folder)
            began = time.monotonic()
            if began > due:
                display.update(self.table())
                due = began + max(SHOW_S, 20 * (time.monotonic() - began))
            too_many = self.max_failures is not None and self._failures >= self.max_failures
            if too_many or self.storage_failure is not None:
                signals.stop(signal.SIGTERM)
            if signals.received:
                folders = list(self._open.values())
                for folder in [self.folder, *folders]:
                    folder.request_stop()
                if signals.overdue or all(map(_has_ended, folders)):
                    self.is_over = True
                    break
        for _ in itertools.islice(ticks, round(TUNE_END_S / POLL_S)):
            pass  # until Tune has ended as well

    def conclude(self, *, interrupted: bool) -> SweepResult:
        """Copy the best checkpoint, write table, report and the sweep's end."""
        table = read_table(self.folder.path, self.plan.spec)
        best = table.best()
        checkpoint = self._keep_best(best)
        write_atomic(self.folder.path / "table.md", markdown_table(table) + "\n")
        report = None if interrupted else try_report(self.folder.path)
        status: Status = "failed" if best is None else "finished"
        if interrupted:
            status = "interrupted"
        self.folder.finish(status, _common_failure(table) if status == "failed" else None)
        self.folder.note("sweep_end", status=status, best=best.id if best else None)
        return SweepResult(
            self.folder.path.name,
            self.folder.path,
            status,
            table,
            best,
            checkpoint,
            report,
        )

    def _keep_best(self, best: TrialRow | None) -> Path | None:
        """Copy the best trial's best checkpoint to the sweep; it gets its name once the copy is whole.

        None if there is no trial or no checkpoint, or it is damaged; the copy of an earlier end is removed even then.
        """
        scratch, kept = self.folder.path / ".best", self.folder.path / BEST
        for old in (scratch, kept):
            shutil.rmtree(old, ignore_errors=True)
        if best is None or not (source := RunFolder(best.folder).best_checkpoint).exists():
            return None
        shutil.copytree(source.resolve(), scratch)
        if (fault := find_checkpoint_damage(scratch)) is not None:
            logger.warning(
                "the best checkpoint is not kept: %s; `boxseg runs show %s` names its trial",
                fault,
                best.id,
            )
            shutil.rmtree(scratch)
            return None
        sync_tree(scratch)
        scratch.rename(kept)
        sync_folder(kept.parent)
        return kept


def _has_ended(trial: RunFolder) -> bool:
    """Whether a trial has ended by its status; one whose folder cannot be read counts as ended."""
    status = sound_status(trial.path)
    return status is None or status.is_final


def _common_failure(table: SweepTable) -> Failure:
    """Why no trial has a value: their own failure where all failed alike."""
    failures = [row.failure for row in table.rows if row.failure is not None]
    errors = {type(error_of(failure)).__name__ for failure in failures}
    reason = f"the first: {failures[0].text}" if failures else "none reported a value"
    kind = errors.pop() if len(errors) == 1 else "BoxSegError"
    return Failure(kind, f"all {len(table.rows)} trials failed; {reason}")
