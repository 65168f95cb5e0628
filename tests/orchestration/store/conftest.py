"""A store for each test, and machines that share nothing else."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import ObjectStore, object_store, using

from boxseg.engine.checkpoint import folder_of, publish, save_checkpoint
from orchestration.record.run_folder import RunFolder, RunStatus, own_process
from orchestration.store import mirror
from orchestration.store.places import storage_folder


@pytest.fixture(scope="session")
def server() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


class Machines:
    """Machines that have the store in common; each has a folder for its mirrors."""

    def __init__(self, store: ObjectStore, folder: Path, storage: str) -> None:
        self.store = store
        self.storage = storage
        self._folder = folder

    def on(self, name: str):
        """A block that runs on one of them."""
        mirror._looked.clear()
        return using(self.store, self._folder / name)

    @property
    def folder(self) -> Path:
        """The storage's mirror on the machine of the block around."""
        return storage_folder(self.storage)

    @property
    def run(self) -> Path:
        """Folder of a run in there."""
        return self.folder / "toys" / "20260101-000000-aaaaaa"


@pytest.fixture
def machines(server: ObjectStore, tmp_path: Path, request: pytest.FixtureRequest) -> Machines:
    prefix = re.sub(r"\W", "-", request.node.name)[:60]
    server.fault, server.delay_s, server.together = "none", 0.0, threading.Barrier(1)
    server.requests.clear()
    return Machines(server, tmp_path, f"s3://bucket/{prefix}")


def make_run(path: Path, *, steps: int = 20) -> RunFolder:
    """A run that has just begun."""
    status = RunStatus(path.name, path.parent.name, steps=steps, **own_process())
    return RunFolder(path).create(status, "name: toys\n")


def save(run: Path, step: int, *, best: bool = False) -> Path:
    """Write a checkpoint as training does, with weights that depend on the step."""
    checkpoints = run / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    files = {"student.safetensors": f"weights {step} ".encode() * 1000, "state.pt": b"state"}
    about = {"best_step": step if best else 0, "metrics": {}}
    written = save_checkpoint(checkpoints, step=step, files=files, about=about)
    publish(checkpoints, written)
    assert written == folder_of(checkpoints, step)
    return written
