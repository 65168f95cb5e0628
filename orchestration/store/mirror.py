"""A run or sweep in a store and its mirror, the folder that stands for it here: differences are copied either way.

A sweep and its trials are one tree. Readers pull its records, and the files of a checkpoint when they need them; the
driver pushes. A checkpoint counts once its `about.json` is there, which is sent last and has the checksums of the other
files. The mirror remembers in `.store.json` which version of each file it has, so that nothing is copied twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from boxseg.engine.checkpoint import (
    ABOUT,
    STEP,
    better_network,
    find_checkpoint,
    find_checkpoint_damage,
    folder_of,
    load_about,
    oldest_first,
)
from boxseg.errors import CheckpointError
from boxseg.files.writing import make_folder, write_atomic
from orchestration.record.files import file_lock
from orchestration.store.client import place_of
from orchestration.store.places import address_of

STATE, LOCK, DROVE = ".store.json", ".store.lock", ".store.driver"
LEASE = ".driver"
"""Object that says who drives a tree, or drove it last; see `lease.py`. `DROVE` has the token of our driver."""
STATUS, TRACKING, JOURNAL = "status.json", "tracking.json", "journal.jsonl"
LOCAL = {"pulse.json", "stop"}
"""Files that are only of use while and where a run trains; they are never sent, nor are names with a leading dot."""
LOCAL_FOLDERS = {"logs"}
AT_ONCE = 8
"""Files, or runs, that are fetched at the same time."""
FRESH_S = 5.0
"""A listing of runs is not repeated within this time [s], as one command may need it several times."""

logger = logging.getLogger("boxseg.store")


class Version(NamedTuple):
    """Which version of a file the mirror has."""

    etag: str
    """The store's name for it."""
    size: int
    mtime_ns: int | None
    """When the copy here was written [ns since 1970]; None: it is only in the store."""


class Mirror:
    """One tree: a run, or a sweep with its trials. Only one process of a machine can hold it (`in_hand`)."""

    def __init__(self, folder: Path) -> None:
        """`folder` is NAME/ID in the mirror of a storage."""
        self.folder = folder
        self.store, self.prefix = place_of(folder)
        self._versions = self._read_versions()
        # Whether this machine drove it last; None: not known yet.
        self._drove_last: bool | None = None
        self._drives = False

    def begin(self, *, drove_last: bool) -> None:
        """Become the mirror of a driver; `drove_last` says whether the driver before was on this machine."""
        self._drives, self._drove_last = True, drove_last

    def pull(self, *, only: str | None = None) -> None:
        """Fetch the records of the store; large files of checkpoints stay there until they are needed.

        A file with changes that were not sent yet stays, unless another machine has driven since.

        Args:
            only: Name of the records to fetch, as in `status.json`; None: all records.

        Raises:
            StorageError: the store does not answer or refuses the connection.
        """
        listed = {
            entry.key.removeprefix(self.prefix): entry
            for entry in self.store.entries(self.prefix.rstrip("/"))
        }
        listed = {name: entry for name, entry in listed.items() if not is_local(name)}
        present, known_before = self._present(), set(self._versions)
        wanted = []
        for name, entry in listed.items():
            known = self._versions.get(name)
            is_same = known is not None and known.etag == entry.etag
            if is_same and name in present:
                continue
            if not is_weights(name):
                if only in (None, PurePosixPath(name).name):
                    wanted.append(name)
                continue
            if self._keeps_own(name, present):
                continue
            # another version, or none here: fetched when it is needed
            (self.folder / name).unlink(missing_ok=True)
            self._versions[name] = Version(entry.etag, entry.size, None)
        wanted = [name for name in wanted if not self._keeps_own(name, present)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self._fetch, wanted))
        for name in self._versions.keys() - listed.keys():
            # stays if it was changed here, unknown to the process that removed it in the store
            if self._is_unchanged(name, present):
                self._drop(name)
            del self._versions[name]
        # Files that a driver here never sent are outdated if another machine has driven since. Otherwise somebody may
        # have written a report here, which stays.
        unsent = [
            name
            for name in present
            if name not in listed
            and name not in known_before
            and (self._drives or "checkpoints" in PurePosixPath(name).parts)
        ]
        if only is None and unsent and not self._has_driven_last():
            for name in unsent:
                self._drop(name)
        self._write_versions()

    def _drop(self, name: str) -> None:
        """Remove a file here, and its folder with the last one: an empty one would look like a damaged checkpoint."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    def fetch_checkpoint(self, checkpoint: Path, *, only: str | None = None) -> None:
        """Fetch the files of one checkpoint that match its `about.json`; others are not fetched.

        Args:
            checkpoint: Its folder.
            only: The one file to fetch; None: all of them.

        Raises:
            StorageError: the store does not answer or refuses the connection.
        """
        try:
            about = json.loads((checkpoint / ABOUT).read_bytes())
            sums = {name: digest for name, digest in about["sha256"].items() if name != ABOUT}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return  # the reader of the checkpoint reports the damage
        for name, digest in sums.items():
            path = checkpoint / PurePosixPath(name).name
            if only not in (None, name) or _digest(path) == digest:
                continue
            key = path.relative_to(self.folder).as_posix()
            with contextlib.suppress(FileNotFoundError):
                self._fetch(key, digest=digest)
        self._write_versions()

    def push(self, *, records: bool = True) -> bool:
        """Send what changed here since the last time; returns whether there was anything.

        First come the weights of new checkpoints, then records, then what makes the checkpoints count, and last the
        states of runs, so that no file in the store ever refers to one that is missing there. Then files that are gone
        here are removed there.

        Args:
            records: Send records even if no checkpoint is new.

        Raises:
            StorageError: the store does not answer or refuses the connection; the next time goes on from there.
        """
        present = self._present()
        changed, gone = self._changed(present), self._gone(present)
        if not (any(map(is_about, changed)) or (records and (changed or gone))):
            return False
        # Training goes on meanwhile: first what is gone and what the records say, then the checkpoints, so that these
        # are at least as new.
        ends = self._read_ends(changed)
        present = self._present() | {name: about for name, (about, _) in ends.items()}
        changed, gone = self._changed(present), [name for name in gone if name not in present]
        abouts = [name for name in changed if is_about(name)]
        try:
            complete = [name for name in abouts if self.send_weights(name)]
            waiting = {*abouts, *filter(refers_to_others, changed)} - {*complete}
            sent = {name for name in sorted({*changed} - waiting, key=place) if self._send(name)}
            # else training has removed one meanwhile: next time, with newer ones
            if sent.issuperset(abouts):
                for name in sorted(ends, key=place):
                    self._write(name, *ends[name])
                self._remove(gone)
        finally:
            self._write_versions()
        return True

    def send_rest(self) -> None:
        """Send what the last driver could not send, if it was on this machine.

        Raises:
            StorageError: the store does not answer or refuses the connection.
        """
        if self._changed(self._present()) and self._has_driven_last():
            while self.push():
                pass

    def _keeps_own(self, name: str, present: dict[str, os.stat_result]) -> bool:
        """Whether a file here is newer than the one in the store, if that is another version than we knew."""
        is_older = name not in present or self._is_unchanged(name, present)
        return not is_older and self._has_driven_last()

    def _has_driven_last(self) -> bool:
        """Whether the last driver was on this machine; its process no longer holds the mirror."""
        if self._drove_last is None:
            # a killed driver may have sent it without noting that
            self._drove_last = False
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
                token = json.loads(self.store.read(self.prefix + LEASE)[0])["token"]
                self._drove_last = (self.folder / DROVE).read_text() == token
        return self._drove_last

    def send_weights(self, about: str) -> bool:
        """Send the files of a checkpoint except `about.json`; returns whether it is still the same checkpoint then.

        Files that are not here were sent by the machine that trains.

        Raises:
            StorageError: the store does not answer or refuses the connection.
        """
        try:
            before = (self.folder / about).stat().st_ino
            for path in sorted((self.folder / about).parent.iterdir()):
                name, here = path.relative_to(self.folder).as_posix(), path.stat()
                if is_weights(name) and not self._is_unchanged(name, {name: here}):
                    etag = self.store.upload(self.prefix + name, path)
                    self._versions[name] = Version(etag, here.st_size, here.st_mtime_ns)
            return (self.folder / about).stat().st_ino == before
        except FileNotFoundError:  # training has removed it meanwhile
            return False

    def _read_ends(self, changed: list[str]) -> dict[str, tuple[os.stat_result, bytes]]:
        """Records that refer to others, read in the reverse order of sending, so that what they refer to exists."""
        records = {}
        for name in sorted(filter(refers_to_others, changed), key=place, reverse=True):
            with contextlib.suppress(FileNotFoundError):
                # taken before reading, so that a file that is written meanwhile counts as changed
                about = (self.folder / name).lstat()
                records[name] = about, (self.folder / name).read_bytes()
        return records

    def _send(self, name: str) -> bool:
        """Send a record; returns False if it is gone meanwhile."""
        path = self.folder / name
        try:
            about, content = path.stat(), path.read_bytes()
        except FileNotFoundError:
            return False
        self._write(name, about, content)
        return True

    def _write(self, name: str, about: os.stat_result, content: bytes) -> None:
        etag = self.store.write(self.prefix + name, content)
        self._versions[name] = Version(etag, about.st_size, about.st_mtime_ns)

    def _remove(self, gone: list[str]) -> None:
        """Remove files in the store; of a checkpoint first what makes it count, then the rest."""
        folders = [name.removesuffix(ABOUT) for name in gone if name.endswith(f"/{ABOUT}")]
        self.store.delete([self.prefix + name for name in gone])
        for folder in folders:
            left = self.store.entries(f"{self.prefix}{folder}"[:-1])
            self.store.delete([entry.key for entry in left])
        for name in list(self._versions):
            if name in gone or name.startswith(tuple(folders)):
                del self._versions[name]

    def _fetch(self, name: str, *, digest: str | None = None) -> None:
        """Fetch a file, which replaces the one here atomically."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        try:
            etag = self.store.download(self.prefix + name, scratch)
            if digest is not None and _digest(scratch) != digest:
                logger.warning("%s: in the store it does not match its %s", path, ABOUT)
                return
            scratch.replace(path)
            about = path.stat()
            self._versions[name] = Version(etag, about.st_size, about.st_mtime_ns)
        finally:
            scratch.unlink(missing_ok=True)

    def _present(self) -> dict[str, os.stat_result]:
        return _files(self.folder)

    def _changed(self, present: dict[str, os.stat_result]) -> list[str]:
        """Records that differ from those in the store."""
        return [
            name
            for name in present
            if not is_weights(name) and not self._is_unchanged(name, present)
        ]

    def _gone(self, present: dict[str, os.stat_result]) -> list[str]:
        """Records that are gone here, but still in the store."""
        return [
            name
            for name, version in self._versions.items()
            if name not in present and not is_weights(name) and version.mtime_ns is not None
        ]

    def _is_unchanged(self, name: str, present: dict[str, os.stat_result]) -> bool:
        known, here = self._versions.get(name), present.get(name)
        if known is None or here is None:
            return False
        return (known.size, known.mtime_ns) == (here.st_size, here.st_mtime_ns)

    def _read_versions(self) -> dict[str, Version]:
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            kept = json.loads((self.folder / STATE).read_bytes())
            return {name: Version(*version) for name, version in kept.items()}
        return {}

    def _write_versions(self) -> None:
        # It can be restored from the store, so we do not wait for the disk.
        write_atomic(self.folder / STATE, json.dumps(self._versions), durable=False)


def _files(root: Path) -> dict[str, os.stat_result]:
    """Name -> path of the files of a tree that belong in the store."""
    found = {}
    for folder, folders, names in os.walk(root):
        inside = Path(folder).relative_to(root)
        folders[:] = [name for name in folders if not is_local((inside / name).as_posix())]
        for name in names:
            path = inside / name
            with contextlib.suppress(FileNotFoundError):
                about = (root / path).lstat()
                # without the links `last` and `best`, on which nothing depends
                is_file = not (root / path).is_symlink()
                if is_file and not is_local(path.as_posix()) and not _is_private(root / path):
                    found[path.as_posix()] = about
    return found


def _is_private(path: Path) -> bool:
    """Whether a file is about an MLflow that only this machine has."""
    if path.name != TRACKING:
        return False
    with contextlib.suppress(OSError, ValueError, AttributeError):
        uri = json.loads(path.read_bytes()).get("uri", "")
        return str(uri).startswith("sqlite:")
    return True


def records_of(folder: Path) -> dict[str, os.stat_result]:
    """Path in the folder of a run -> the files that are sent, without large files of checkpoints."""
    return {name: about for name, about in _files(folder).items() if not is_weights(name)}


def is_local(name: str) -> bool:
    """Whether a file of a run, by its path in the folder of the run or sweep, is never sent."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    return hidden or path.name in LOCAL or not LOCAL_FOLDERS.isdisjoint(path.parts)


def is_weights(name: str) -> bool:
    """Whether a file is a large one of a checkpoint."""
    path = PurePosixPath(name)
    in_checkpoint = STEP.fullmatch(path.parent.name) or path.parent.name == "best"
    return bool(in_checkpoint) and path.name != ABOUT


def place(name: str) -> tuple[int, int]:
    """Sorting key of records to send: those that others refer to come first, and deeper ones before."""
    path = PurePosixPath(name)
    ranks = {ABOUT: 1, JOURNAL: 2, STATUS: 3}
    return ranks.get(path.name, 0), -len(path.parts)


def is_about(name: str) -> bool:
    """Whether a file is what makes a checkpoint count."""
    return PurePosixPath(name).name == ABOUT


def refers_to_others(name: str) -> bool:
    """Whether a record refers to checkpoints or trials, which have to be in the store before it."""
    return PurePosixPath(name).name in (JOURNAL, STATUS)


def _digest(path: Path) -> str | None:
    """SHA-256 of a file; None if it does not exist."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def in_hand(folder: Path) -> Iterator[Mirror]:
    """Hold the mirror of a run or sweep, so that no other process of this machine can.

    Raises:
        BlockingIOError: another process holds it.
    """
    make_folder(folder)
    with file_lock(folder / LOCK, wait=False):
        yield Mirror(folder)


_looked: dict[Path, float] = {}
"""Folder -> when its listing was last fetched."""


def tree_of(path: Path) -> Path | None:
    """The folder NAME/ID of the run or sweep that a path in a mirror belongs to; None outside of mirrors.

    A trial belongs to its sweep: the tree begins at the outermost folder with a status, here or in the store.
    """
    if address_of(path) is None:
        return None
    above = [folder for folder in (path, *path.parents) if (folder / STATUS).exists()]
    return above[-1] if above else None


def pull_tree(path: Path) -> None:
    """Update the records of the run or sweep that a path belongs to, unless this machine drives it.

    Raises:
        StorageError: the store does not answer or refuses the connection.
    """
    tree = tree_of(path)
    if tree is not None and time.monotonic() - _looked.get(tree, -FRESH_S) > FRESH_S:
        with contextlib.suppress(BlockingIOError), in_hand(tree) as mirror:
            mirror.pull()
            mirror.send_rest()
        _looked[tree] = time.monotonic()


def pull_below(parent: Path, start: str) -> None:
    """Fetch the folders of a mirror whose names begin with `name`; does nothing outside of mirrors.

    Raises:
        StorageError: the store does not answer or refuses the connection.
    """
    if address_of(parent) is None:
        return
    store, prefix = place_of(parent)
    for name in store.folders(prefix.rstrip("/")):
        if name.startswith(start):
            with contextlib.suppress(BlockingIOError), in_hand(parent / name) as mirror:
                mirror.pull()


def bring(path: Path) -> None:
    """Fetch what is needed to use a run or checkpoint, given its path in a mirror; does nothing for other paths.

    Raises:
        StorageError: the store does not answer or refuses the connection.
    """
    if address_of(path) is None:
        return
    # if it is held, this machine drives it, or another process fetches it
    with contextlib.suppress(BlockingIOError), in_hand(tree_of(path) or path) as mirror:
        mirror.pull()
    fetch_network(find_checkpoint(path).resolve())


def fetch_network(checkpoint: Path) -> Path:
    """Fetch the better network of a checkpoint, which is all that using it takes; returns the checkpoint's folder.

    Raises:
        StorageError: the store does not answer or refuses the connection.
    """
    with contextlib.suppress(CheckpointError):  # its reader reports the damage
        fetch_checkpoint(checkpoint, only=f"{better_network(load_about(checkpoint))}.safetensors")
    return checkpoint


def fetch_checkpoint(checkpoint: Path, *, only: str | None = None) -> Path:
    """Fetch the files of a checkpoint; returns its folder. Those outside of mirrors need not be fetched.

    Args:
        checkpoint: Its folder.
        only: The one file to fetch; None: all of them.

    Raises:
        StorageError: the store does not answer or refuses the connection.
    """
    tree = tree_of(checkpoint)
    if tree is not None and find_checkpoint_damage(checkpoint, only=only) is not None:
        # A driver of this machine may hold the mirror; it does not change checkpoints that it has published.
        Mirror(tree).fetch_checkpoint(checkpoint.resolve(), only=only)
    return checkpoint


def fetch_newest(checkpoints: Path, *, with_best: bool = False) -> None:
    """Fetch the newest sound checkpoint of a run, to go on from it; damaged ones are skipped.

    Args:
        checkpoints: Folder of the run's checkpoints.
        with_best: Fetch the best one too, so that it can be checked.

    Raises:
        StorageError: the store does not answer or refuses the connection.
    """
    if address_of(checkpoints) is None:
        return
    for _, folder in reversed(oldest_first(checkpoints)):
        with contextlib.suppress(CheckpointError):
            if find_checkpoint_damage(fetch_checkpoint(folder)) is None:
                best = folder_of(checkpoints, load_about(folder).get("best_step", 0))
                if with_best and best.is_dir():
                    fetch_checkpoint(best)
                return


def refresh(storage: Path, name: str | None = None) -> None:
    """Update the states of all runs in a storage, or of those of one name; does nothing outside of mirrors.

    Raises:
        StorageError: the store does not answer or refuses the connection.
    """
    storage = storage.absolute()
    looked_at = storage if name is None else storage / name
    age_s = time.monotonic() - _looked.get(looked_at, -FRESH_S)
    if address_of(storage) is None or age_s < FRESH_S:
        return
    store, prefix = place_of(storage)
    names = store.folders(prefix.rstrip("/")) if name is None else [name]
    trees = [
        storage / each / id
        for each in names
        if not each.startswith(".")
        for id in store.folders(f"{prefix}{each}")
    ]

    def pull(tree: Path) -> None:
        # a run that this machine drives is up to date
        with contextlib.suppress(BlockingIOError), in_hand(tree) as mirror:
            mirror.pull(only=STATUS)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(pull, trees))
    _looked[looked_at] = time.monotonic()
