"""The trials of a sweep as its driver sees them: what each gets, its start, the loss of its process, and its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from boxseg.engine.checkpoint import find_best, find_checkpoint_damage, folder_of, load_about
from boxseg.errors import ConfigError
from orchestration.config.spec import RunSpec, SweepSpec, load_run
from orchestration.connect.cluster import silent_nodes
from orchestration.connect.shares import Share, Shares
from orchestration.execute.payload import Payload, Work
from orchestration.execute.supervise import Supervisor
from orchestration.execute.worker import split_batch
from orchestration.record.failures import Failure, FailureClass
from orchestration.record.find_runs import list_in, resolve_start_from, sound_status
from orchestration.record.progress import SweepProgress
from orchestration.record.run_folder import RunFolder, RunStatus, Status, end_of, own_process
from orchestration.record.table import SweepTable, describe, make_table, read_table
from orchestration.record.trial import Trial, TrialStatus, read_trial, trial_folder
from orchestration.store.mirror import fetch_checkpoint

SHOW_S = 1.0
"""Time between two looks at the trials [s]; longer where a look takes more than a twentieth of this."""


@dataclass(frozen=True)
class SweepPayload(Work):
    """What the processes of all trials get; `folder` is that of the sweep."""

    spec: SweepSpec
    shares: Shares | None = None
    """Divides the workers among elastic trials; None: trials have a fixed number of workers."""

    def trial_folder(self, trial: Trial) -> RunFolder:
        """Folder of a trial."""
        return trial_folder(self.folder, trial.number)

    def of_trial(self, trial: Trial) -> Payload:
        """What the trial's workers get.

        Raises:
            ConfigError: the trial's values do not fit together.
        """
        return Payload(
            resolve_start_from(self.spec.trial(trial.values, trial.seed)),
            self.trial_folder(trial).path,
            self.data_root,
            self.runner,
            self.train_fn,
            self.driver_link,
            sweep=self.spec.sweep,
            share=None if self.shares is None else Share(self.shares, trial.number),
        )


class Trials:
    """Opens and closes the trials of a sweep, in their folders, the journal and tracking, as Tune asks for it."""

    def __init__(
        self,
        payload: SweepPayload,
        tags: dict[str, str],
        supervisor: Supervisor,
        past: Sequence[TrialStatus] = (),
        *,
        max_failures: int | None = None,
    ) -> None:
        """Begin, or go on, with a sweep.

        Args:
            payload: What each trial gets.
            tags: Tags of the sweep, which every trial has as well.
            supervisor: Supervisor of the sweep.
            past: Trials that the sweep had before this command.
            max_failures: Once this many trials have failed, end as after a signal; None: never.
        """
        self.payload = payload
        self.past = past
        self.folder = RunFolder(payload.folder)
        self.supervisor = supervisor
        self.storage_failure: Failure | None = None
        """Set once a trial could not be written; no other trial would fare better, so the sweep stops."""
        self._tags = tags
        sweep = payload.spec.sweep
        ended = [row for row in past if row.has_ended]
        self._ended_trials = make_table(payload.spec, ended)
        self._drawn = {row.number for row in past}
        self._max_failures = max_failures
        self._failures = 0
        self._show_at = 0.0
        self._began = time.monotonic()
        self.stopped_by = ""
        """The setting because of which no further trial begins; empty if there is none."""
        self.folder.note(
            "sweep_start", id=payload.folder.name, planned=sweep.num_trials, ended=self.num_ended
        )

    @property
    def num_ended(self) -> int:
        """Number of trials that have ended."""
        return len(self._ended_trials.rows)

    def table(self) -> SweepTable:
        """All trials as they are now."""
        return read_table(self.folder.path, self.payload.spec, self._ended_trials.rows)

    def look(self, display: SweepProgress) -> None:
        """Show progress, and stop the sweep if it makes no sense to go on."""
        began = time.monotonic()
        if began > self._show_at:
            display.update(self.table())
            self._show_at = began + max(SHOW_S, 20 * (time.monotonic() - began))
        too_many = self._max_failures is not None and self._failures >= self._max_failures
        if too_many or self.storage_failure is not None:
            self.supervisor.signals.stop()

    def may_begin(self) -> bool:
        """Whether another setting may begin, by `sweep.time_budget_h` and `sweep.patience`."""
        sweep = self.payload.spec.sweep
        if not self._drawn:
            return True  # every sweep has at least one trial
        passed_h = (time.monotonic() - self._began) / 3600
        if sweep.time_budget_h is not None and passed_h >= sweep.time_budget_h:
            self.stopped_by = f"sweep.time_budget_h {sweep.time_budget_h:g}"
        elif sweep.patience is not None and self._settings_without_gain() >= sweep.patience:
            self.stopped_by = f"sweep.patience {sweep.patience}"
        return not self.stopped_by

    def _settings_without_gain(self) -> int:
        """How many settings have begun after the best one and ended without being better.

        Settings of earlier commands do not count: a user who resumes a sweep wants to see more of it.
        """
        num_seeds = len(self.payload.spec.sweep.seeds)
        best = self._ended_trials.best()
        if best is None:
            return 0
        numbers: dict[str, list[int]] = {}
        for row in self._ended_trials.rows:
            numbers.setdefault(row.key, []).append(row.number)
        before = {row.key for row in self.past if row.has_ended}
        without_gain = 0
        for key, of_setting in numbers.items():
            came_later = min(of_setting) > min(numbers[best.key])
            without_gain += came_later and len(of_setting) == num_seeds and key not in before
        return without_gain

    def note_drawn(self, trial: Trial) -> None:
        """Write a trial's values to the journal before its folder is made, so that a kill in between loses nothing."""
        if trial.number not in self._drawn:
            self._drawn.add(trial.number)
            self.folder.note("trial_drawn", **asdict(trial))

    def status_of(self, trial: Trial) -> TrialStatus | None:
        """The state of a trial as a row of the table; None where it cannot be read."""
        return read_trial(self.payload.trial_folder(trial).path, self.payload.spec.sweep.criterion)

    def open(self, trial: Trial) -> None:
        """Make the trial's folder before its process looks for it; a trial with impossible values fails at once."""
        folder = self.payload.trial_folder(trial)
        # it is open already if Tune starts it again because its process was lost
        if self.folder.stop_requested() or self._is_open(folder):
            return
        spec: RunSpec = self.payload.spec
        impossible = None
        try:
            spec = self.payload.of_trial(trial).spec
        except ConfigError as error:
            impossible = error
        self.supervisor.open(folder, self._first_status(trial, folder, spec), spec)
        self._update_shares()
        if impossible is not None:
            folder.finish("failed", impossible)
        self.supervisor.hand_over(folder)
        self.folder.note("trial_start", trial=folder.path.name, step=folder.stored().step)

    def _update_shares(self) -> None:
        """Tell the shares which trials run and how many will follow, so that free places go to others."""
        if self.payload.shares is None:
            return
        numbers = [int(end_of(name)) for name in self.supervisor.trials]
        planned = 0 if self.stopped_by else self.payload.spec.sweep.num_trials
        left = max(0, planned - self.num_ended - len(numbers))
        self.payload.shares.update(numbers, left)

    def _is_open(self, folder: RunFolder) -> bool:
        return folder.path.name in self.supervisor.trials

    def _first_status(self, trial: Trial, folder: RunFolder, spec: RunSpec) -> RunStatus:
        tags = {
            "seed": str(trial.seed),
            "trial": str(trial.number),
            "profile": spec.profile,
            "method": spec.method,
        }
        return RunStatus(
            folder.path.name,
            spec.name,
            steps=spec.train.steps,
            tags=self._tags | tags,
            values=trial.values,
            description=describe(trial.values),
            parent="..",
            **own_process(),
        )

    def close(self, trial: Trial, status: Status, failure: Failure | None = None) -> None:
        """Write how a trial ended, unless its own process has; then update the sweep's best value."""
        folder = self.payload.trial_folder(trial)
        if self._is_open(folder):
            self._close(folder, status, failure)

    def _close(self, folder: RunFolder, status: Status, failure: Failure | None = None) -> None:
        if status == "stopped" and self.folder.stop_requested():
            status = "interrupted"  # the sweep was asked to stop, and the trial's process ended without a status
        end = self.supervisor.close(folder, status, failure)
        self._note_end(end)
        self._failures += end.status == "failed"
        if end.failure is not None and end.failure.failure_class is FailureClass.DISK_FULL:
            self.storage_failure = end.failure
        if (row := read_trial(folder.path, self.payload.spec.sweep.criterion)) is not None:
            self._ended_trials.add(row)
        self._update_shares()
        self._report_best()

    def _report_best(self) -> None:
        best = self._ended_trials.best()
        if best is not None:
            metrics = {**best.metrics, "sweep/trials_ended": self.num_ended}
            self.folder.append_metrics(self.num_ended, metrics)
        self.write_best(best)

    def write_best(self, best: TrialStatus | None) -> None:
        """Write into the sweep's status which trial is the best."""
        metrics = {} if best is None else best.metrics
        self.folder.update(
            step=self.num_ended,
            metrics=metrics,
            best=metrics,
            best_run=None if best is None else best.id,
        )

    def _note_end(self, end: RunStatus) -> None:
        """Write a trial's end to the journal, with its cause unless the trial finished."""
        details: dict[str, Any] = {"cause": "", "step": end.step}
        if end.failure is not None:
            details["cause"] = end.failure.text
            details["failure_class"] = end.failure.failure_class
        elif end.status == "stopped":
            details["cause"] = self.payload.spec.sweep.trial_scheduler
        if end.retries:
            details["retries"] = end.retries
        self.folder.note("trial_end", trial=end.id, status=end.status, **details)

    def note_loss(self, trial: Trial, error: BaseException | None) -> None:
        """Note that Tune starts a trial's process again; if memory was short, with a split batch."""
        folder = self.payload.trial_folder(trial)
        if not self._is_open(folder) or sound_status(folder.path) is None:
            return
        failure = Failure("WorkerLost", Failure.of(error).text if error else "the process ended")
        if failure.failure_class is FailureClass.WORKER_LOST and (silent := silent_nodes()):
            failure = Failure("NodeDiedError", f"node {', '.join(silent)} does not answer")
        self.supervisor.collect_records()
        if not split_batch(load_run(folder.config_path), folder, failure):
            folder.note_retry(failure, "a new process goes on from the last checkpoint")
        self.supervisor.hand_over(folder)

    def lose_best(self, row: TrialStatus, fault: str) -> None:
        """Take back the value of a trial whose best checkpoint is lost; if the trial had ended, it counts as failed.

        If there is a newer best checkpoint, which the trial's process did not live to report, that one counts instead.
        """
        folder = RunFolder(row.folder)
        checkpoints = folder.path / "checkpoints"
        newer, lost = find_best(checkpoints), folder_of(checkpoints, row.best_step or 0)
        is_sound = newer is not None and find_checkpoint_damage(fetch_checkpoint(newer)) is None
        if newer is not None and newer != lost and is_sound:
            about = load_about(newer)
            folder.keep_best(about["step"], about["metrics"])
        else:
            folder.keep_best(0, {})
            if row.has_ended:
                failure = Failure("LostCheckpoint", fault)
                self._note_end(folder.update(status="failed", failure=failure))
        self.supervisor.track_again(folder)
        others = [each for each in self._ended_trials.rows if each.id != row.id]
        status = TrialStatus.of(folder.stored(), self.payload.spec.sweep.criterion)
        self._ended_trials = make_table(
            self.payload.spec, [*others, *([status] if row.has_ended else [])]
        )
        self._report_best()

    def close_all(self, *, interrupted: bool) -> None:
        """Close the trials that are still open when none runs any more."""
        reason = f"the trial's process ended without a message; {self.folder.logs} may tell why"
        for folder in list(self.supervisor.trials.values()):
            if interrupted:
                self._close(folder, "interrupted")
            else:
                self._close(folder, "failed", Failure("WorkerLost", reason))
        # a worker may have written a status after its trial was closed
        for trial in list_in(self.folder.path):
            if trial.status == "created":
                RunFolder(trial.folder).finish("interrupted")
            elif trial.status == "running":
                RunFolder(trial.folder).finish("stopped")
