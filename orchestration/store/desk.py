"""Where runs that train on other machines than their driver exchange records with it.

The training machine sends weights to the store itself. Records are small and go through Ray to the driver, which shows
them, copies them to MLflow and sends them to the store: only the driver makes a checkpoint count.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from boxseg.engine.checkpoint import ABOUT
from boxseg.errors import BoxSegError
from boxseg.files.writing import write_atomic
from orchestration.record.run_folder import RunFolder
from orchestration.store.mirror import STATUS, place, records_of

Records = Mapping[str, bytes | None]
"""Path in a run's folder -> content; None for files that are gone."""

logger = logging.getLogger("boxseg.store")


@dataclass
class Desk:
    """Records of runs, by the runs' addresses."""

    _records: dict[str, dict[str, bytes]] = field(default_factory=dict)
    _attempts: dict[str, int] = field(default_factory=dict)
    _changes: dict[str, dict[str, bytes | None]] = field(default_factory=dict)
    _stops: bool = False

    def lay(self, run: str, records: dict[str, bytes]) -> None:
        """For the driver: provide all records of a run before it is trained; ignore earlier processes from now on."""
        self._records[run] = dict(records)
        self._attempts[run] = self._attempts.get(run, 0) + 1

    def take(self, run: str, *, leads: bool) -> tuple[int, dict[str, bytes]]:
        """For a process that begins to train: its number, and all records.

        Args:
            run: Address.
            leads: Whether it will report changes; earlier processes are ignored from now on.
        """
        if leads:
            self._attempts[run] = self._attempts.get(run, 0) + 1
        return self._attempts.get(run, 0), self._records.get(run, {})

    def tell(self, run: str, attempt: int, changes: Records) -> bool:
        """For the process with this number: report what changed; returns whether it has to stop."""
        if attempt != self._attempts.get(run) or run not in self._records:
            return True
        for name, content in changes.items():
            if content is None:
                self._records[run].pop(name, None)
            else:
                self._records[run][name] = content
            self._changes.setdefault(run, {})[name] = content
        return self._stops

    def collect(self) -> dict[str, dict[str, bytes | None]]:
        """For the driver: what was reported since the last call."""
        changes, self._changes = self._changes, {}
        return changes

    def clear(self, run: str) -> None:
        """For the driver: a run has ended, and further reports about it are ignored."""
        self._records.pop(run, None)

    def stop(self) -> None:
        """For the driver: ask all training processes to save their state and end."""
        self._stops = True


def read_records(folder: Path) -> dict[str, bytes]:
    """The records in a run's folder, for `Desk.lay`."""
    records = {}
    for name in records_of(folder):
        with contextlib.suppress(FileNotFoundError):
            records[name] = (folder / name).read_bytes()
    return records


def write_records(folder: RunFolder, changes: Records) -> None:
    """Update a run's folder with records; an end that the driver has written stays."""
    for name in sorted(changes, key=place):
        content, path = changes[name], folder.path / name
        if name == STATUS and content is not None:
            with contextlib.suppress(BoxSegError):  # readers report damaged records
                folder.replace_status(content)
            continue
        if content is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content, durable=False)
            continue
        path.unlink(missing_ok=True)
        if path.name == ABOUT:
            # not weights that were fetched here
            for left in path.parent.glob("*"):
                left.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the folder is not empty
            path.parent.rmdir()
