"""`boxseg runs track`: restore MLflow's records from the run folders, whatever happened to them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from boxseg.errors import ConfigError
from orchestration.errors import ResourceError
from orchestration.record.files import file_lock
from orchestration.record.find_runs import list_runs
from orchestration.record.run_folder import RunFolder
from orchestration.store.mirror import pull_tree
from orchestration.store.places import shown
from orchestration.tracking.run import run_stage
from orchestration.tracking.store import (
    DATABASE,
    LOCK,
    move_places,
    naming_way_out,
    open_client,
    recorded_uri,
)
from orchestration.tracking.tracker import Tracker, is_copied

if TYPE_CHECKING:
    from mlflow import MlflowClient


def repair(storage: Path) -> Iterator[str]:
    """Bring the MLflow records of all runs of a storage up to date with their folders.

    A damaged SQLite file is set aside and a new one filled; one that was moved names the new place. Runs and
    experiments that were deleted in MLflow's page come back, and runs that it does not know are copied.

    Args:
        storage: Folder of all runs.

    Yields:
        What was done, a sentence each.

    Raises:
        ConfigError: there are no runs.
        ResourceError: MLflow does not take some of them, or an older MLflow made its tables.
    """
    # MLflow's pages are read in any folder, so that the paths there are whole ones.
    folders = [RunFolder(status.folder) for status in list_runs(storage.absolute())]
    for folder in folders:
        pull_tree(folder.path)
    if not folders:
        raise ConfigError(f"{shown(storage)}: no runs here; name another --storage")
    with file_lock(storage / LOCK):
        yield from _repair_file(storage)
    by_uri: dict[str, list[RunFolder]] = {}
    for folder in folders:
        by_uri.setdefault(recorded_uri(folder, storage), []).append(folder)
    for uri, runs in by_uri.items():
        with naming_way_out(uri):
            client = open_client(uri)
            client.search_experiments(max_results=1)
        for folder in runs:
            yield from _bring_back(client, folder)
        # Runs at work are followed by their own process.
        ended = [folder for folder in runs if folder.status().is_final]
        for name in {folder.stored().name for folder in ended}:
            tracker = Tracker(storage, name, uri=uri, logs=storage / "logs")
            own = [folder for folder in ended if folder.stored().name == name]
            for folder in sorted(own, key=lambda folder: len(folder.path.parts)):  # parents first
                tracker.add(folder)
            tracker.copy_leftovers()
        missing = [folder for folder in ended if not is_copied(folder)]
        if missing:
            raise ResourceError(
                f"MLflow ({uri}) does not take {len(missing)} of {len(ended)} runs, as {missing[0].path}; "
                f"{storage / 'logs'} tells why"
            )
        yield f"{len(ended)} runs are in MLflow ({uri})"


def _repair_file(storage: Path) -> Iterator[str]:
    """Make the storage's own SQLite file usable."""
    database = storage / DATABASE
    if not database.exists():
        return
    if not _is_sound(database):
        number = len(list(storage.glob(f"{DATABASE}.damaged-*"))) + 1
        aside = database.with_name(f"{DATABASE}.damaged-{number}")
        database.rename(aside)
        # SQLite would apply what these hold to the new file.
        for part in ("-wal", "-shm", "-journal"):
            database.with_name(DATABASE + part).unlink(missing_ok=True)
        yield f"MLflow's file is damaged; it is {aside.name} now, and a new one is made"
        return
    yield from move_places(storage)


def _is_sound(database: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection:
            return bool(connection.execute("PRAGMA quick_check").fetchone() == ("ok",))
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            raise ResourceError(f"{database}: another process holds it; end that first") from error
        return False


def _bring_back(client: MlflowClient, folder: RunFolder) -> Iterator[str]:
    """Restore a deleted run; of one that MLflow does not know, forget what was copied."""
    state = folder.read_tracking()
    stage = run_stage(client, state)
    if stage == "missing":
        folder.write_tracking({"uri": state.get("uri")})
        yield f"{folder.path.name} is not in MLflow; it is copied again"
        return
    if stage == "deleted":
        experiment = client.get_run(state["run_id"]).info.experiment_id
        if client.get_experiment(experiment).lifecycle_stage == "deleted":
            client.restore_experiment(experiment)
            yield f"the experiment of {folder.path.name} was deleted in MLflow; it is back"
    if run_stage(client, state) == "deleted":  # restoring the experiment restored its runs too
        client.restore_run(state["run_id"])
        yield f"{folder.path.name} was deleted in MLflow; it is back"
    if state.pop("deleted", None):
        folder.write_tracking(state)
