"""A sweep in terms of Ray Tune: what Tune runs, how it searches and schedules, and how the sweep hears of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from orchestration.execute.fit import WORKER_FAILURES, train_payload
from orchestration.execute.schedulers import TRIAL_SCHEDULERS, replay_past
from orchestration.execute.search import TrialQueue
from orchestration.execute.worker import folder_received
from orchestration.record.failures import Failure
from orchestration.record.records import DamagedError
from orchestration.record.run_folder import RunFolder, new_id
from orchestration.record.score import Scores, read_scores
from orchestration.record.trial import Trial

if TYPE_CHECKING:
    from ray.tune import Callback, Stopper, Tuner
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher

    from orchestration.execute.trials import SweepPayload, Trials


def make_tuner(sweep: Trials, at_once: int) -> Tuner:
    """Ray Tune, set up for the sweep."""
    from ray import tune

    payload, spec = sweep.payload, sweep.payload.spec
    queue = TrialQueue(spec.sweep, spec.train.seed, sweep.past)
    return tune.Tuner(
        tune.with_resources(
            tune.with_parameters(run_trial, payload=payload), _trial_resources(payload)
        ),
        tune_config=tune.TuneConfig(
            metric=spec.sweep.metric,
            mode=spec.sweep.mode,
            search_alg=make_searcher(sweep, queue),
            scheduler=_make_scheduler(sweep),
            num_samples=spec.sweep.num_trials,
            max_concurrent_trials=at_once,
            # what a trial leaves in a process would count as the next one's memory
            reuse_actors=payload.runner == "inline" and "cost/memory_mb" not in spec.sweep.against,
            trial_dirname_creator=lambda trial: f"{trial.config['trial'].number:02d}",
        ),
        run_config=tune.RunConfig(
            # a new name, so that Ray does not read its own state of an earlier start: ours is in the folders
            name=f"tune-{new_id()}",
            storage_path=str(payload.folder / "logs"),
            # for lost processes: trials do not raise
            failure_config=tune.FailureConfig(max_failures=WORKER_FAILURES),
            callbacks=[make_callback(sweep)],
            stop=make_stopper(sweep),
            verbose=0,
        ),
    )


def _trial_resources(payload: SweepPayload) -> dict[str, float]:
    """What Ray keeps for the process of a trial."""
    if payload.runner == "ray_train":
        # it only waits; its workers take the cores
        return {"node:__internal_head__": 0.01}
    needs = payload.spec.resources
    amounts = {"CPU": needs.cpus_per_worker, "GPU": needs.gpus_per_worker}
    # Ray takes no amount of zero
    return {name: amount for name, amount in amounts.items() if amount}


def _make_scheduler(sweep: Trials) -> TrialScheduler | None:
    """The scheduler that stops weak trials; it knows the trials of earlier commands."""
    spec = sweep.payload.spec
    scheduler = TRIAL_SCHEDULERS[spec.sweep.trial_scheduler](spec)
    if scheduler is None:
        return None
    ended: dict[int, Scores] = {}
    going_on: dict[int, Scores] = {}
    for row in sweep.past:
        scores = read_scores(RunFolder(row.folder), spec.sweep.criterion)
        (ended if row.has_ended else going_on)[row.number] = scores
    replay_past(scheduler, ended=ended, going_on=going_on, metric=spec.sweep.metric)
    return scheduler


def run_trial(config: dict[str, Any], payload: SweepPayload) -> None:
    """Body of a Tune actor: trains here, or waits for Ray Train's workers.

    An error is written to the trial's folder instead of raised: Tune would only try the same again.

    Raises:
        StorageError: the folder cannot be written; Tune passes this on to the sweep's driver.
    """
    trial: Trial = config["trial"]
    payload = payload.here()
    if RunFolder(payload.folder).stop_requested():
        return
    try:
        train_payload(payload.of_trial(trial), in_tune=True)
    except Exception as error:
        folder = payload.trial_folder(trial)
        with (
            folder_received(payload.driver_link, folder.path, trains=False),
            # the driver finds the damage as well, and writes the status anew
            contextlib.suppress(DamagedError),
        ):
            folder.finish("failed", error)


class _NotRestored:
    """Keeps Tune from storing searcher, callbacks and stopper to restore an experiment; our journal does that."""

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return object, ()


def make_searcher(sweep: Trials, queue: TrialQueue) -> Searcher:
    """Hands out `{"trial": Trial}` and reports ends back to the queue."""
    from ray.tune.search import Searcher

    class QueueSearcher(_NotRestored, Searcher):
        def __init__(self) -> None:
            config = sweep.payload.spec.sweep
            super().__init__(metric=config.metric, mode=config.mode)
            self._trials: dict[str, Trial] = {}

        def suggest(self, trial_id: str) -> dict[str, Any] | Any:
            trial = queue.next(may_begin=sweep.may_begin)
            if trial is None:
                return Searcher.FINISHED
            self._trials[trial_id] = trial
            sweep.note_drawn(trial)
            return {"trial": trial}

        def on_trial_complete(
            self, trial_id: str, result: dict | None = None, error: bool = False
        ) -> None:
            trial = self._trials[trial_id]
            # not from Tune's result, which is the last evaluation and need not be the best
            queue.note_end(trial.number, sweep.status_of(trial))

    return QueueSearcher()


def make_callback(sweep: Trials) -> Callback:
    """Passes on to the sweep which trials Tune starts, ends and loses."""
    from ray import tune

    class TrialCallback(_NotRestored, tune.Callback):
        def on_trial_start(
            self, iteration: int, trials: list[Any], trial: Any, **info: Any
        ) -> None:
            sweep.open(trial.config["trial"])

        def on_trial_complete(
            self, iteration: int, trials: list[Any], trial: Any, **info: Any
        ) -> None:
            sweep.close(trial.config["trial"], "stopped")

        def on_trial_recover(
            self, iteration: int, trials: list[Any], trial: Any, **info: Any
        ) -> None:
            sweep.note_loss(trial.config["trial"], trial.get_error())

        def on_trial_error(
            self, iteration: int, trials: list[Any], trial: Any, **info: Any
        ) -> None:
            text = str(trial.get_error() or "the trial's process was lost").strip()
            # the end of Ray's long texts names the cause
            failure = Failure("WorkerLost", text[-2000:])
            sweep.close(trial.config["trial"], "failed", failure)

    return TrialCallback()


def make_stopper(sweep: Trials) -> Stopper:
    """Ends Tune if the sweep ends early; the trials that are left can be run by resuming the sweep."""
    from ray import tune

    class SweepStopper(_NotRestored, tune.Stopper):
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return sweep.supervisor.is_over

    return SweepStopper()
