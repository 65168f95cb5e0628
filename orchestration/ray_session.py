"""The Ray that a command uses: one that starts and ends with it, or a running cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from orchestration.access import ANSWER_S, choose_mode
from orchestration.cluster import check_storage, shortages_told
from orchestration.config import RunSpec
from orchestration.errors import ResourceError
from orchestration.files import log_to_file
from orchestration.preflight import count_places, uses_cluster

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how long a report may wait to be noticed
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # 1 on a cluster
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our files hold the metrics
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed has none
    "TUNE_MAX_PENDING_TRIALS_PG": "auto",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # this machine alone: Ray takes 127.0.0.1 as its address on Linux as well
    "GLOO_SOCKET_IFNAME": "lo",
}
"""What makes a Ray that is started here listen on the loopback address only."""
TOKEN = secrets.token_hex(32)
"""Token of every Ray that this process starts; Ray reads it once, so a second one would be refused by the first."""
OBJECT_STORE_BYTES = 200 * 1024**2
"""Ray's least is 75 MiB; settings and metrics are all that passes through it."""


@contextlib.contextmanager
def start_ray(spec: RunSpec, *, logs: Path) -> Iterator[list[dict[str, float]]]:
    """Start Ray here, or connect to the cluster of `resources.address` or RAY_ADDRESS; end it afterwards.

    The embedded Ray listens on the loopback address only, and whoever wants to run something on it needs a token.
    Token and Ray's own files lie in a temporary folder of mode 0700 that goes when Ray ends. A Ray that this process
    has already is used and left alone.

    Args:
        spec: The run or sweep; its resources must fit.
        logs: Folder for what Ray's libraries have to say.

    Returns:
        What each node of Ray has, by Ray's names: `CPU` and, if there are any, `GPU`.

    Raises:
        ResourceError: the cluster does not answer, refuses us, is too small for one run, or has nodes that do not see
            the storage.
    """
    if uses_cluster(spec):
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _remove_leftovers()
    if uses_cluster(spec):
        _check_cluster(_address(spec))
    private = Path(tempfile.mkdtemp(prefix=f"boxseg-ray-{os.getpid()}-"))
    if not uses_cluster(spec):
        os.environ.update(LOOPBACK)
        _prepare_token(private)
    import ray

    logs.mkdir(parents=True, exist_ok=True)
    started_here = not ray.is_initialized()
    try:
        with (logs / "ray-output.log").open("w") as output, contextlib.redirect_stdout(output):
            if started_here:
                _connect(spec, private)
            names = ("ray", "ray.tune", "ray.train", "ray.data", "optuna")
            log_to_file(logs / "ray.log", names, level=logging.INFO)
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            _check_room(spec, nodes)
            if uses_cluster(spec):
                check_storage(spec.storage.absolute())
            with shortages_told():
                yield nodes
    finally:
        if started_here:
            ray.shutdown()
            _keep_worker_output(private / "ray", logs)
        shutil.rmtree(private, ignore_errors=True)


def _address(spec: RunSpec) -> str:
    """Address of the running cluster, as Ray takes it."""
    return spec.resources.address or os.environ["RAY_ADDRESS"]


def _check_cluster(address: str) -> None:
    """Refuse a cluster that does not answer or that should have a token, before Ray waits for it."""
    choose_mode(address)
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname is None or parts.port is None:
        return  # `auto`, or what only Ray understands
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=ANSWER_S).close()
    except OSError as error:
        raise ResourceError(
            f"nothing answers at {address} ({error}); start the Ray cluster, or check resources.address and RAY_ADDRESS"
        ) from error


def _connect(spec: RunSpec, private: Path) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        if uses_cluster(spec):
            settings = {name: os.environ[name] for name in ENVIRONMENT}  # its processes did not inherit ours
            ray.init(address=spec.resources.address, runtime_env={"env_vars": settings}, **quiet)  # null: RAY_ADDRESS
            return
        ray.init(
            include_dashboard=True,  # Ray Train frees the workers of a stopped trial through its state API
            dashboard_host="127.0.0.1",
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(private / "ray"),  # one level down: Ray opens its own folder to everybody
            **quiet,
        )
    except Exception as error:
        if not uses_cluster(spec):
            raise ResourceError(
                f"Ray does not start on this machine: {error}; `boxseg doctor` looks at what it needs"
            ) from error
        raise ResourceError(
            f"the Ray cluster at {_address(spec)} does not answer or refuses us: {error}; check resources.address and "
            "RAY_ADDRESS, and for a cluster with tokens RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        ) from error
    finally:  # Ray's own handler aborts the process three seconds after a SIGTERM, whatever it still saves
        if on_term is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_term)


def _check_room(spec: RunSpec, nodes: list[dict[str, float]]) -> None:
    resources, workers = spec.resources, spec.resources.least_workers
    places = count_places(resources, nodes)
    if places < workers:
        have = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
        raise ResourceError(
            f"one run needs {workers} workers of {resources.cpus_per_worker:g} CPU cores and "
            f"{resources.gpus_per_worker:g} GPUs, but only {places} find a place, each whole on one of the "
            f"{len(nodes)} nodes with {have['CPU']:g} CPU cores and {have['GPU']:g} GPUs in all; lower "
            "resources.workers or what each worker takes, or use a larger cluster"
        )


def _prepare_token(private: Path) -> None:
    """Give the embedded Ray and all its processes a token of their own, unless the user chose a mode."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    has_token = os.environ.get("RAY_AUTH_TOKEN") or (named and Path(named).exists())
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or has_token:
        return
    path = private / "token"
    path.touch(mode=0o600)
    path.write_text(TOKEN)
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def _remove_leftovers() -> None:
    """Delete the private folders of processes that were killed before they could."""
    for path in Path(tempfile.gettempdir()).glob("boxseg-ray-*-*"):
        owner = path.name.split("-")[2]
        with contextlib.suppress(FileNotFoundError):  # another process that starts was faster
            if owner.isdigit() and not psutil.pid_exists(int(owner)) and path.stat().st_uid == os.getuid():
                shutil.rmtree(path, ignore_errors=True)


def _keep_worker_output(ray_folder: Path, logs: Path) -> None:
    """Copy what workers of the embedded Ray printed to the run's logs before Ray's folder goes."""
    for path in ray_folder.glob("session_2*/logs/worker-*"):
        if path.stat().st_size:
            (logs / "workers").mkdir(exist_ok=True)
            shutil.copy(path, logs / "workers" / path.name)
