"""The Ray that a command uses: one that starts and ends with it, or a running cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from orchestration.config import RunSpec
from orchestration.errors import ResourceError

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how long a report may wait to be noticed
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our files hold the metrics
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed has none
    "TUNE_MAX_PENDING_TRIALS_PG": "auto",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
OBJECT_STORE_BYTES = 200 * 1024**2
"""Ray's least is 75 MiB; settings and metrics are all that passes through it."""


@dataclass(frozen=True)
class RaySession:
    """A Ray to run things on."""

    embedded: bool
    """True if it started with this command and ends with it."""
    cpus: float
    gpus: float


@contextlib.contextmanager
def start_ray(spec: RunSpec, *, logs: Path) -> Iterator[RaySession]:
    """Start Ray here, or connect to the cluster of `resources.address` or RAY_ADDRESS; end it afterwards.

    The embedded Ray shows its dashboard on the loopback address only, and whoever wants to run something on it needs a
    token. Token and Ray's own files lie in a temporary folder of mode 0700 that goes when Ray ends. A Ray that this
    process has already is used and left alone.

    Args:
        spec: The run or sweep; its resources must fit.
        logs: Folder for what Ray's libraries have to say.

    Raises:
        ResourceError: the cluster does not answer, refuses us, or is too small for one run.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = spec.resources.address or os.environ.get("RAY_ADDRESS")
    embedded = address in (None, "", "local")
    _remove_leftovers()
    private = Path(tempfile.mkdtemp(prefix=f"boxseg-ray-{os.getpid()}-"))
    if embedded:
        _prepare_token(private)
    elif "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token" if _has_token() else "disabled"
    import ray

    logs.mkdir(parents=True, exist_ok=True)
    started_here = not ray.is_initialized()
    try:
        with (logs / "ray-output.log").open("w") as output, contextlib.redirect_stdout(output):
            if started_here:
                _connect(None if embedded else address, private)
            _silence(logs)
            yield _session(spec, embedded=embedded)
    finally:
        if started_here:
            ray.shutdown()
            _keep_worker_output(private / "ray", logs)
        shutil.rmtree(private, ignore_errors=True)


def _connect(address: str | None, private: Path) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is not None:
            ray.init(address=address, **quiet)
            return
        ray.init(
            include_dashboard=True,  # Ray Train frees the workers of a stopped trial through its state API
            dashboard_host="127.0.0.1",
            dashboard_port=_free_port(),
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(private / "ray"),  # one level down: Ray opens its own folder to everybody
            **quiet,
        )
    except Exception as error:
        if address is None:
            raise ResourceError(f"Ray does not start on this machine: {error}; `boxseg doctor` looks closer") from error
        raise ResourceError(
            f"the Ray cluster at {address} does not answer or refuses us: {error}; check resources.address and "
            "RAY_ADDRESS, and for a cluster with tokens RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        ) from error


def _session(spec: RunSpec, *, embedded: bool) -> RaySession:
    import ray

    have = ray.cluster_resources()
    session = RaySession(embedded, cpus=have.get("CPU", 0), gpus=have.get("GPU", 0))
    resources = spec.resources
    needs = {
        "CPU cores": (resources.workers * resources.cpus_per_worker, session.cpus),
        "GPUs": (resources.workers * resources.gpus_per_worker, session.gpus),
    }
    for what, (need, available) in needs.items():
        if need > available:
            raise ResourceError(
                f"one run needs {need:g} {what} ({resources.workers} workers), but Ray has {available:g}; "
                "lower resources.workers or what each worker takes, or use a larger cluster"
            )
    return session


def _prepare_token(private: Path) -> None:
    """Give the embedded Ray and all its processes a token of their own, unless the user chose a mode."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or _has_token(home=False):
        return
    path = private / "token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def _remove_leftovers() -> None:
    """Delete the private folders of processes that were killed before they could."""
    for path in Path(tempfile.gettempdir()).glob("boxseg-ray-*-*"):
        owner = path.name.split("-")[2]
        if owner.isdigit() and not psutil.pid_exists(int(owner)) and path.stat().st_uid == os.getuid():
            shutil.rmtree(path, ignore_errors=True)


def _has_token(*, home: bool = True) -> bool:
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named:
        return Path(named).exists()
    return home and (Path.home() / ".ray" / "auth_token").exists()


def _keep_worker_output(ray_folder: Path, logs: Path) -> None:
    """Copy what workers of the embedded Ray printed to the run's logs before Ray's folder goes."""
    for path in ray_folder.glob("session_2*/logs/worker-*"):
        if path.stat().st_size:
            (logs / "workers").mkdir(exist_ok=True)
            shutil.copy(path, logs / "workers" / path.name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _silence(logs: Path) -> None:
    """Send the log records of Ray's libraries in this process to a file instead of the terminal."""
    file = logging.FileHandler(logs / "ray.log", delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("ray", "ray.tune", "ray.train", "ray.data", "optuna"):
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
        logger.addHandler(file)
        logger.propagate = False
        logger.setLevel(logging.INFO)
