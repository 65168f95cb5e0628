"""Copies run folders to MLflow from a thread of the driving process."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from boxseg.errors import ConfigError
from orchestration.record.files import file_lock, log_to_file
from orchestration.record.find_runs import list_runs
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.store.mirror import pull_tree
from orchestration.store.places import address_of, shown
from orchestration.tracking.pages import save_comparison
from orchestration.tracking.run import follow
from orchestration.tracking.store import (
    ARTIFACTS,
    LOCK,
    move_places,
    naming_way_out,
    open_client,
    recorded_uri,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

TICK_S = 2.0
"""Time between two looks at the folders [s]."""
FIRST_LOOK_S = 10.0
"""MLflow is loaded after this time [s], or when a shorter run ends, so that it does not delay the first step."""
LAST_PASSES = 6
"""How often `close` tries a store that answers but fails, every half second."""
BUSY_S = 20.0
"""How long `close` waits for another process that is copying the same run [s]."""
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""URIs of these schemes are opened without a server, and the artifacts lie beside the runs."""
LOGIN = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, where the run is driven, and "
    "copy the run by `boxseg runs track`"
)
"""Advice for a server that asks for a login."""

logger = logging.getLogger("boxseg.tracking")


class Tracker:
    """Copies what run folders hold to MLflow, again and again until `close`.

    Training never waits for it: it reads `metrics.jsonl` from where it stopped, keeps that place in `tracking.json`,
    and tries again at the next tick whatever MLflow did not take.
    """

    def __init__(
        self, storage: Path, experiment: str, *, uri: str | None = None, logs: Path
    ) -> None:
        """Nothing is opened before `start`.

        Args:
            storage: Folder of all runs; the SQLite file and its artifacts lie there when `uri` is None.
            experiment: Name of the MLflow experiment.
            uri: MLflow tracking URI.
            logs: Folder for MLflow's own messages.
        """
        self.uri = tracking_uri(storage, uri)
        self._storage = storage.absolute()
        self._experiment = experiment
        self._logs = logs
        self._folders: list[RunFolder] = []  # parents before their children
        self._settled: set[Path] = set()  # of folders that have ended for good
        self._copied: list[RunFolder] = []  # settled, and copied in full
        self._taken_at = 0.0
        """When MLflow last had everything of some run, by the monotonic clock [s]."""
        self._closing = threading.Event()
        # A daemon: a store that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._warned = False
        self._is_busy = False
        """Whether another process was copying one of the runs at the last look."""

    def add(self, folder: RunFolder) -> None:
        """Follow one more run, whose `config.yaml` and `status.json` are there; a parent comes before its children."""
        state = folder.read_tracking()
        if state.get("uri") != self.uri:
            # Written at once, so that the run is found even if MLflow never answers. What another store has of it says
            # nothing about this one; a store that was moved with its runs is the same.
            is_same = "uri" in state and recorded_uri(folder, self._storage) == self.uri
            folder.write_tracking({**(state if is_same else {}), "uri": self.uri})
        self._folders.append(folder)

    def settle(self, folder: RunFolder) -> None:
        """Say that a run has ended for good: once MLflow has all of it, only `close` looks at it once more."""
        self._settled.add(folder.path)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def close(self, timeout_s: float = 60.0) -> bool:
        """Copy what is left and end; False if MLflow did not take everything (the next sweep or run tries).

        Args:
            timeout_s: Give up once MLflow has taken no run for this time: a busy machine is slow, but gets on.
        """
        self._closing.set()
        began = time.monotonic()
        while (
            self._thread.is_alive() and time.monotonic() < max(began, self._taken_at) + timeout_s
        ):
            self._thread.join(0.1)
        # the storage may have been deleted meanwhile
        present = [folder for folder in self._folders if folder.status_path.exists()]
        left = [folder for folder in present if not is_copied(folder)]
        if left:
            logger.warning(
                "%d runs are not wholly in MLflow (%s); their folders are complete, and the next run "
                "under this name, `boxseg ui` or `boxseg runs track` copy the rest",
                len(left),
                self.uri,
            )
        return not left

    def copy_leftovers(self) -> None:
        """Copy what ended processes left behind, in this thread; faults are logged, not raised."""
        self._add_leftovers()
        if self._folders:
            self._finish(passes=1)

    def _work(self) -> None:
        self._closing.wait(FIRST_LOOK_S)
        self._add_leftovers()
        while not self._closing.is_set():
            self._follow_all()
            self._closing.wait(TICK_S)
        self._folders += self._copied  # a worker that ended late may have written a better cause
        self._finish(passes=LAST_PASSES)

    def _finish(self, *, passes: int) -> None:
        """Copy until MLflow has all folders, at most this often; looks that met another process do not count."""
        patient_until = time.monotonic() + BUSY_S
        while not self._follow_all() and self._answers():
            if not (self._is_busy and time.monotonic() < patient_until):
                passes -= 1
            if passes <= 0:
                return
            time.sleep(0.5)

    def _follow_all(self) -> bool:
        """Bring MLflow up to date with all folders; False if it did not take some of them."""
        if self._client is None:
            with self._tolerant():
                self._client = self._open()
                self._taken_at = time.monotonic()
        if self._client is None:
            return False
        taken, self._is_busy = True, False
        # A copy, as `add` comes from another thread and settled folders are taken out below.
        for folder in list(self._folders):
            done, settled = False, folder.path in self._settled
            with self._tolerant():
                try:
                    follow(self._client, self._experiment_id, folder)
                    done = True
                except BlockingIOError:
                    taken, self._is_busy = False, True
                    continue
            taken = taken and done
            if done:
                self._taken_at = time.monotonic()
            if done and settled and not self._closing.is_set():
                self._folders.remove(folder)
                self._copied.append(folder)
            if not done and not self._answers():
                return False  # all others would wait for the same dead server
        return taken

    def _answers(self) -> bool:
        """Whether the store can be reached at all."""
        if self._client is None:
            return False
        with contextlib.suppress(Exception):
            return bool(self._client.get_experiment(self._experiment_id))
        return False

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Log faults instead of raising them, as a lost metric must not end a run; only the first is a warning."""
        try:
            yield
        except Exception as error:
            level = logging.DEBUG if self._warned else logging.WARNING
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            # of MLflow's exceptions; others have no such method
            code = getattr(error, "get_http_status_code", lambda: None)()
            way_out = LOGIN if code in (401, 403) else "trying again"
            logger.log(level, "MLflow (%s) does not take a run: %s; %s", self.uri, text, way_out)
            self._warned = True

    def _add_leftovers(self) -> None:
        """Also follow runs of this experiment whose process ended before MLflow had everything; parents first."""
        runs = self._storage / self._experiment
        # runs that another machine has copied from a store into its own MLflow are left out
        record = "tracking.json" if address_of(runs) is None else "config.yaml"
        parents = sorted(runs.glob(f"*/{record}"))
        trials = sorted(runs.glob(f"*/*/{record}"))
        for path in [*parents, *trials]:
            # what cannot be read now is taken over by a later run
            with contextlib.suppress(Exception):
                folder = RunFolder(path.parent)
                same_store = recorded_uri(folder, self._storage) == self.uri
                if same_store and not is_copied(folder):
                    status = folder.status()
                    # Runs of this process are added by the code that runs them.
                    if status.is_final and status.pid != os.getpid():
                        self._folders.append(folder)

    def _open(self) -> MlflowClient:
        log_to_file(self._logs / "mlflow.log", ("mlflow", "alembic", "sqlalchemy"))
        # two processes that make one SQLite file leave it broken
        with file_lock(self._storage / LOCK):
            if self.uri == tracking_uri(self._storage):
                for change in move_places(self._storage):
                    logger.warning("%s", change)
            client = open_client(self.uri)
            experiment = client.get_experiment_by_name(self._experiment)
            if experiment is not None and experiment.lifecycle_stage == "deleted":
                logger.warning(
                    "the experiment %s was deleted in MLflow; it is back, as runs of it go on",
                    self._experiment,
                )
                client.restore_experiment(experiment.experiment_id)
            if experiment is None:
                artifacts = None  # a server has a place of its own
                if self.uri.startswith(DATABASES):
                    artifacts = (self._storage / ARTIFACTS).as_uri()
                self._experiment_id = client.create_experiment(
                    self._experiment, artifact_location=artifacts
                )
            else:
                self._experiment_id = experiment.experiment_id
        return client


@dataclass(frozen=True)
class Tracked:
    """Where MLflow has the latest of a storage folder's runs."""

    experiment_id: str
    """Of the latest run."""
    sweep: tuple[str, str] | None
    """Experiment id and sweep id of the latest sweep."""


def latest_uri(storage: Path) -> str:
    """Tracking URI of the latest tracked run under a storage folder.

    Raises:
        ConfigError: no run there is tracked.
    """
    runs = list_runs(storage)
    for status in runs:
        pull_tree(Path(status.folder))
        folder = RunFolder(status.folder)
        if folder.tracking_path.exists():
            return recorded_uri(folder, storage)
    if runs and address_of(storage) is not None:
        # copied by other machines, each into a file of its own
        return tracking_uri(storage)
    raise ConfigError(
        f"{shown(storage)}: no tracked run here; `boxseg train EXP.yaml` makes one, or name --storage"
    )


def catch_up(storage: Path, uri: str) -> Tracked:
    """Copy to MLflow what ended processes left behind, so that no dead run looks alive there.

    Args:
        storage: Folder of all runs.
        uri: Their tracking URI.

    Returns:
        Where MLflow has the latest runs.

    Raises:
        ConfigError: MLflow cannot be reached, and none of the runs is there yet.
        ResourceError: MLflow does not answer, lacks a run that it had, or another version made its tables.
    """
    with file_lock(storage / LOCK), naming_way_out(uri):
        if uri == tracking_uri(storage):
            move_places(storage)
        client = open_client(uri)
    for name in {status.name for status in list_runs(storage)}:
        Tracker(storage, name, uri=uri, logs=storage / "logs").copy_leftovers()
    tracked: list[tuple[RunStatus, str]] = []
    for status in list_runs(storage):
        same_store = recorded_uri(RunFolder(status.folder), storage) == uri
        if same_store and status.mlflow_run_id is not None:
            tracked.append((status, status.mlflow_run_id))
    if not tracked:
        raise ConfigError(
            f"{storage.absolute()}: MLflow ({uri}) has none of the runs here; see {storage}/logs"
        )
    with naming_way_out(uri):
        place = client.get_run(tracked[0][1]).info.experiment_id
        # Newest first, so the first sweep is the latest.
        for status, run_id in tracked:
            if status.kind == "sweep":
                sweep_place = client.get_run(run_id).info.experiment_id
                save_comparison(client, sweep_place, RunFolder(status.folder), run_id)
                return Tracked(place, (sweep_place, status.id))
    return Tracked(place, None)


def is_copied(folder: RunFolder) -> bool:
    """True if MLflow has the end of the run, or somebody deleted it there; False if its status cannot be read."""
    try:
        status = folder.status()
    except ConfigError:
        return False
    state = folder.read_tracking()
    return bool(state.get("deleted")) or state.get("ended") == [status.status, status.ended]
