"""Where runs that train on other machines than their driver's leave their records, and find those to begin with.

Weights go from there to the store by themselves. Records are small, and go through Ray to the driver, which shows them,
copies them to MLflow, and sends them to the store: only it ever makes a checkpoint count.
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
"""Paths in a run's folder -> content; null for files that have gone."""

logger = logging.getLogger("boxseg.store")


@dataclass
class Desk:
    """What it has of each run, by the run's address."""

    _records: dict[str, dict[str, bytes]] = field(default_factory=dict)
    _attempts: dict[str, int] = field(default_factory=dict)
    _changes: dict[str, dict[str, bytes | None]] = field(default_factory=dict)
    _stops: bool = False

    def lay(self, run: str, records: dict[str, bytes]) -> None:
        """The driver: have all records of a run here, before it is trained; processes of before are not heard again."""
        self._records[run] = dict(records)
        self._attempts[run] = self._attempts.get(run, 0) + 1

    def take(self, run: str, *, leads: bool) -> tuple[int, dict[str, bytes]]:
        """A process that begins to train: its number, and all records.

        Args:
            run: Address.
            leads: Whether it is the one that will tell; those of before are not heard again.
        """
        if leads:
            self._attempts[run] = self._attempts.get(run, 0) + 1
        return self._attempts.get(run, 0), self._records.get(run, {})

    def tell(self, run: str, attempt: int, changes: Records) -> bool:
        """The process with this number: what changed; gives whether it is to stop."""
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
        """The driver: what was told since the last time."""
        changes, self._changes = self._changes, {}
        return changes

    def clear(self, run: str) -> None:
        """The driver: a run has ended, and nobody is heard about it any more."""
        self._records.pop(run, None)

    def stop(self) -> None:
        """The driver: have all that train save their state and end."""
        self._stops = True


def read_records(folder: Path) -> dict[str, bytes]:
    """What `Desk.lay` takes, of a run's folder."""
    records = {}
    for name in records_of(folder):
        with contextlib.suppress(FileNotFoundError):
            records[name] = (folder / name).read_bytes()
    return records


def write_records(folder: RunFolder, changes: Records) -> None:
    """Bring a run's folder up to date; its end stays where the driver has written one."""
    for name in sorted(changes, key=place):
        content, path = changes[name], folder.path / name
        if name == STATUS and content is not None:
            with contextlib.suppress(BoxSegError):  # what is damaged is found by who reads it
                folder.replace_status(content)
            continue
        if content is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content, durable=False)
            continue
        path.unlink(missing_ok=True)
        if path.name == ABOUT:
            # weights that were fetched here
            for left in path.parent.glob("*"):
                left.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other files are in there
            path.parent.rmdir()
