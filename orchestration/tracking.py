"""Copies run folders to MLflow from a thread of the driving process."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxseg.criterion import MASK_AP, Criterion
from boxseg.errors import ConfigError
from orchestration.config import SweepSpec
from orchestration.files import file_lock, log_to_file
from orchestration.find_runs import list_runs
from orchestration.resolved import params_of, read_resolved
from orchestration.run_folder import RunFolder, RunStatus
from orchestration.table import markdown_table, read_table
from orchestration.tracking_artifacts import SETTINGS, copy_checkpoint, copy_files, copy_model, copy_results
from orchestration.tracking_pages import save_comparison

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # it repeats what makes something too; the tracker looks first
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "GIT_PYTHON_REFRESH": "quiet",
}
TICK_S = 2.0
"""Time between two looks at the folders [s]."""
FIRST_LOOK_S = 10.0
"""MLflow is loaded so late [s], or at the end of a shorter run, so that it does not delay the first step."""
LAST_PASSES = 6
"""How often the end is tried with a store that answers but fails, every half second."""
POINTS_PER_CALL = 900
"""MLflow takes up to 1000 metric points at once."""
PARAMS_PER_CALL = 100
MAX_TEXT = 5000
"""Longest tag and parameter that MLflow takes for sure [characters]."""

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""URIs that begin so are read without a server, so artifacts lie beside the runs."""

END_TAGS = ("failure_class", "failure", "stopped_by")
"""Tags that only some ends have; they are taken back when the run goes on."""

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
        self._settled: set[RunFolder] = set()
        self._copied: list[RunFolder] = []  # settled, and wholly in MLflow
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._warned = False

    def add(self, folder: RunFolder) -> None:
        """Follow one more run, whose `config.yaml` and `status.json` are there; a parent comes before its children."""
        if folder.read_tracking().get("uri") != self.uri:
            folder.write_tracking({"uri": self.uri})  # at once, so that the run is found even if MLflow never answers
        self._folders.append(folder)

    def settle(self, folder: RunFolder) -> None:
        """Say that a run has ended for good: once MLflow has all of it, it is looked at only once more, by `close`."""
        self._settled.add(folder)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def close(self, timeout_s: float = 60.0) -> bool:
        """Copy what is left and end; False if MLflow did not take everything in time (the next sweep or run tries)."""
        self._closing.set()
        self._thread.join(timeout_s)
        present = [folder for folder in self._folders if folder.status_path.exists()]  # storage can go meanwhile
        left = [folder for folder in present if not _is_copied(folder)]
        if left:
            logger.warning(
                "%d runs are not wholly in MLflow (%s); their folders are complete, the next run under this name and "
                "`boxseg ui` copy the rest",
                len(left),
                self.uri,
            )
        return not left

    def catch_up(self) -> None:
        """Copy what ended processes left behind, in this thread; faults are told, not raised."""
        self._add_leftovers()
        if self._folders:
            self._follow_all()

    def _work(self) -> None:
        self._closing.wait(FIRST_LOOK_S)
        self._add_leftovers()
        while not self._closing.is_set():
            self._follow_all()
            self._closing.wait(TICK_S)
        self._folders += self._copied  # a worker that ended late may have named a cause better
        for _ in range(LAST_PASSES):
            if self._follow_all() or not self._answers():
                return
            time.sleep(0.5)

    def _follow_all(self) -> bool:
        """Bring MLflow up to date with all folders; False if it did not take some of them."""
        if self._client is None:
            with self._tolerant():
                self._client = self._open()
        if self._client is None:
            return False
        taken = True
        for folder in list(self._folders):
            done, settled = False, folder in self._settled
            with self._tolerant():
                follow(self._client, self._experiment_id, folder)
                done = True
            taken = taken and done
            if done and settled and not self._closing.is_set():
                self._folders.remove(folder)
                self._copied.append(folder)
            if not done and not self._answers():
                return False  # all others would wait for the same dead server
        return taken

    def _answers(self) -> bool:
        """Whether the store can be reached at all."""
        with contextlib.suppress(Exception):
            return self._client is not None and bool(self._client.get_experiment(self._experiment_id))
        return False

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
        """Take over runs of this experiment whose process ended before MLflow had everything; parents come first."""
        place = self._storage / self._experiment
        for path in [*sorted(place.glob("*/tracking.json")), *sorted(place.glob("*/*/tracking.json"))]:
            with contextlib.suppress(Exception):
                folder = RunFolder(path.parent)
                same_store = folder.read_tracking().get("uri", self.uri) == self.uri
                if same_store and not _is_copied(folder):
                    status = folder.status()
                    if status.is_final and status.pid != os.getpid():
                        self._folders.append(folder)

    def _open(self) -> MlflowClient:
        log_to_file(self._logs / "mlflow.log", ("mlflow", "alembic", "sqlalchemy"))
        with file_lock(self._storage / ".mlflow.lock"):  # two processes that make one SQLite file leave it broken
            client = open_client(self.uri)
            found = client.get_experiment_by_name(self._experiment)
            if found is None:
                place = (self._storage / "mlartifacts").as_uri() if self.uri.startswith(DATABASES) else None
                self._experiment_id = client.create_experiment(self._experiment, artifact_location=place)
            else:
                self._experiment_id = found.experiment_id
        return client


def open_client(uri: str) -> MlflowClient:
    """An MLflow client that gives up soon on a server that does not answer."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    mlflow.set_tracking_uri(uri)  # models are logged through functions that take no client
    return mlflow.MlflowClient(tracking_uri=uri)


@dataclass(frozen=True)
class Tracked:
    """Where MLflow has the latest of a storage folder's runs."""

    experiment_id: str
    """Of the latest run."""
    sweep: tuple[str, str] | None
    """Experiment id and sweep id of the latest sweep."""


def stored_uri(storage: Path) -> str:
    """Tracking URI of the latest tracked run under a storage folder.

    Raises:
        ConfigError: no run there is tracked.
    """
    for status in list_runs(storage):
        folder = RunFolder(status.folder)
        if folder.tracking_path.exists():
            return str(folder.read_tracking().get("uri", tracking_uri(storage)))
    raise ConfigError(
        f"{storage.absolute()}: no tracked run here; `boxseg train EXP.yaml` makes one, or name --storage"
    )


def catch_up(storage: Path, uri: str) -> Tracked:
    """Copy to MLflow what ended processes left behind, so that nothing that is dead looks alive there.

    Args:
        storage: Folder of all runs.
        uri: Their tracking URI.

    Returns:
        Where MLflow has the latest runs.

    Raises:
        ConfigError: MLflow knows none of them, because it cannot be reached.
    """
    for name in {status.name for status in list_runs(storage)}:
        Tracker(storage, name, uri=uri, logs=storage / "logs").catch_up()
    here = [each for each in list_runs(storage) if RunFolder(each.folder).read_tracking().get("uri", uri) == uri]
    tracked = [(each, each.mlflow_run_id) for each in here if each.mlflow_run_id is not None]
    if not tracked:
        raise ConfigError(f"{storage.absolute()}: MLflow ({uri}) has none of the runs here; see {storage}/logs")
    client = open_client(uri)
    place = client.get_run(tracked[0][1]).info.experiment_id
    for status, run_id in tracked:
        if status.kind == "sweep":
            sweep_place = client.get_run(run_id).info.experiment_id
            save_comparison(client, sweep_place, RunFolder(status.folder), run_id)
            return Tracked(place, (sweep_place, status.id))
    return Tracked(place, None)


def follow(client: MlflowClient, experiment_id: str, folder: RunFolder) -> None:
    """Bring MLflow up to date with one folder; safe to repeat after a stop at any place."""
    status = folder.status()
    state = folder.read_tracking()
    if state.get("ended") == [status.status, status.ended]:
        return
    if "run_id" not in state:
        state["run_id"] = _open_run(client, experiment_id, folder, status)
        folder.write_tracking(state)
    if not state.get("described"):
        _describe(client, experiment_id, folder, status, state)
        state["described"] = True
        folder.write_tracking(state)
    if "ended" in state:  # resumed, or its end is told anew
        _take_back_end(client, folder, status, state["run_id"])
        del state["ended"]
    _copy_metrics(client, folder, state)
    copy_files(client, folder, state, sorted(folder.path.glob("samples/[!.]*.png")))
    if status.is_final:
        _end_run(client, experiment_id, folder, status, state)
        if status.parent is None and status.status == "finished" and folder.best_checkpoint.exists():
            copy_model(client, folder, folder.best_checkpoint.resolve(), state["run_id"])
        state["ended"] = [status.status, status.ended]
        folder.write_tracking(state)


def _open_run(client: MlflowClient, experiment_id: str, folder: RunFolder, status: RunStatus) -> str:
    """Id of the folder's MLflow run, found by its tag or made."""
    found = _find_runs(client, experiment_id, status)
    if found:
        return str(found[0].info.run_id)
    tags = {"boxseg.run": status.id, "boxseg.kind": status.kind, "boxseg.folder": status.folder}
    tags |= {"mlflow.source.name": "boxseg", "mlflow.source.type": "LOCAL", "status": "running"}
    tags |= {f"varied.{name}": str(value)[:MAX_TEXT] for name, value in status.values.items()}
    tags["mlflow.note.content"] = make_note(folder, status)
    if "git_commit" in status.tags:
        tags["mlflow.source.git.commit"] = status.tags["git_commit"]
    if status.parent is not None:
        tags["mlflow.parentRunId"] = _parent(folder, status).read_tracking()["run_id"]
    created = round(1000 * status.created)
    name = run_name(folder, status)
    run = client.create_run(experiment_id, start_time=created, tags={**status.tags, **tags}, run_name=name)
    return str(run.info.run_id)


def _find_runs(client: MlflowClient, experiment_id: str, status: RunStatus) -> Sequence[Run]:
    """MLflow's runs of the tag that names this one."""
    return client.search_runs([experiment_id], f"tags.`boxseg.run` = '{status.id}'")


def run_name(folder: RunFolder, status: RunStatus) -> str:
    """`sweep 2026-11-23 16:43 e093`; of a trial its number and what makes it another than its siblings."""
    end = status.id.rsplit("-", 1)[-1]
    if status.parent is None:
        return f"{status.kind} {time.strftime('%Y-%m-%d %H:%M', time.localtime(status.created))} {end}"
    seeds = read_resolved(_parent(folder, status).config_path).get("sweep", {}).get("seeds", [])
    seed = f" seed={status.tags.get('seed', '')}" if len(seeds) > 1 else ""
    return f"{end} {status.description}{seed}"[:200]


def criterion_of(folder: RunFolder, status: RunStatus) -> Criterion:
    """What decides which evaluation of a run is the best, by its own settings or those of its sweep."""
    if status.parent is None and status.kind == "run":
        return MASK_AP
    sweep = folder if status.parent is None else _parent(folder, status)
    settings = read_resolved(sweep.config_path)["sweep"]
    return Criterion(settings["metric"], settings["mode"])


def make_note(folder: RunFolder, status: RunStatus) -> str:
    """What a run's page says in words: of a sweep the table of its trials, and the command that made it."""
    command = status.tags.get("command")
    lines = [] if command is None or status.parent is not None else [f"`{command}`\n"]
    if status.failure is not None:
        lines.append(f"{status.failure.kind}: {status.failure.text}\n")
    if status.kind == "sweep":
        spec = SweepSpec.model_validate(read_resolved(folder.config_path))
        lines += markdown_table(read_table(folder.path, spec)).splitlines()
    elif status.description:
        lines.append(status.description)
    text = "\n".join(lines)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 20].rpartition("\n")[0] + "\n\n…"


def _parent(folder: RunFolder, status: RunStatus) -> RunFolder:
    return RunFolder(folder.path / str(status.parent))


def _describe(
    client: MlflowClient, experiment_id: str, folder: RunFolder, status: RunStatus, state: dict[str, Any]
) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    run_id = state["run_id"]
    params = params_of(read_resolved(folder.config_path))
    params.pop("tracking.uri")  # may hold a secret
    for part in _parts(list(params.items()), PARAMS_PER_CALL):
        client.log_batch(run_id, params=[Param(name, str(value)[:MAX_TEXT]) for name, value in part])
    if "data_fingerprint" in status.tags:
        path = status.tags["data"]
        source = json.dumps({"uri": path})
        data = Dataset(Path(path).stem, status.tags["data_fingerprint"], source_type="local", source=source)
        client.log_inputs(run_id, datasets=[DatasetInput(data, [InputTag("mlflow.data.context", "training")])])
    copy_files(client, folder, state, (folder.path / name for name in SETTINGS))
    if status.kind == "sweep":
        save_comparison(client, experiment_id, folder, run_id)


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


def _end_run(
    client: MlflowClient, experiment_id: str, folder: RunFolder, status: RunStatus, state: dict[str, Any]
) -> None:
    from mlflow.entities import RunTag

    run_id = state["run_id"]
    copy_results(client, folder, state)
    tags: dict[str, str] = {"status": status.status, "mlflow.note.content": make_note(folder, status)}
    if status.failure is not None:
        tags |= {"failure_class": str(status.failure.failure_class), "failure": status.failure.text[:MAX_TEXT]}
    if status.status == "stopped":
        tags["stopped_by"] = status.tags.get("trial_scheduler", "")
    criterion = criterion_of(folder, status)
    if (value := criterion.value(status.best)) is not None:
        # Of the best evaluation; the metric itself shows the last one. Shares of one length sort as text.
        tags["best"] = f"{value:.6f}"
        tags["best_by"] = f"{criterion.metric} {criterion.mode}"
        if status.best_step is not None:  # a sweep has none
            tags["best_step"] = str(status.best_step)
    if folder.best_checkpoint.exists():
        tags["best_checkpoint"] = str(folder.best_checkpoint)
        copy_checkpoint(client, folder, folder.best_checkpoint.resolve(), state)  # `best` may move on meanwhile
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    end = round(1000 * (status.ended or time.time()))
    client.set_terminated(run_id, status=MLFLOW_STATUS[status.status], end_time=end)
    for double in _find_runs(client, experiment_id, status):
        if double.info.run_id != run_id:  # the server had made one when we no longer waited for its answer
            client.delete_run(double.info.run_id)


def _take_back_end(client: MlflowClient, folder: RunFolder, status: RunStatus, run_id: str) -> None:
    """Undo what `_end_run` said of an end that counts no more; the next end says it anew."""
    for name in client.get_run(run_id).data.tags.keys() & set(END_TAGS):
        client.delete_tag(run_id, name)
    client.set_tag(run_id, "status", "running")
    client.set_tag(run_id, "mlflow.note.content", make_note(folder, status))
    client.update_run(run_id, status="RUNNING")


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _is_copied(folder: RunFolder) -> bool:
    """True if MLflow has the end of the run; of a run whose status cannot be read, False."""
    try:
        status = folder.status()
    except ConfigError:
        return False
    return folder.read_tracking().get("ended") == [status.status, status.ended]
