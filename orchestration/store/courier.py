"""For a run that trains on another machine than its driver: its folder here, and what carries its files away."""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from boxseg.engine.checkpoint import ABOUT, folder_of
from boxseg.errors import BoxSegError, StorageError
from boxseg.files.writing import make_folder, write_atomic
from orchestration.record.files import to_json
from orchestration.record.run_folder import RunFolder
from orchestration.store.client import patiently
from orchestration.store.desk import Desk
from orchestration.store.mirror import (
    DROVE,
    STATUS,
    Mirror,
    bring,
    fetch_newest,
    is_about,
    place,
    records_of,
)
from orchestration.store.places import shown
from orchestration.store.syncer import GIVE_UP_S, MOST_WAIT_S

MARK = ".courier"
TELL_S = 1.0
"""Time between two messages to the driver about what changed [s]; they make no request to the store."""
BEGIN_S = 300.0
"""How long a run waits for the store to answer before it begins [s]."""

logger = logging.getLogger("boxseg.store")


@dataclass(frozen=True)
class DriverLink:
    """How a training process on another machine reaches its driver."""

    desk: Desk
    """The driver's desk, which can be reached from any machine."""
    home: Path
    """Folder for mirrors on the machine that sent this; paths in it are replaced by ours."""
    token: str
    """Token of the driver's lease; only the driver's own mirror has it."""

    def is_home(self, run: Path) -> bool:
        """Whether the run's folder here is the driver's own, so that nothing has to be carried."""
        for above in (run, run.parent):
            if (above / DROVE).is_file():
                return (above / DROVE).read_text() == self.token
        return False


class Courier:
    """Context that fetches a run's records and newest checkpoint, and then carries changes away until it is left."""

    def __init__(self, desk: Desk, folder: Path, *, leads: bool, trains: bool = True) -> None:
        """Does nothing yet.

        Args:
            desk: Desk of the driver.
            folder: Folder of the run in the mirror of this machine.
            leads: Whether this process writes the run's files; others only read them.
            trains: Whether it needs checkpoints and may write some; if not, it makes no request to the store.
        """
        self._desk = desk
        self._trains = trains
        self._run = RunFolder(folder)
        self._address = shown(folder)
        self._leads = leads
        self.mark = secrets.token_hex(8)
        """Is written into the folder once the leading process has received it."""
        self._attempt = 0
        self._mirror: Mirror | None = None
        self._known: dict[str, tuple[int, int]] = {}
        """File -> size and time of the version that the desk has."""
        self._sent: dict[str, int] = {}
        """`about.json` of checkpoints whose weights are in the store -> its inode."""
        self._best: dict[str, Any] = {}
        """The best evaluation in the status that the driver has."""
        self._closing = threading.Event()
        self._telling = threading.Lock()
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (("courier", self._tell_often), ("weights", self._send_often))
        ]

    def __enter__(self) -> Courier:
        """Receive the run.

        Raises:
            StorageError: the store does not answer or refuses the connection.
        """
        folder = self._run.path
        make_folder(folder)
        self._attempt, records = self._desk.take(self._address, leads=self._leads)
        self._clear(records, keeps_checkpoints=self._leads and self._was_last_here(records))
        for name, content in records.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / name, content, durable=False)
        if self._trains:
            checkpoints = folder / "checkpoints"
            patiently(lambda: fetch_newest(checkpoints, with_best=self._leads), BEGIN_S)
        self._best = _best_in(records.get(STATUS, b"{}"))
        self._mirror = Mirror(folder)
        for name, about in records_of(folder).items():
            if name in records or not self._trains:
                self._known[name] = (about.st_size, about.st_mtime_ns)
                self._sent[name] = about.st_ino
        if self._leads:
            # also a checkpoint that was kept here, as other ranks fetch it from the store
            patiently(self._send_weights, BEGIN_S)
            self._tell()
            (folder / MARK).write_text(self.mark)
            for thread in self._threads:
                thread.start()
        return self

    def is_received(self, mark: str) -> bool:
        """Whether the leading process, which has this mark, uses the same folder."""
        path = self._run.path / MARK
        return path.is_file() and path.read_text() == mark

    def _was_last_here(self, records: dict[str, bytes]) -> bool:
        """Whether the run's last process was here, and nothing was reported since: its checkpoints still count."""
        with contextlib.suppress(FileNotFoundError):
            return self._run.metrics_path.read_bytes() == records.get(self._run.metrics_path.name)
        return False

    def _clear(self, records: dict[str, bytes], *, keeps_checkpoints: bool) -> None:
        """Remove files of an earlier process that the driver does not know."""
        folder = self._run.path
        for name in records_of(folder).keys() - records.keys():
            if not (keeps_checkpoints and is_about(name)):
                (folder / name).unlink(missing_ok=True)
        for checkpoint in (folder / "checkpoints").glob("step-*"):
            if not (checkpoint / ABOUT).exists():
                shutil.rmtree(checkpoint, ignore_errors=True)
        (folder / "stop").unlink(missing_ok=True)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if not self._leads:
            return
        # not for an end that the store itself caused: that has waited already
        if not isinstance(error, StorageError):
            with contextlib.suppress(StorageError):
                self.flush()
        if left := self._unsent():
            logger.warning("%s: the store did not take %s", self._address, ", ".join(left))
        self._tell(is_last=True)
        self._closing.set()

    def flush(self) -> None:
        """Wait until the store has the weights of all checkpoints.

        Raises:
            StorageError: it does not take them in time.
        """
        deadline = time.monotonic() + GIVE_UP_S
        while self._leads and (left := self._unsent()):
            if time.monotonic() > deadline:
                names = ", ".join(PurePosixPath(name).parent.name for name in left)
                raise StorageError(
                    f"{self._address}: the store has not taken {names} for {GIVE_UP_S / 60:.0f} minutes; it is in "
                    f"{self._run.path} on {socket.gethostname()}. Once the store answers, --resume goes on from there "
                    "if Ray begins the run on that machine, and elsewhere from the last checkpoint in the store"
                )
            time.sleep(0.1)

    def tell(self) -> None:
        """Send the driver everything that has changed in the run's folder."""
        if self._leads:
            self._tell()

    def has_sent(self, checkpoint: Path) -> bool:
        """Whether the store has a checkpoint and the driver knows it, or training has removed it since."""
        name = f"checkpoints/{checkpoint.name}/{ABOUT}"
        try:
            about = (self._run.path / name).stat()
        except FileNotFoundError:
            return True
        return self._known.get(name) == (about.st_size, about.st_mtime_ns)

    def _unsent(self) -> list[str]:
        """Checkpoints whose weights are not in the store yet, oldest first.

        In this order, a run that goes on from a checkpoint in the store also finds the best one before it.
        """
        return [
            name
            for name, about in sorted(records_of(self._run.path).items())
            if PurePosixPath(name).name == ABOUT and self._sent.get(name) != about.st_ino
        ]

    def _send_often(self) -> None:
        pause = TELL_S
        while not self._closing.wait(pause):
            pause = TELL_S
            try:
                self._send_weights()
            except Exception as error:  # whatever it is, the next time may be better
                logger.warning("%s; training goes on, and what waits is sent later", error)
                pause = min(2 * max(pause, TELL_S), MOST_WAIT_S)

    def _send_weights(self) -> None:
        """Send the weights of checkpoints that the store does not have.

        Raises:
            StorageError: it does not answer or refuses the connection.
        """
        assert self._mirror is not None
        for name in self._unsent():
            with contextlib.suppress(FileNotFoundError):  # training has removed it meanwhile
                inode = (self._run.path / name).stat().st_ino
                if self._mirror.send_weights(name):
                    self._sent[name] = inode

    def _tell_often(self) -> None:
        while not self._closing.wait(TELL_S):
            try:
                self._tell()
            except Exception as error:  # the driver is gone, or will be reached next time
                logger.info("%s: the driver does not hear: %s", self._address, error)

    def _tell(self, *, is_last: bool = False) -> None:
        """Send the driver what changed; an end only once the store has all it refers to, or at the last call."""
        with self._telling:
            had_ended = self._has_ended()
            present = records_of(self._run.path)
            waiting = set(self._unsent())
            changes: dict[str, bytes | None] = {}
            if not waiting:  # once no new one waits: removed checkpoints made room for them
                changes = {name: None for name in self._known if name not in present}
            known = {}
            for name in sorted(present, key=place):
                version = (present[name].st_size, present[name].st_mtime_ns)
                if name in waiting or self._known.get(name) == version:
                    continue
                try:
                    content = (self._run.path / name).read_bytes()
                except FileNotFoundError:
                    continue
                known[name] = version
                if name == STATUS:
                    # An end that was sent stays, whatever becomes of this machine.
                    is_early = waiting or not had_ended
                    if is_early and not is_last and self._has_ended():
                        del known[name]
                        continue
                    if not self._may_send_best(content, changes):
                        content = self._with_earlier_best(content)
                        del known[name]  # so that it is sent again
                changes[name] = content
            stops = self._desk.tell(self._address, self._attempt, changes)
            for name in [name for name, content in changes.items() if content is None]:
                del self._known[name]
            self._known |= known
            if stops:
                self._run.request_stop()

    def _may_send_best(self, status: bytes, changes: Mapping[str, bytes | None]) -> bool:
        """Whether the driver knows the checkpoint of a status's best evaluation, at least with these changes."""
        found = _best_in(status)
        step = found["best_step"]
        if step is not None:
            about = f"checkpoints/{folder_of(self._run.path, step).name}/{ABOUT}"
            gone = {name for name, content in changes.items() if content is None}
            if about not in (self._known.keys() | changes.keys()) - gone:
                return False
        self._best = found
        return True

    def _with_earlier_best(self, status: bytes) -> bytes:
        """A status in which the best evaluation is one whose checkpoint the driver knows."""
        return to_json(json.loads(status) | self._best, indent=1).encode()

    def _has_ended(self) -> bool:
        with contextlib.suppress(BoxSegError):  # the driver reports the damage
            return self._run.stored().is_final
        return False


def _best_in(status: bytes) -> dict[str, Any]:
    """The best evaluation of a status; empty for a damaged one, which the driver reports."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        found = json.loads(status)
        return {"best": found["best"], "best_step": found["best_step"]}
    return {"best": {}, "best_step": None}


def bring_patiently(path: Path) -> None:
    """`bring`, which waits if the store is away for a while.

    Raises:
        StorageError: it stays away, or refuses access.
    """
    patiently(lambda: bring(path), BEGIN_S)
