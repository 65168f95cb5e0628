"""Things that take longer than most tests are made once: the tree of commands, and an MLflow store with its tables."""

import functools
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer.main

import orchestration.tracking.tracker
from orchestration.tracking.store import open_client

# typer reads the signatures of all commands again for each that is run
typer.main.get_command = functools.cache(typer.main.get_command)


@pytest.fixture(scope="session")
def make_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """Puts an empty SQLite store at a path; gives its tracking URI."""
    empty = tmp_path_factory.mktemp("store") / "mlflow.db"
    making = threading.Lock()

    def make(path: Path) -> str:
        with making:
            if not empty.exists():
                open_client(f"sqlite:///{empty}").search_experiments()
        shutil.copy(empty, path)
        return f"sqlite:///{path}"

    return make


@pytest.fixture(scope="session", autouse=True)
def _stores_have_their_tables(make_store: Callable[[Path], str]) -> Iterator[None]:
    """A new SQLite store of a run in this process is a copy: to make its tables takes longer than most tests."""

    def open_copy(uri: str) -> object:
        path = Path(uri.removeprefix("sqlite:///"))
        is_new = path.parent.is_dir() and not path.exists()
        # what is escaped in a URI is another name on the disk
        if uri.startswith("sqlite:///") and "%" not in uri and is_new:
            make_store(path)
        return open_client(uri)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orchestration.tracking.tracker, "open_client", open_copy)
        yield
