"""Copies run folders to MLflow from a thread of the driving process; the only module that imports mlflow."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from orchestration.config import RunSpec, flatten
from orchestration.run_folder import RunFolder, RunStatus, parse_reports

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "GIT_PYTHON_REFRESH": "quiet",
}
TICK_S = 2.0
"""Time between two looks at the folders [s]."""
FIRST_LOOK_S = 20.0
"""MLflow is loaded when the first report is there or after this time [s], so that it does not delay the first step."""
POINTS_PER_CALL = 900
"""MLflow takes up to 1000 metric points at once."""
PARAMS_PER_CALL = 100
MAX_TEXT = 5000
"""Longest tag and parameter that MLflow takes for sure [characters]."""
MAX_CHECKPOINT_BYTES = 500 * 1024**2
"""Larger checkpoints are named by path instead of being copied."""

MLFLOW_STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}

logger = logging.getLogger("boxseg.tracking")


def tracking_uri(storage: Path, uri: str | None = None) -> str:
    """The MLflow tracking URI of a storage folder: `uri` if given, else an SQLite file in the folder."""
    return uri or f"sqlite:///{storage.absolute()}/mlflow.db"


class Tracker:
    """Follows run folders and repeats what they say in MLflow, until `close`.

    Training never waits for it: it reads `metrics.jsonl` from where it stopped, keeps that place in `tracking.json`,
    and tries again at the next tick whatever MLflow did not take.
    """

    def __init__(self, storage: Path, experiment: str, *, uri: str | None = None, logs: Path | None = None) -> None:
        """Nothing is opened before `start`.

        Args:
            storage: Folder of all runs; the SQLite file and its artifacts lie there when `uri` is null.
            experiment: Name of the MLflow experiment.
            uri: MLflow tracking URI.
            logs: Folder for MLflow's own messages.
        """
        self.uri = tracking_uri(storage, uri)
        self._storage = storage.absolute()
        self._experiment = experiment
        self._logs = logs
        self._runs: dict[Path, None] = {}  # in order, parents first
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._warned = False

    def add(self, folder: RunFolder) -> None:
        """Follow one more run, whose `config.yaml` and `status.json` are there; a parent comes before its children."""
        with self._lock:
            self._runs.setdefault(folder.path)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def close(self, timeout_s: float = 60.0) -> bool:
        """Copy what is left and end; False if MLflow did not take everything in time (the next sweep or run tries)."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        left = [path for path in self._runs if not _is_copied(RunFolder(path))]
        if left:
            logger.warning(
                "%d runs are not wholly in MLflow (%s); their folders are complete, the next run under this name "
                "copies the rest",
                len(left),
                self.uri,
            )
        return not left

    def url(self, folder: RunFolder) -> str | None:
        """Where an MLflow server shows the run; only for http(s) tracking URIs."""
        state = folder.read_tracking()
        if not self.uri.startswith("http") or "run_id" not in state:
            return None
        return f"{self.uri.rstrip('/')}/#/experiments/{state['experiment_id']}/runs/{state['run_id']}"

    def _work(self) -> None:
        self._wait_for_first_report()
        self._add_leftovers()
        while True:
            closing = self._closing.is_set()  # read before the pass, so that the last pass sees everything
            self._follow_all()
            if closing:
                return
            self._closing.wait(TICK_S)

    def _wait_for_first_report(self) -> None:
        until = time.monotonic() + FIRST_LOOK_S
        while time.monotonic() < until and not self._closing.wait(0.5):
            with self._lock:
                if any(RunFolder(path).metrics_path.exists() for path in self._runs):
                    return

    def _add_leftovers(self) -> None:
        """Take over runs of this experiment whose process ended before MLflow had everything."""
        for path in sorted((self._storage / self._experiment).glob("**/tracking.json")):
            with contextlib.suppress(Exception):
                folder = RunFolder(path.parent)
                status = folder.status()
                if status.is_final and not _is_copied(folder) and status.pid != os.getpid():
                    self.add(folder)

    def _follow_all(self) -> None:
        with self._lock:
            runs = list(self._runs)
        for path in runs:
            try:
                if self._client is None:
                    self._open()
                follow(self._open_client(), self._experiment_id, RunFolder(path))
            except Exception as error:  # a lost metric must not end a run
                level = logging.DEBUG if self._warned else logging.WARNING
                logger.log(level, "MLflow (%s) does not take a run: %s; trying again", self.uri, _one_line(error))
                self._warned = True
                return

    def _open_client(self) -> MlflowClient:
        assert self._client is not None
        return self._client

    def _open(self) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import mlflow

        _quieten(self._logs)
        with _alone(self._storage / ".mlflow.lock"):  # two processes that make one SQLite file leave it broken
            client = mlflow.MlflowClient(tracking_uri=self.uri)
            found = client.get_experiment_by_name(self._experiment)
            if found is None:
                local = self.uri.startswith("sqlite:")
                place = (self._storage / "mlartifacts").as_uri() if local else None
                self._experiment_id = client.create_experiment(self._experiment, artifact_location=place)
            else:
                self._experiment_id = found.experiment_id
        self._client = client


def follow(client: MlflowClient, experiment_id: str, folder: RunFolder) -> None:
    """Bring MLflow up to date with one folder; safe to repeat after a stop at any place.

    Args:
        client: An open client.
        experiment_id: Where new runs go.
        folder: The run to copy.
    """
    status = folder.status()
    state = folder.read_tracking()
    if state.get("ended") == [status.status, status.ended]:
        return
    if "run_id" not in state:
        state = {"run_id": _open_run(client, experiment_id, folder, status), "experiment_id": experiment_id}
        folder.write_tracking(state)
    if not state.get("described"):
        _describe(client, state["run_id"], status, read_params(folder))
        state["described"] = True
        folder.write_tracking(state)
    if "ended" in state and not status.is_final:  # resumed
        client.update_run(state["run_id"], status="RUNNING")
        del state["ended"]
    _copy_metrics(client, folder, state)
    _copy_samples(client, folder, state)
    if status.is_final:
        _end_run(client, folder, status, state["run_id"])
        state["ended"] = [status.status, status.ended]
        folder.write_tracking(state)


def _open_run(client: MlflowClient, experiment_id: str, folder: RunFolder, status: RunStatus) -> str:
    """Id of the folder's MLflow run, found by its tag or made."""
    found = client.search_runs([experiment_id], f"tags.`boxseg.run` = '{status.id}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {"boxseg.run": status.id, "boxseg.kind": status.kind, "boxseg.folder": status.folder}
    tags |= {"mlflow.user": _user(), "mlflow.source.name": "boxseg", "mlflow.source.type": "LOCAL", "status": "running"}
    if "git_commit" in status.tags:
        tags["mlflow.source.git.commit"] = status.tags["git_commit"]
    if status.parent is not None:
        parent = RunFolder(folder.path / status.parent).read_tracking()
        tags["mlflow.parentRunId"] = parent["run_id"]
    name = f"{status.id[-2:]} {status.description}" if status.parent is not None else status.id
    run = client.create_run(
        experiment_id, start_time=round(1000 * status.created), tags={**status.tags, **tags}, run_name=name[:200]
    )
    return str(run.info.run_id)


def _describe(client: MlflowClient, run_id: str, status: RunStatus, params: dict[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    entries = [Param(key, str(value)[:MAX_TEXT]) for key, value in params.items()]
    for start in range(0, len(entries), PARAMS_PER_CALL):
        client.log_batch(run_id, params=entries[start : start + PARAMS_PER_CALL])
    varied = [RunTag(f"varied.{name}", str(value)[:MAX_TEXT]) for name, value in status.values.items()]
    if varied:
        client.log_batch(run_id, tags=varied)
    if "data_fingerprint" in status.tags:
        data = Dataset(
            name=Path(status.tags.get("data", "data")).stem[:200] or "data",
            digest=status.tags["data_fingerprint"][:36],
            source_type="local",
            source=json.dumps({"uri": status.tags.get("data", "")}),
        )
        client.log_inputs(run_id, datasets=[DatasetInput(data, [InputTag("mlflow.data.context", "training")])])


def read_params(folder: RunFolder) -> dict[str, str | int | float | bool]:
    """The settings in `config.yaml` by dotted name; those of a sweep too."""
    values = yaml.safe_load(folder.config_path.read_text())
    params = flatten(RunSpec.model_validate({name: value for name, value in values.items() if name != "sweep"}))
    return params | {f"sweep.{name}": str(value) for name, value in values.get("sweep", {}).items()}


def _copy_metrics(client: MlflowClient, folder: RunFolder, state: dict[str, Any]) -> None:
    """Log whole new lines; the place is kept after each call (MLflow drops a point that it has already)."""
    from mlflow.entities import Metric

    if not folder.metrics_path.exists():
        return
    with folder.metrics_path.open("rb") as file:
        file.seek(state.get("offset", 0))
        lines = file.read().splitlines(keepends=True)
    points: list[Metric] = []
    offset = state.get("offset", 0)
    for index, line in enumerate(lines):
        if not line.endswith(b"\n"):
            break
        offset += len(line)
        for report in parse_reports(line):
            at = round(1000 * report.time)
            points += [Metric(key, value, at, report.step) for key, value in report.metrics.items()]
        is_last = index + 1 == len(lines) or not lines[index + 1].endswith(b"\n")
        if points and (is_last or len(points) > POINTS_PER_CALL - 100):
            client.log_batch(state["run_id"], metrics=points)
            points = []
            state["offset"] = offset
            folder.write_tracking(state)


def _copy_samples(client: MlflowClient, folder: RunFolder, state: dict[str, Any]) -> None:
    have = set(state.get("samples", []))
    new = sorted(path for path in folder.path.glob("samples/[!.]*.png") if path.name not in have)
    for path in new:
        client.log_artifact(state["run_id"], str(path), "samples")
        state["samples"] = sorted(have := have | {path.name})
        folder.write_tracking(state)


def _end_run(client: MlflowClient, folder: RunFolder, status: RunStatus, run_id: str) -> None:
    from mlflow.entities import RunTag

    for name in ("config.yaml", "status.json", "journal.jsonl", "table.md"):
        if (folder.path / name).exists():
            client.log_artifact(run_id, str(folder.path / name))
    tags: dict[str, str] = {"status": status.status}
    if status.failure is not None:
        tags |= {"failure_class": status.failure.kind, "failure": status.failure.text[:MAX_TEXT]}
    if status.status == "stopped":
        tags["stopped_by"] = "asha"
    tags |= _copy_checkpoint(client, folder, status, run_id)
    table = folder.path / "table.md"
    note = table.read_text() if table.exists() else status.description
    if note:
        tags["mlflow.note.content"] = note[:MAX_TEXT]
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    end = round(1000 * (status.ended or time.time()))
    client.set_terminated(run_id, status=MLFLOW_STATUS[status.status], end_time=end)


def _copy_checkpoint(client: MlflowClient, folder: RunFolder, status: RunStatus, run_id: str) -> dict[str, str]:
    """Upload weights and description of the best checkpoint; of trials only its path, the sweep has the best one."""
    best = folder.best_checkpoint
    if not best.exists():
        return {}
    files = [path for path in sorted(best.iterdir()) if path.suffix in (".safetensors", ".json")]
    small = sum(path.stat().st_size for path in files) <= MAX_CHECKPOINT_BYTES
    if status.parent is None and small:
        for path in files:
            client.log_artifact(run_id, str(path), "checkpoints/best")
    return {"best_checkpoint": str(best)}


def _is_copied(folder: RunFolder) -> bool:
    """True if MLflow has the end of the run."""
    status = folder.status()
    return folder.read_tracking().get("ended") == [status.status, status.ended]


def _quieten(logs: Path | None) -> None:
    """Send the log records of MLflow and its database layer to a file instead of the terminal."""
    handler: logging.Handler = logging.NullHandler()
    if logs is not None:
        logs.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(logs / "mlflow.log", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("mlflow", "alembic", "sqlalchemy"):
        other = logging.getLogger(name)
        other.handlers = [handler]
        other.propagate = False


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a file lock of this machine."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
