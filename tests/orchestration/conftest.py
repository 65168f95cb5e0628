"""What takes longer than most tests is made once: the tree of commands, and an MLflow store whose tables are there."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

# typer reads the signatures of all commands again for each that is run
typer.main.get_command = functools.cache(typer.main.get_command)


@pytest.fixture(scope="session")
def make_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """Puts an empty SQLite store at a path; gives its tracking URI."""
    import mlflow  # takes seconds to load, and few tests need it

    empty = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{empty}").search_experiments()

    def make(path: Path) -> str:
        shutil.copy(empty, path)
        return f"sqlite:///{path}"

    return make
