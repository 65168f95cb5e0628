"""One driver for each run or sweep in a store: it holds an object that only one process can make, and renews it.

No clocks are compared: a process that finds the object of another driver watches whether it changes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

from boxseg.errors import ConfigError, StorageError
from boxseg.files.writing import write_atomic
from orchestration.store.client import Store, StoreAwayError, TakenError
from orchestration.store.mirror import DROVE, LEASE, Mirror

RENEW_S = 20.0
"""Time between two renewals [s]."""
PATIENCE_S = 70.0
"""A driver that has not renewed it for this time counts as gone [s]."""
TRIES, AGAIN_S = 3, 1.0
"""How often a write is tried if no answer comes, and the time between two tries [s]."""
POLL_S = 5.0
"""Time between two looks whether another driver has renewed it [s]."""

logger = logging.getLogger("boxseg.store")


@dataclass(frozen=True)
class Holder:
    """Content of the object."""

    token: str
    """Different for each driver."""
    host: str
    pid: int
    renewed: int = 0
    """Number of renewals."""
    released: bool = False


class Lease:
    """The right to write into a tree of a store, from `take` to `release`."""

    def __init__(self, mirror: Mirror) -> None:
        """Makes no request; this process must hold `mirror`."""
        self._folder = mirror.folder
        self._store: Store = mirror.store
        self._key = mirror.prefix + LEASE
        self._holder = Holder(secrets.token_hex(8), socket.gethostname(), os.getpid())
        self._etag: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self.is_lost = False
        """Whether another driver has taken over, because this one did not renew in time."""
        self.was_here = True
        """Whether the driver before this one, if any, used this mirror."""

    def take(self, say: Callable[[str], object]) -> None:
        """Become the driver; if another one may be alive, wait until it renews or has been silent for `PATIENCE_S`.

        Args:
            say: Gets one message if it has to wait.

        Raises:
            ConfigError: another driver is alive.
            StorageError: the store does not answer or refuses the connection.
        """
        seen, silent_until = "", 0.0
        while True:
            found = self._read()
            if found is None:
                if self._write(only_new=True):
                    break
                continue
            other, etag = found
            self.was_here = self._was_here(other)
            if seen and etag != seen:
                raise ConfigError(
                    f"{self._folder.name} is running in process {other.pid} on {other.host}; wait for its end or "
                    "stop it"
                )
            is_silent = bool(seen) and time.monotonic() > silent_until
            if other.released or is_silent or self.was_here:
                if self._write(instead_of=etag):
                    break
                continue
            if not seen:
                seen, silent_until = etag, time.monotonic() + PATIENCE_S
                say(
                    f"waiting up to {PATIENCE_S:.0f} s for a sign of process {other.pid} on {other.host}, which drove "
                    f"{self._folder.name} and has not said that it ended"
                )
            time.sleep(POLL_S)
        write_atomic(self._folder / DROVE, self._holder.token, durable=False)
        self._thread.start()

    def release(self) -> None:
        """Let others drive; if the store does not answer, they will notice the silence."""
        self._over.set()
        self._thread.join()
        if not self.is_lost:
            self._holder = replace(self._holder, released=True)
            with contextlib.suppress(StorageError):
                self._write(instead_of=self._etag)

    def _was_here(self, other: Holder) -> bool:
        """Whether that driver used this mirror; it is gone then, as only one process at a time can hold a mirror."""
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / DROVE).read_text() == other.token
        return False

    def _renew(self) -> None:
        while not self._over.wait(RENEW_S):
            self._holder = replace(self._holder, renewed=self._holder.renewed + 1)
            try:
                if not self._write(instead_of=self._etag):
                    self.is_lost = True
                    return
            except StorageError as error:
                # nobody else can take over either, unless only this machine is cut off
                logger.info("%s", error)

    def _write(self, *, only_new: bool = False, instead_of: str | None = None) -> bool:
        """Write the object if nobody else has; returns whether it is ours."""
        content = json.dumps(asdict(self._holder)).encode()
        try:
            for left in reversed(range(TRIES)):
                # The library does not repeat a conditional write whose answer was lost; here we can tell whether it was
                # ours.
                try:
                    self._etag = self._store.write(
                        self._key, content, only_new=only_new, instead_of=instead_of
                    )
                    break
                except StoreAwayError:
                    if not left:
                        raise
                    time.sleep(AGAIN_S)
        except TakenError:
            # If the answer was lost, the repeated request, or the next renewal, finds that the object is ours.
            found = self._read()
            if found is None or found[0].token != self._holder.token:
                return False
            self._etag = found[1]
            if found[0] != self._holder:
                return self._write(instead_of=self._etag)
        return True

    def _read(self) -> tuple[Holder, str] | None:
        try:
            content, etag = self._store.read(self._key)
        except FileNotFoundError:
            return None
        try:
            return Holder(**json.loads(content)), etag
        except (ValueError, TypeError) as error:
            raise StorageError(
                f"{self._store.address}/{self._key} does not say who drives; remove it if nobody does"
            ) from error


@contextlib.contextmanager
def held(mirror: Mirror, say: Callable[[str], object]) -> Iterator[Lease]:
    """Be the only driver while the block runs; see `Lease.take`."""
    lease = Lease(mirror)
    lease.take(say)
    try:
        yield lease
    finally:
        lease.release()
