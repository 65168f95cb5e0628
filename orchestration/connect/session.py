"""The Ray that a command uses: one that starts and ends with it, or a running cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from boxseg.files.writing import no_link
from orchestration.config.spec import RunSpec
from orchestration.connect.access import ANSWER_S, choose_mode
from orchestration.connect.cluster import (
    check_storage_is_shared,
    check_store_is_shared,
    shortages_told,
)
from orchestration.connect.ray_start import embedded_ray, own_signals
from orchestration.errors import ResourceError
from orchestration.planning.preflight import count_places, runner_of, uses_cluster
from orchestration.record.files import log_to_file
from orchestration.store.places import address_of

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # limits how long a report may go unnoticed
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # 1 on a cluster
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    # After 20 s without an answer Ray's servers would drop a connection; a driver whose head was cut off would notice
    # that only after five minutes, in which its trials would stand still.
    "RAY_grpc_keepalive_timeout_ms": "120000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our own files have the metrics
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial has none
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "120",  # a trial that is stopped may send its files first
    "TUNE_MAX_PENDING_TRIALS_PG": "auto",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@contextlib.contextmanager
def start_ray(
    spec: RunSpec, *, logs: Path, give_up: Callable[[], bool] = lambda: False
) -> Iterator[list[dict[str, float]]]:
    """Start Ray here, or connect to the cluster of `resources.address` or RAY_ADDRESS; end or leave it afterwards.

    The embedded Ray listens on the loopback address only, and needs a token. If this process is connected to a Ray
    already, that one is used and left running.

    Args:
        spec: The run or sweep; its resources must fit.
        logs: Folder for the logs of Ray and its libraries.
        give_up: Tells whether a failed start shall not be tried again, because somebody wants an end.

    Returns:
        What each node of Ray has, by Ray's names: `CPU` and, if there are any, `GPU`.

    Raises:
        ResourceError: Ray does not start; or the cluster does not answer, refuses the connection, is too small for one
            run, or has nodes that do not see the storage.
        KeyboardInterrupt: a start failed, and somebody wants an end.
    """
    _set_environment(on_cluster=uses_cluster(spec))
    logs.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(open(logs / "ray-output.log", "w", opener=no_link))
        stack.enter_context(contextlib.redirect_stdout(output))
        if uses_cluster(spec):
            _check_cluster(_address(spec))
        if not _has_ray():
            if uses_cluster(spec):
                stack.enter_context(_cluster(spec))
            else:
                dashboard = runner_of(spec) == "ray_train"
                stack.enter_context(embedded_ray(dashboard=dashboard, logs=logs, give_up=give_up))
        import ray

        log_to_file(
            logs / "ray.log",
            ("ray", "ray.tune", "ray.train", "ray.data", "optuna"),
            level=logging.INFO,
        )
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        _check_room(spec, nodes)
        if uses_cluster(spec):
            storage = spec.storage.absolute()
            is_store = address_of(storage) is not None
            (check_store_is_shared if is_store else check_storage_is_shared)(storage)
        with shortages_told():
            yield nodes


def start_briefly() -> None:
    """Start a Ray as a sweep on this machine does, and end it.

    Raises:
        ResourceError: it does not start.
    """
    _set_environment(on_cluster=False)
    with embedded_ray(dashboard=False):
        pass


def _set_environment(*, on_cluster: bool) -> None:
    if on_cluster:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _has_ray() -> bool:
    """Whether this process is connected to a Ray, without importing it for that."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _address(spec: RunSpec) -> str:
    """Address of the running cluster, in Ray's form."""
    return spec.resources.address or os.environ["RAY_ADDRESS"]


def _check_cluster(address: str) -> None:
    """Refuse a cluster that does not answer or that should have a token, before Ray waits for it."""
    choose_mode(address)
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname is None or parts.port is None:
        return  # `auto`, or a form that only Ray understands
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=ANSWER_S).close()
    except OSError as error:
        raise ResourceError(
            f"nothing answers at {address} ({error}); start the Ray cluster, or check resources.address and RAY_ADDRESS"
        ) from error


@contextlib.contextmanager
def _cluster(spec: RunSpec) -> Iterator[None]:
    """Connect to a running cluster, and disconnect on leaving the block."""
    import ray

    # its processes did not inherit our environment
    settings = {name: os.environ[name] for name in ENVIRONMENT}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        try:
            # None: RAY_ADDRESS
            with own_signals():
                ray.init(
                    address=spec.resources.address, runtime_env={"env_vars": settings}, **quiet
                )
        except Exception as error:
            raise ResourceError(
                f"the Ray cluster at {_address(spec)} does not answer or refuses the connection: {error}; "
                "check resources.address and RAY_ADDRESS, and for a cluster with tokens "
                "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            ) from error
        yield
    finally:
        ray.shutdown()


def _check_room(spec: RunSpec, nodes: list[dict[str, float]]) -> None:
    resources, workers = spec.resources, spec.resources.least_workers
    places = count_places(resources, nodes)
    if places < workers:
        have = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
        raise ResourceError(
            f"one run needs {workers} workers of {resources.cpus_per_worker:g} CPU cores and "
            f"{resources.gpus_per_worker:g} GPUs, but only {places} find a place, each whole on "
            f"one of the {len(nodes)} nodes with {have['CPU']:g} CPU cores and {have['GPU']:g} "
            "GPUs in all; lower resources.workers or what each worker takes, or use a larger "
            "cluster"
        )
