"""The training of one run, by itself or as a trial inside Ray Tune: in this process, or by workers of Ray Train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestration.config.spec import ResourcesConfig
from orchestration.errors import ResourceError
from orchestration.execute.payload import Payload
from orchestration.execute.worker import train_here, train_worker
from orchestration.record.failures import Failure, error_of
from orchestration.record.run_folder import RunFolder, new_id

if TYPE_CHECKING:
    from ray.train import ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

RESIZE_S = 60.0
"""Time between two attempts to give an elastic run more workers [s]."""
WORKER_FAILURES = 3
"""How often lost workers are replaced; the run goes on from its last checkpoint."""


def train_payload(payload: Payload, *, in_tune: bool = False) -> None:
    """Train and wait for the end, which is then in the run's folder; `in_tune`, every evaluation is reported to Tune.

    Raises:
        Exception: what ended the run.
    """
    if payload.runner == "inline":
        send = None
        if in_tune:
            from ray.tune import report as send
        train_here(payload, device=payload.device, send=send)
        return
    callbacks = []
    if in_tune:
        from ray.tune.integration.ray_train import TuneReportCallback

        callbacks = [TuneReportCallback()]
    _fit(payload, callbacks)


def _fit(payload: Payload, callbacks: Sequence[Any]) -> None:
    """Train with the workers of Ray Train and wait; lost workers are replaced a few times.

    Raises:
        ResourceError: the workers cannot be placed.
        BoxSegError: a worker's error that would only come again.
        Exception: what Ray Train raises when a worker failed too often; the run's folder names the cause.
    """
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    from orchestration.connect.scaling import find_to_stay

    resources = payload.spec.resources
    trainer = _make_trainer(payload, callbacks)
    try:
        failure = getattr(trainer.fit(), "return_value", None)  # not in every version
    except ControllerError as error:
        cause = error.controller_failure
        if isinstance(cause, WorkerGroupStartupFailedError):
            raise ResourceError(
                f"the {resources.workers} workers did not come together: {cause}; look whether the nodes reach one "
                "another at any port, and whether all of them stay"
            ) from error
        raise ResourceError(
            f"Ray could not place {resources.workers} workers of {resources.cpus_per_worker:g} "
            f"CPU cores and {resources.gpus_per_worker:g} GPUs: {cause}; lower resources, or wait "
            "until the cluster is free"
        ) from error
    except WorkerGroupError as error:
        if (raised := find_to_stay(error)) is not None:
            raise raised from error
        raise
    if isinstance(failure, Failure):
        raise error_of(failure)


def _make_trainer(payload: Payload, callbacks: Sequence[Any]) -> DataParallelTrainer:
    import ray.train

    from orchestration.connect.scaling import trainer_with

    resources = payload.spec.resources
    # one worker needs no process group, so its driver does not load torch
    process_group = None
    if resources.workers > 1:
        from orchestration.connect.process_group import ProcessGroupConfig

        process_group = ProcessGroupConfig()
    return trainer_with(payload.share)(
        train_worker,
        backend_config=process_group,
        train_loop_config={"payload": payload},
        scaling_config=_scaling(resources),
        run_config=ray.train.RunConfig(
            # a new name, so that Ray does not read its own state of an earlier start: ours is in the folder
            name=new_id(),
            storage_path=str(RunFolder(payload.folder).logs / "ray"),
            failure_config=ray.train.FailureConfig(
                max_failures=WORKER_FAILURES,
                # starts that failed although there were places, as may happen when nodes of an elastic run leave
                # mypy sees the class of Ray Train V1
                controller_failure_limit=10 if resources.min_workers else 2,  # type: ignore[call-arg]
            ),
            callbacks=list(callbacks),
        ),
    )


def _scaling(resources: ResourcesConfig) -> ScalingConfig:
    import ray.train

    scale: dict[str, Any] = {"num_workers": resources.workers}
    if resources.min_workers:
        span = (resources.min_workers, resources.workers)
        scale = {"num_workers": span, "elastic_resize_monitor_interval_s": RESIZE_S}
    per_worker = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return ray.train.ScalingConfig(
        **scale,
        use_gpu=resources.gpus_per_worker > 0,
        # Ray takes no amount of zero
        resources_per_worker={name: amount for name, amount in per_worker.items() if amount},
    )
