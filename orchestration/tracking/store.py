"""The MLflow store of a storage folder: its address, and how it follows a folder that was moved or copied."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from boxseg.errors import ConfigError
from orchestration.config.resolved import read_resolved
from orchestration.errors import ResourceError
from orchestration.record.run_folder import RunFolder

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # it repeats what makes something too; the tracker looks first
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "GIT_PYTHON_REFRESH": "quiet",
}
URI_VARIABLE = "MLFLOW_TRACKING_URI"
SQLITE = "sqlite:///"
DATABASE, ARTIFACTS, LOCK = "mlflow.db", "mlartifacts", ".mlflow.lock"
"""Names in a storage folder; the lock is held while the database is made or moved."""
OLD_TABLES = "out-of-date database schema"
"""How MLflow says that another version made the tables."""

logger = logging.getLogger("boxseg.tracking")


def tracking_uri(storage: Path, uri: str | None = None) -> str:
    """The MLflow tracking URI of a storage folder: `uri` if given, else an SQLite file in the folder.

    SQLAlchemy reads `?` and what looks like `%41` as parts of a URI: unescaped, they would lead to another folder.
    MLflow makes an empty folder of the escaped name beside.
    """
    if uri:
        return uri
    misread = r"\?|%(?=[0-9a-fA-F]{2})"
    folder = re.sub(misread, lambda match: quote(match[0]), str(storage.absolute()))
    return f"{SQLITE}{folder}/{DATABASE}"


def recorded_uri(folder: RunFolder, storage: Path) -> str:
    """URI of the store that a run is in; if it was moved or copied to this storage since, of the SQLite file here."""
    own = tracking_uri(storage)
    uri = str(folder.read_tracking().get("uri", own))
    may_be_moved = uri.startswith(SQLITE) and uri.endswith(f"/{DATABASE}")
    if uri == own or not may_be_moved:
        return uri
    old = Path(unquote(uri.removeprefix(SQLITE))).parent
    # A storage within this one has a file of its own.
    is_within = old.is_relative_to(storage.absolute()) and old in folder.path.absolute().parents
    # A file of the same name that the settings ask for is no old place of this storage.
    return uri if is_within or _names_a_store(folder) else own


def _names_a_store(folder: RunFolder) -> bool:
    try:
        return read_resolved(folder.config_path)["tracking"]["uri"] is not None
    except (ConfigError, LookupError, TypeError):  # damaged, which is reported elsewhere
        return False


def open_client(uri: str) -> MlflowClient:
    """An MLflow client that gives up soon on a server that does not answer."""
    # Ahead of the import, as MLflow reads some of them then; what the user has set stays.
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    before = os.environ.get(URI_VARIABLE)
    mlflow.set_tracking_uri(uri)  # models are logged through functions that take no client
    # It also sets the variable, which would look like the user's at the next run of this process.
    os.environ.pop(URI_VARIABLE, None)
    if before is not None:
        os.environ[URI_VARIABLE] = before
    return mlflow.MlflowClient(tracking_uri=uri)


@contextlib.contextmanager
def naming_way_out(uri: str) -> Iterator[None]:
    """Turn an error of MLflow into one that says what to do about it.

    Raises:
        ResourceError: MLflow raised an error.
    """
    try:
        yield
    except Exception as error:
        # here, as `open_client` sets variables ahead of the import
        from mlflow.exceptions import MlflowException

        if not isinstance(error, MlflowException):
            raise
        way_out = "start its server"
        if uri.startswith(SQLITE):
            way_out = "end what holds the file, if it is locked"
        if OLD_TABLES in str(error):
            way_out = f"`mlflow db upgrade {uri}` brings them to the present form; keep a copy of the database"
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            way_out = "`boxseg runs track` copies what it lacks"
        text = " ".join(str(error).split())
        raise ResourceError(f"MLflow ({uri}) does not answer: {text:.200}; {way_out}") from error


def move_places(storage: Path) -> list[str]:
    """Make the SQLite file of a storage that was moved or copied name this folder instead of the old one.

    MLflow keeps absolute paths: new artifacts would go to the old place, and old ones be looked for there. A place that
    is the same folder under another path stays.

    Returns:
        A sentence for each old place; none where nothing had to change.

    Raises:
        ResourceError: the file is damaged, or another process holds it.
    """
    database = storage / DATABASE
    if not database.exists():
        return []
    try:
        return _move_places(database, storage)
    except sqlite3.DatabaseError as error:
        raise ResourceError(
            f"{database}: {error}; if it is locked, end what holds it; if it is damaged, "
            "`boxseg runs track` makes a new one"
        ) from error


def _move_places(database: Path, storage: Path) -> list[str]:
    changes = []
    # `closing` ends the connection; the connection as a context commits all changes, or none after an error.
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        for old in _foreign_places(connection, storage):
            folder = Path(unquote(urlsplit(old).path)).parent
            _replace_prefix(connection, old, (storage.absolute() / ARTIFACTS).as_uri())
            _replace_prefix(connection, f"{folder}/", f"{storage.absolute()}/")
            changes.append(f"MLflow's file named artifacts in {folder}; it names {storage} now")
    return changes


def _foreign_places(connection: sqlite3.Connection, storage: Path) -> list[str]:
    """URIs of the artifact folders that experiments name and that are not this storage's own."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if "experiments" not in tables:
        return []
    own = storage.absolute() / ARTIFACTS
    foreign = []
    for (uri,) in connection.execute("SELECT DISTINCT artifact_location FROM experiments"):
        # Only places that the tracker chose; those of others are left alone.
        if uri is None or not uri.startswith("file:") or not uri.endswith(f"/{ARTIFACTS}"):
            continue
        folder = Path(unquote(urlsplit(uri).path))
        is_same = folder == own or (folder.exists() and own.exists() and folder.samefile(own))
        if not is_same:
            foreign.append(uri)
    return foreign


def _replace_prefix(connection: sqlite3.Connection, old: str, new: str) -> None:
    """Replace what texts of all tables begin with."""
    tables = [
        name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
    ]
    for table in tables:
        for _, column, kind, *_ in connection.execute(f'PRAGMA table_info("{table}")').fetchall():
            if kind.upper().startswith(("VARCHAR", "TEXT")):
                connection.execute(
                    # Not LIKE, to which `_` and `%` in a path would stand for any letter.
                    f'UPDATE "{table}" SET "{column}" = ? || substr("{column}", ?) '
                    f'WHERE substr("{column}", 1, ?) = ?',
                    (new, len(old) + 1, len(old), old),
                )
