"""Copies run folders to MLflow from a thread of the driving process; the only module that imports mlflow."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from orchestration.config import RunSpec, flatten
from orchestration.files import file_lock, log_to_file
from orchestration.run_folder import RunFolder, RunStatus

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
FIRST_LOOK_S = 10.0
"""MLflow is loaded so late [s], or at the end of a shorter run, so that it does not delay the first step."""
POINTS_PER_CALL = 900
"""MLflow takes up to 1000 metric points at once."""
PARAMS_PER_CALL = 100
MAX_TEXT = 5000
"""Longest tag and parameter that MLflow takes for sure [characters]."""
MAX_CHECKPOINT_BYTES = 500 * 1024**2
"""Larger weights are named by path instead of being copied."""

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

    def __init__(self, storage: Path, experiment: str, *, uri: str | None = None, logs: Path) -> None:
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
        self._folders: list[RunFolder] = []  # parents before their children
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._warned = False

    def add(self, folder: RunFolder) -> None:
        """Follow one more run, whose `config.yaml` and `status.json` are there; a parent comes before its children."""
        self._folders.append(folder)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def close(self, timeout_s: float = 60.0) -> bool:
        """Copy what is left and end; False if MLflow did not take everything in time (the next sweep or run tries)."""
        self._closing.set()
        self._thread.join(timeout_s)
        left = [folder for folder in self._folders if not _is_copied(folder)]
        if left:
            logger.warning(
                "%d runs are not wholly in MLflow (%s); their folders are complete, the next run under this name "
                "copies the rest",
                len(left),
                self.uri,
            )
        return not left

    def _work(self) -> None:
        self._closing.wait(FIRST_LOOK_S)
        self._add_leftovers()
        while True:
            closing = self._closing.is_set()  # read before the pass, so that the last pass sees everything
            self._follow_all()
            if closing:
                return
            self._closing.wait(TICK_S)

    def _follow_all(self) -> None:
        with self._tolerant():
            self._client = self._client or self._open()
        if self._client is not None:
            for folder in list(self._folders):
                with self._tolerant():
                    follow(self._client, self._experiment_id, folder)

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        """A lost metric must not end a run: faults are only told, the first of them aloud."""
        try:
            yield
        except Exception as error:
            level = logging.DEBUG if self._warned else logging.WARNING
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            logger.log(level, "MLflow (%s) does not take a run: %s; trying again", self.uri, text)
            self._warned = True

    def _add_leftovers(self) -> None:
        """Take over runs of this experiment whose process ended before MLflow had everything."""
        for path in sorted((self._storage / self._experiment).glob("**/tracking.json")):
            with contextlib.suppress(Exception):
                folder = RunFolder(path.parent)
                status = folder.status()
                if status.is_final and not _is_copied(folder) and status.pid != os.getpid():
                    self.add(folder)

    def _open(self) -> MlflowClient:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import mlflow

        log_to_file(self._logs / "mlflow.log", ("mlflow", "alembic", "sqlalchemy"))
        with file_lock(self._storage / ".mlflow.lock"):  # two processes that make one SQLite file leave it broken
            client = mlflow.MlflowClient(tracking_uri=self.uri)
            found = client.get_experiment_by_name(self._experiment)
            if found is None:
                place = (self._storage / "mlartifacts").as_uri() if self.uri.startswith("sqlite:") else None
                self._experiment_id = client.create_experiment(self._experiment, artifact_location=place)
            else:
                self._experiment_id = found.experiment_id
        return client


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
        state = {"run_id": _open_run(client, experiment_id, folder, status)}
        folder.write_tracking(state)
    if not state.get("described"):
        _describe(client, state["run_id"], folder, status)
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
    tags |= {"mlflow.source.name": "boxseg", "mlflow.source.type": "LOCAL", "status": "running"}
    tags |= {f"varied.{name}": str(value)[:MAX_TEXT] for name, value in status.values.items()}
    if "git_commit" in status.tags:
        tags["mlflow.source.git.commit"] = status.tags["git_commit"]
    name = status.id
    if status.parent is not None:
        tags["mlflow.parentRunId"] = RunFolder(folder.path / status.parent).read_tracking()["run_id"]
        name = f"{status.id[-2:]} {status.description}"[:200]
    created = round(1000 * status.created)
    run = client.create_run(experiment_id, start_time=created, tags={**status.tags, **tags}, run_name=name)
    return str(run.info.run_id)


def _describe(client: MlflowClient, run_id: str, folder: RunFolder, status: RunStatus) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    for part in _parts(list(read_params(folder).items()), PARAMS_PER_CALL):
        client.log_batch(run_id, params=[Param(name, str(value)[:MAX_TEXT]) for name, value in part])
    if "data_fingerprint" in status.tags:
        path = status.tags["data"]
        source = json.dumps({"uri": path})
        data = Dataset(Path(path).stem, status.tags["data_fingerprint"], source_type="local", source=source)
        client.log_inputs(run_id, datasets=[DatasetInput(data, [InputTag("mlflow.data.context", "training")])])


def read_params(folder: RunFolder) -> dict[str, str | int | float | bool]:
    """The settings in `config.yaml` by dotted name; those of a sweep too."""
    values = yaml.safe_load(folder.config_path.read_text())
    sweep = values.pop("sweep", {})
    return flatten(RunSpec.model_validate(values)) | {f"sweep.{name}": str(value) for name, value in sweep.items()}


def _copy_metrics(client: MlflowClient, folder: RunFolder, state: dict[str, Any]) -> None:
    """Log what is new; after a fault all of it comes again, and MLflow drops the points that it has already."""
    from mlflow.entities import Metric

    reports, offset = folder.reports_since(state.get("offset", 0))
    points = [
        Metric(name, value, round(1000 * report.time), report.step)
        for report in reports
        for name, value in report.metrics.items()
    ]
    for part in _parts(points, POINTS_PER_CALL):
        client.log_batch(state["run_id"], metrics=part)
    if points:
        state["offset"] = offset
        folder.write_tracking(state)


def _copy_samples(client: MlflowClient, folder: RunFolder, state: dict[str, Any]) -> None:
    have = state.setdefault("samples", [])
    for path in sorted(folder.path.glob("samples/[!.]*.png")):
        if path.name not in have:
            client.log_artifact(state["run_id"], str(path), "samples")
            have.append(path.name)
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
    if folder.best_checkpoint.exists():
        tags["best_checkpoint"] = str(folder.best_checkpoint)
        _copy_checkpoint(client, folder.best_checkpoint, run_id)
    table = folder.path / "table.md"
    tags["mlflow.note.content"] = (table.read_text() if table.exists() else status.description)[:MAX_TEXT]
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    end = round(1000 * (status.ended or time.time()))
    client.set_terminated(run_id, status=MLFLOW_STATUS[status.status], end_time=end)


def _copy_checkpoint(client: MlflowClient, checkpoint: Path, run_id: str) -> None:
    """Upload description and weights of a checkpoint, of its two networks those with the better mask AP."""
    checkpoint = checkpoint.resolve()  # `best` may move on meanwhile
    about = json.loads((checkpoint / "about.json").read_text())
    scores = about.get("metrics") or {}
    networks = sorted(checkpoint.glob("*.safetensors"), reverse=True)  # the teacher first, so that it wins a draw
    best = max(networks, key=lambda path: scores.get(f"val/{path.stem}_mask_ap", -1.0), default=None)
    files = [checkpoint / "about.json"]
    if best is not None and best.stat().st_size <= MAX_CHECKPOINT_BYTES:
        files.append(best)
    for path in files:
        client.log_artifact(run_id, str(path), "checkpoints/best")


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _is_copied(folder: RunFolder) -> bool:
    """True if MLflow has the end of the run."""
    status = folder.status()
    return folder.read_tracking().get("ended") == [status.status, status.ended]
