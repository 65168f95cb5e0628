"""Sends what a run or sweep writes to its store, from a thread of the driver; training never waits for it."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from boxseg.errors import ConfigError, StorageError
from orchestration.store.client import StoreAwayError
from orchestration.store.lease import Lease, held
from orchestration.store.mirror import Mirror, in_hand
from orchestration.store.places import address_of, shown

LOOK_S = 2.0
"""Time between two looks for new checkpoints [s]; looking makes no request to the store."""
RECORDS_S = 15.0
"""Time between two looks for other changes [s], which limits the number of requests for reports."""
MOST_WAIT_S = 30.0
"""Longest pause before a store that did not answer is tried again [s]."""
GIVE_UP_S = 900.0
"""How long the end of a run waits for its store [s], on any machine."""
HURRY_S = 10.0
"""The same if somebody wants an end at once [s]."""

logger = logging.getLogger("boxseg.store")


class Syncer:
    """Sends the changes of a tree from `start` to `close`, or in a `with` block, whose own error has precedence."""

    def __init__(self, mirror: Mirror, lease: Lease | None) -> None:
        """Sends nothing yet; `lease` is None if no other process can write there."""
        self._lease = lease
        self._mirror = mirror
        self._closing, self._given_up = threading.Event(), threading.Event()
        self._fault: StorageError | None = None
        self._thread = threading.Thread(target=self._work, name="syncer", daemon=True)

    def __enter__(self) -> Syncer:
        self.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            # after a second interrupt, somebody wants an end at once
            self.close(give_up_s=HURRY_S if kind is KeyboardInterrupt else GIVE_UP_S)
        except StorageError as fault:
            if error is None:
                raise
            say(str(fault))

    @property
    def is_taken_over(self) -> bool:
        """Whether another driver has taken over the tree."""
        return self._lease is not None and self._lease.is_lost

    def start(self) -> None:
        """Send everything, and begin to send changes.

        Raises:
            StorageError: the store does not answer or refuses the connection, so that nothing should begin.
        """
        self._mirror.push()
        self._thread.start()

    def close(self, *, give_up_s: float = GIVE_UP_S) -> None:
        """Send what is left, and end.

        Raises:
            StorageError: the store did not take everything in time or refuses access, or another driver took over.
        """
        self._closing.set()
        deadline = time.monotonic() + give_up_s
        next_notice = time.monotonic() + 2 * LOOK_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(LOOK_S)
            if self._thread.is_alive() and time.monotonic() > next_notice:
                next_notice += 60.0
                say(
                    f"waiting for {shown(self._mirror.folder)} to take the rest{_because(self._fault)}"
                )
        self._given_up.set()  # from now on others may hold the mirror
        if self._thread.is_alive() or self._fault is not None:
            raise StorageError(
                f"{shown(self._mirror.folder)} does not have all files{_because(self._fault)}; they are complete in "
                f"{self._mirror.folder}, and the next command on this machine that reads them sends the rest, such as "
                f"`boxseg runs show {self._mirror.folder.name}` with its --storage"
            )

    def _work(self) -> None:
        pause, records_at = LOOK_S, 0.0
        while not self._given_up.is_set():
            if self.is_taken_over:
                self._fault = StorageError("another driver has taken it over")
                return
            closing = self._closing.is_set()
            records = closing or time.monotonic() > records_at
            try:
                busy = self._mirror.push(records=records)
                self._fault, pause = None, LOOK_S
            except Exception as error:  # whatever it is, the run must not count as sent
                level = logging.WARNING if self._fault is None else logging.DEBUG
                logger.log(level, "%s; training goes on, and what waits is sent later", error)
                self._fault, busy = _storage_error(error), True
                if closing and not isinstance(error, StoreAwayError):
                    return  # it would refuse access again
                pause = min(2 * pause, MOST_WAIT_S)
            else:
                if records or busy:
                    records_at = time.monotonic() + RECORDS_S
                if closing and not busy:
                    return
                if closing:
                    continue
            if closing:
                self._given_up.wait(min(pause, 5.0))
            else:
                self._closing.wait(pause)


def _storage_error(error: Exception) -> StorageError:
    if isinstance(error, StorageError):
        return error
    return StorageError(f"{type(error).__name__}: {error}")


def _because(fault: StorageError | None) -> str:
    return "" if fault is None else f" ({fault})"


def say(text: str) -> None:
    """Tell people on stderr."""
    print(f"boxseg: {text}", file=sys.stderr, flush=True)  # noqa: T201


@contextlib.contextmanager
def drive_in_store(folder: Path) -> Iterator[Syncer | None]:
    """Drive a run or sweep in a store: keep others out, fetch its records, and send what changes.

    Yields None for a folder outside of mirrors, where none of this is needed.

    Raises:
        ConfigError: another process drives it.
        StorageError: the store does not answer or refuses the connection, or did not take the end.
    """
    if address_of(folder) is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            mirror = stack.enter_context(in_hand(folder))
        except BlockingIOError as error:
            raise ConfigError(
                f"{folder.name} is driven by another process of this machine; wait for its end or stop it"
            ) from error
        lease = stack.enter_context(held(mirror, say))
        mirror.begin(drove_last=lease.was_here)
        mirror.pull()
        yield Syncer(mirror, lease)
