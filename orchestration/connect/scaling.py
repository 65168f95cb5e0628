"""How Ray Train starts workers here: they wait for places, and an elastic trial of a sweep asks `Shares` for its
number.

Importing this loads Ray Train, so only code that trains does.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.train import ScalingConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from orchestration.connect.shares import Share
from orchestration.record.failures import Failure

LOOK_S = 10.0
"""Time between two requests for more workers, and from a start to the first request [s]."""
WAIT_S = 1.0
"""Time between two requests while there is no place [s]."""


class PatientPolicy(DefaultFailurePolicy):
    """Ray's own policy for failures, except that a start without a place does not count: others may use the places for
    hours.

    Failures that would come again are not retried, such as a store that stays away: it was waited for already.
    """

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Whether to start the workers again."""
        if find_to_stay(training_failed_error) is not None:
            return FailureDecision.RAISE
        cause = getattr(training_failed_error, "controller_failure", None)
        if isinstance(cause, WorkerGroupStartupTimeoutError):
            return FailureDecision.RETRY
        return super().make_decision(training_failed_error)


def find_to_stay(error: TrainingFailedError) -> Exception | None:
    """The error that a worker raised on purpose and would raise again; other errors may only follow from it."""
    for raised in getattr(error, "worker_failures", {}).values():
        failure = Failure.of(raised)
        if failure.is_ours and failure.rule.policy == "stop":
            return raised
    return None


class SharesPolicy(ElasticScalingPolicy):
    """Starts and resizes the workers of one trial as its sweep's `Shares` allow.

    Ray's own policy gives the places of all nodes to runs in the order in which they began, wherever their workers are:
    an earlier trial that lost a node would end a later one's workers. Here, running workers are never ended for others.
    """

    def __init__(self, scaling_config: ScalingConfig, share: Share) -> None:
        # mypy sees the class of Ray Train V1
        super().__init__(scaling_config)  # type: ignore[arg-type]
        self._shares, self._number = share.shares, share.number
        self._homes: list[str] = []
        """Node of each worker, of the last start."""
        self._next_look = 0.0

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Called at the beginning, after a loss, and after a start for which there was no place after all."""
        self._maybe_send_resource_request()
        workers = self._shares.start(self._number, self._homes)
        if not workers and self._homes:
            # Ray frees the places of the remaining workers when it tries the next start
            workers = self.scaling_config.min_workers
        if not workers:
            time.sleep(WAIT_S)  # Ray asks again at once
            return NoopDecision()
        self._homes = []
        return self._get_resize_decision(workers)

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """Called regularly: whether the trial may have more workers."""
        self._maybe_send_resource_request()
        homes = [worker.metadata.node_id for worker in worker_group_state.workers]
        if homes != self._homes:
            self._homes = homes
            self._shares.note(self._number, len(homes))
            self._next_look = time.monotonic() + LOOK_S
        if time.monotonic() < self._next_look or len(homes) == self.scaling_config.max_workers:
            return NoopDecision()
        self._next_look = time.monotonic() + LOOK_S
        workers = self._shares.grow(self._number)
        if workers <= len(homes):
            return NoopDecision()
        if not self._is_free(workers - len(homes)):
            self._shares.note(self._number, len(homes))
            return NoopDecision()
        return self._get_resize_decision(workers)

    def _is_free(self, more: int) -> bool:
        """Whether the places for `more` workers are free on the cluster."""
        free = ray.available_resources()
        needs = self.scaling_config._resources_per_worker_not_none
        return all(free.get(name, 0.0) >= more * amount for name, amount in needs.items())


def trainer_with(share: Share | None) -> type[DataParallelTrainer]:
    """A trainer that waits for places, and scales by `share` if there is one; Ray has no public way to set policies."""

    class WaitingTrainer(DataParallelTrainer):
        def _initialize_and_run_controller(self, **options: Any) -> Any:
            failures: Any = self.run_config.failure_config
            options["failure_policy"] = PatientPolicy(failures)
            if share is not None:
                options["scaling_policy"] = SharesPolicy(self.scaling_config, share)
            return super()._initialize_and_run_controller(**options)

        def _create_default_callbacks(self) -> list[Any]:
            """Without Ray's process for its own data sets, which would start with every group of workers."""
            callbacks = super()._create_default_callbacks()
            return [each for each in callbacks if not isinstance(each, DatasetsCallback)]

    return WaitingTrainer
