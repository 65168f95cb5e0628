"""A sweep from settings to the best checkpoint: Ray Tune runs the trials, their folders tell how they went."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from boxseg.errors import ConfigError
from boxseg.files import write_atomic
from orchestration.config import RunSpec, SweepSpec, dump_resolved
from orchestration.origin import provenance, write_changes
from orchestration.preflight import concurrency, uses_cluster
from orchestration.progress import SweepProgress
from orchestration.ray_session import start_ray
from orchestration.report import try_report
from orchestration.run_folder import Failure, RunFolder, RunStatus, Status, new_id, own_process
from orchestration.search_space import TRIAL_SCHEDULERS, Trial, TrialQueue, count_trials, make_searcher
from orchestration.table import SweepTable, TrialRow, describe, markdown_table, read_table
from orchestration.tracking import Tracker
from orchestration.train_run import StopSignals, fit, prepare_data, run_beside, tracked
from orchestration.worker import Payload, TrainFn, train_here

if TYPE_CHECKING:
    from ray.tune import Callback, Tuner

SHOW_S = 1.0
"""Time between two looks at the trials [s]."""


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

    @property
    def failed(self) -> list[TrialRow]:
        """Trials that failed."""
        return [row for row in self.table.rows if row.status == "failed"]


@dataclass(frozen=True)
class SweepPlan:
    """What every trial's process has to know."""

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
        spec = self.spec.trial(trial.values, trial.seed)
        sweep = self.spec.sweep
        folder = self.trial_folder(trial).path
        return Payload(spec, folder, self.data_root, metric=sweep.metric, mode=sweep.mode, train_fn=self.train_fn)


def run_sweep(spec: SweepSpec, *, train_fn: TrainFn | None = None, progress: bool = True) -> SweepResult:
    """Run all trials, keep the best checkpoint, and wait for the end.

    Args:
        spec: All settings.
        train_fn: The training loop; null: that of boxseg.
        progress: Show progress on stderr.

    Returns:
        The result, also if trials failed. SIGINT and SIGTERM end the running trials with their state saved.

    Raises:
        BoxSegError: the sweep itself cannot run (resources, data).
        KeyboardInterrupt: a second signal came before the state was saved.
    """
    storage = spec.storage.absolute()
    folder = RunFolder(storage / spec.name / new_id())
    tags = prepare_data(spec) | provenance(spec)
    tags |= {"search": spec.sweep.search, "trial_scheduler": spec.sweep.trial_scheduler}
    planned = count_trials(spec.sweep)
    status = RunStatus(folder.path.name, spec.name, kind="sweep", steps=planned, tags=tags, **own_process())
    folder.create(status, dump_resolved(spec))
    write_changes(folder)
    tracker = Tracker(storage, spec.name, uri=spec.tracking.uri, logs=folder.logs)
    sweep = Sweep(SweepPlan(spec, folder.path, storage / ".data", runner_of(spec), train_fn), tags, tracker)
    with tracked(tracker, folder), StopSignals() as signals:
        try:
            with SweepProgress(spec.name, planned, shown=progress) as display:
                with start_ray(spec, logs=folder.logs) as have:
                    sweep.watch(run_beside(make_tuner(sweep, concurrency(spec, have)).fit), signals, display)
                sweep.close_trials(interrupted=signals.received is not None)
                display.update(read_table(folder.path, spec))
        finally:
            sweep.close_trials(interrupted=True)
        return sweep.conclude(interrupted=signals.received is not None)


def runner_of(spec: SweepSpec) -> Literal["inline", "ray_train"]:
    """`auto` decided: inline for one-worker CPU trials without an external cluster."""
    resources = spec.resources
    if resources.runner != "auto":
        return resources.runner
    return "ray_train" if resources.workers > 1 or resources.gpus_per_worker or uses_cluster(spec) else "inline"


def make_tuner(sweep: Sweep, at_once: int) -> Tuner:
    """Ray Tune, set up for the sweep."""
    from ray import tune

    plan, spec = sweep.plan, sweep.plan.spec
    if plan.runner == "inline":
        resources = {"CPU": spec.resources.cpus_per_worker, "GPU": spec.resources.gpus_per_worker}
    else:
        resources = {"node:__internal_head__": 0.01}  # the trial only waits; its workers take the cores
    queue = TrialQueue(spec.sweep, spec.train.seed)
    return tune.Tuner(
        tune.with_resources(
            tune.with_parameters(run_trial, plan=plan), {name: amount for name, amount in resources.items() if amount}
        ),
        tune_config=tune.TuneConfig(
            metric=spec.sweep.metric,
            mode=spec.sweep.mode,
            search_alg=make_searcher(queue, spec.sweep.metric, spec.sweep.mode),
            scheduler=TRIAL_SCHEDULERS[spec.sweep.trial_scheduler](spec),
            num_samples=count_trials(spec.sweep),
            max_concurrent_trials=at_once,
            reuse_actors=plan.runner == "inline",
            trial_dirname_creator=lambda trial: f"{trial.config['trial'].number:02d}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(plan.folder / "logs"),
            failure_config=tune.FailureConfig(max_failures=2),  # only lost processes: trials do not raise
            callbacks=[make_callback(sweep)],
            verbose=0,
        ),
    )


def run_trial(config: dict[str, Any], plan: SweepPlan) -> None:
    """Body of a Tune actor: trains here, or waits for Ray Train's workers.

    An error is left in the trial's folder instead of raised: Tune would only try the same again.
    """
    trial: Trial = config["trial"]
    if RunFolder(plan.folder).stop_requested():
        return
    try:
        payload = plan.payload(trial)
        if plan.runner == "inline":
            from ray import tune

            train_here(payload, device=payload.device, send=tune.report)
        else:
            from ray.tune.integration.ray_train import TuneReportCallback

            fit(payload, callbacks=[TuneReportCallback()])
    except Exception as error:
        plan.trial_folder(trial).finish("failed", error)


class Sweep:
    """The driver's side of a sweep: opens and closes trials in folders, journal and tracking."""

    def __init__(self, plan: SweepPlan, tags: dict[str, str], tracker: Tracker) -> None:
        self.plan = plan
        self.folder = RunFolder(plan.folder)
        self._tags = tags
        self._tracker = tracker
        self._open: dict[int, RunFolder] = {}
        self._ended = 0
        self.folder.note("sweep_start", id=plan.folder.name, planned=count_trials(plan.spec.sweep))

    def open_trial(self, trial: Trial) -> None:
        """Make the trial's folder before its process looks for it; values that are impossible end it at once."""
        if self.folder.stop_requested():
            return
        folder = self.plan.trial_folder(trial)
        spec: RunSpec = self.plan.spec
        impossible = None
        try:
            spec = self.plan.payload(trial).spec
        except ConfigError as error:
            impossible = error
        tags = {"seed": str(trial.seed), "trial": str(trial.number), "profile": spec.profile, "method": spec.method}
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
        folder.create(status, dump_resolved(spec))
        if impossible is not None:
            folder.finish("failed", impossible)
        self._open[trial.number] = folder
        self.folder.note("trial_start", trial=status.id, values=trial.values, seed=trial.seed)
        self._tracker.add(folder)

    def close_trial(self, number: int, status: Status, failure: Failure | None = None) -> None:
        """Write down how a trial ended, unless its own process has; tell the sweep's best value so far."""
        folder = self._open.pop(number, None)
        if folder is None:
            return
        end = folder.finish(status, failure)
        cause = end.failure.text if end.failure else "asha" if end.status == "stopped" else ""
        self.folder.note("trial_end", trial=end.id, status=end.status, cause=cause, step=end.step)
        self._ended += 1
        self.folder.update(step=self._ended)
        best = read_table(self.folder.path, self.plan.spec).best()
        if best is not None:
            found = RunFolder(best.folder).stored()
            metrics = found.best or found.metrics
            self.folder.append_metrics(self._ended, {**metrics, "sweep/trials_ended": self._ended})
            self.folder.update(metrics=metrics, best=metrics, best_run=best.folder.name)

    def close_trials(self, *, interrupted: bool) -> None:
        """Close what is still open when no trial runs any more."""
        lost = Failure("WorkerLost", f"the trial's process ended without a word; {self.folder.logs} may tell why")
        for number in list(self._open):
            self.close_trial(number, "interrupted" if interrupted else "failed", None if interrupted else lost)
        for path in self.folder.path.glob("*/status.json"):  # a worker elsewhere may have written after the end
            RunFolder(path.parent).finish("stopped")

    def watch(self, ticks: Iterator[None], signals: StopSignals, display: SweepProgress) -> None:
        """Show progress until Tune ends; after a signal, until all trials have saved their state."""
        shown = 0.0
        for _ in ticks:
            if time.monotonic() - shown > SHOW_S:
                display.update(read_table(self.folder.path, self.plan.spec))
                shown = time.monotonic()
            if signals.received:
                folders = list(self._open.values())
                for folder in [self.folder, *folders]:
                    folder.request_stop()
                if signals.overdue or all(folder.stored().is_final for folder in folders):
                    return

    def conclude(self, *, interrupted: bool) -> SweepResult:
        """Copy the best checkpoint, write table, report and the sweep's end."""
        table = read_table(self.folder.path, self.plan.spec)
        best = table.best()
        checkpoint = self._keep_best(best) if best is not None else None
        write_atomic(self.folder.path / "table.md", markdown_table(table) + "\n")
        report = None if interrupted else try_report(self.folder.path)
        status: Status = "interrupted" if interrupted else "finished" if best is not None else "failed"
        self.folder.finish(status, _common_failure(table) if status == "failed" else None)
        self.folder.note("sweep_end", status=status, best=best.id if best else None)
        return SweepResult(self.folder.path.name, self.folder.path, status, table, best, checkpoint, report)

    def _keep_best(self, best: TrialRow) -> Path | None:
        """Copy the trial's best checkpoint to the sweep, beside and renamed."""
        source = RunFolder(best.folder).best_checkpoint
        if not source.exists():
            return None
        scratch = self.folder.path / ".best"
        shutil.copytree(source.resolve(), scratch)
        return scratch.rename(self.folder.path / "best")


def _common_failure(table: SweepTable) -> Failure:
    """Why no trial has a value: their own failure where all failed alike."""
    failures = [row.failure for row in table.rows if row.failure is not None]
    kinds = {failure.kind for failure in failures}
    reason = f"the first: {failures[0].text}" if failures else "none reported a value"
    kind = kinds.pop() if len(kinds) == 1 else "BoxSegError"
    return Failure(kind, f"all {len(table.rows)} trials failed; {reason}")


def make_callback(sweep: Sweep) -> Callback:
    """Tells the sweep what Tune does."""
    from ray import tune

    class TrialCallback(tune.Callback):
        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            started: Trial = trial.config["trial"]
            if not sweep.plan.trial_folder(started).status_path.exists():  # Tune starts a trial again after a loss
                sweep.open_trial(started)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            sweep.close_trial(trial.config["trial"].number, "stopped")

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            error = Failure("WorkerLost", str(trial.get_error() or "the trial's process was lost").strip()[-2000:])
            sweep.close_trial(trial.config["trial"].number, "failed", error)

        def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
            return object, ()  # Tune stores its settings to restore an experiment; our journal serves for that

    return TrialCallback()
