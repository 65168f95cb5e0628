"""Images and annotations of a store: fetched to each machine that reads them, into the folders that stand for them.

A file only gets its name once it is complete, and `.data.json` of the folder says which version of the object it is.
Fetched files stay for the next run; if `BOXSEG_DATA_GB` would be exceeded, folders that were not used for the longest
time are removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from boxseg.coco.checks import read_well_formed
from boxseg.config.method import CocoSource
from boxseg.errors import ConfigError, DataError
from boxseg.files.names import is_inside
from boxseg.files.writing import write_atomic
from orchestration.config.spec import RunSpec
from orchestration.errors import ResourceError
from orchestration.record.files import file_lock
from orchestration.store.client import Entry, StoreAwayError, patiently, place_of
from orchestration.store.places import address_of, mirrors, shown

INDEX, FETCH_LOCK, USE_LOCK = ".data.json", ".data.fetch", ".data.use"
"""Files in a folder of data: versions of its files, lock of the process that fetches, lock of all that read."""
UNFINISHED = ".data.part-"
"""Prefix of files that are being fetched."""
TAR = ".tar"
LIMIT_VARIABLE = "BOXSEG_DATA_GB"
"""Environment variable: limit of all data from stores on this machine [GB]; unset: the size of the disk."""
SPARE_BYTES = 2 * 10**9
"""Room that is left free on the disk."""
AT_ONCE = 32
"""Files that are fetched at the same time, which hides the latency of each."""
PATIENCE_S = 600.0
"""How long a store may be away before a run gives up [s]; requests are repeated meanwhile."""
TELL_S = 10.0
"""Time between two lines about the progress, and between two writes of the index [s]."""

Tell = Callable[[str], None]
"""Shows a line about the progress."""

logger = logging.getLogger("boxseg.store")


def fetch_annotations(spec: RunSpec) -> None:
    """Fetch the annotation files of a run's data, and one image of each, so that settings can be checked.

    Raises:
        DataError: there is no such object, or images that an annotation file lists are not below the prefix.
        StorageError: the store does not answer, or refuses us.
        ResourceError: the disk has no room.
    """
    _fetch(spec, logger.info, patience_s=0.0, most=1)


def fetch_data(spec: RunSpec, tell: Tell = logger.info) -> None:
    """Fetch all data of a run to this machine; several processes share what one of them fetches.

    Until this process ends, no other process removes or replaces it.

    Raises:
        DataError: an object is missing, or has changed while others on this machine read it.
        StorageError: the store refuses us, or has not answered for ten minutes.
        ResourceError: the disk has no room, or `BOXSEG_DATA_GB` allows less.
    """
    _fetch(spec, tell, patience_s=PATIENCE_S)


def fetch_files(
    folder: Path, names: Iterable[str], *, setting: str, tell: Tell
) -> dict[str, list[str]]:
    """Fetch files below a prefix, as `fetch_data` does; returns the members of each tar file among them.

    Args:
        folder: The folder that stands for the prefix.
        names: Below the prefix.
        setting: The setting or argument that names them, for messages.
        tell: Shows the progress.
    """
    return _Folder(folder, setting, tell, PATIENCE_S).fetch(names)


def _fetch(spec: RunSpec, tell: Tell, *, patience_s: float, most: int | None = None) -> None:
    for name, source in spec.data.files.items():
        if address_of(source.annotations) is not None:
            setting, path = f"data.{name}.annotations", source.annotations
            folder = _Folder(path.parent, setting, tell, patience_s)
            folder.fetch([path.name])
        if address_of(source.images) is not None:
            folder = _Folder(source.images, f"data.{name}.images", tell, patience_s)
            folder.fetch(listed_images(source), most=most)


def listed_images(source: CocoSource) -> list[str]:
    """File names of the images that an annotation file lists; its faults are reported where it is checked."""
    try:
        images = read_well_formed(source.annotations, whole=False)["images"]
    except DataError:
        return []
    return [image["file_name"] for image in images if is_inside(image["file_name"])]


class _Version(NamedTuple):
    """The version of a file here."""

    etag: str
    """Etag of the object, or of the tar file that it was in."""
    size: int
    """Size of the file [bytes]."""


class _Folder:
    """The objects below a prefix, and the folder of this machine that stands for it."""

    def __init__(self, path: Path, setting: str, tell: Tell, patience_s: float) -> None:
        """`setting` is for messages; `patience_s` is how long the store may be away [s]."""
        self.path = path
        self.store, self.prefix = place_of(path)
        self._setting, self._tell, self._patience_s = setting, tell, patience_s
        self._known: dict[str, _Version] = {}

    def fetch(self, names: Iterable[str], *, most: int | None = None) -> dict[str, list[str]]:
        """Fetch the named files unless they are here in the store's version; returns the members of the named tar
        files.

        Args:
            names: Below the prefix; missing ones may be in tar files.
            most: Fetch no more files than this.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        # an annotation file may list an image twice
        names = list(dict.fromkeys(names))
        with _waiting_for(self.path, self._tell):
            self._known = _read_index(self.path)
            listed = patiently(lambda: self._list(names), self._patience_s)
            tars = {name: entry for name, entry in listed.items() if name.endswith(TAR)}
            missing = [name for name in names if name not in listed]
            if missing and not tars:
                raise DataError(
                    f"{self._setting}: {len(missing)} of {len(names)} files, such as {missing[0]}, are not in "
                    f"{shown(self.path)}; correct the address or the names, or upload them"
                )
            asked = {name: listed[name] for name in names if name in listed}
            if missing and most is None:
                # it is not known which tar file has which of them
                asked |= tars
            damaged = {
                version.etag for name, version in self._known.items() if not self._is_whole(name)
            }
            wanted = [entry for entry in asked.values() if not self._has(entry, damaged)][:most]
            self._refuse_changes(wanted)
            _make_room(self.path, sum(entry.size for entry in wanted))
            # left by killed processes, as only the holder of the lock fetches
            for left in self.path.glob(f"{UNFINISHED}*"):
                left.unlink()
            self._bring(wanted)
            if missing and most is None:
                self._require(missing)
            _use(self.path)
        return {name: self._members(listed[name]) for name in names if name in tars}

    def _list(self, names: list[str]) -> dict[str, Entry]:
        """The objects by their names below the prefix; a single one is asked for without a listing."""
        if len(names) == 1:
            with contextlib.suppress(FileNotFoundError):
                return {names[0]: self.store.entry(self.prefix + names[0])}
        found = self.store.entries(self.prefix.rstrip("/"))
        return {entry.key.removeprefix(self.prefix): entry for entry in found}

    def _name(self, entry: Entry) -> str:
        return entry.key.removeprefix(self.prefix)

    def _has(self, entry: Entry, damaged: set[str]) -> bool:
        """Whether a file is here, or all members of a tar file; `damaged` are versions with missing members."""
        name = self._name(entry)
        is_whole = entry.etag not in damaged if name.endswith(TAR) else self._is_whole(name)
        return is_whole and self._known.get(name) == _Version(entry.etag, entry.size)

    def _members(self, tar: Entry) -> list[str]:
        """The files that were unpacked from it."""
        names = (name for name, version in self._known.items() if version.etag == tar.etag)
        return [name for name in names if not name.endswith(TAR)]

    def _is_whole(self, name: str) -> bool:
        if name.endswith(TAR):  # its members are here instead
            return True
        try:
            return (self.path / name).stat().st_size == self._known[name].size
        except (OSError, KeyError):
            return False

    def _require(self, names: list[str]) -> None:
        missing = [name for name in names if not self._is_whole(name)]
        if missing:
            raise DataError(
                f"{self._setting}: {len(missing)} files, such as {missing[0]}, are neither in {shown(self.path)} "
                "nor in its tar files; correct the names, or upload them"
            )

    def _refuse_changes(self, wanted: list[Entry]) -> None:
        """Refuse to replace files that other processes read."""
        changed = []
        for entry in wanted:
            known = self._known.get(self._name(entry))
            if known is not None and known.etag != entry.etag:
                changed.append(self._name(entry))
        if changed and not _is_free(self.path):
            raise DataError(
                f"{shown(self.path)}: {len(changed)} objects, such as {changed[0]}, have changed while a run on this "
                "machine reads what they were; wait for its end, or give the new ones another prefix"
            )

    def _bring(self, wanted: list[Entry]) -> None:
        total, done = sum(entry.size for entry in wanted), 0
        began = shown_at = time.monotonic()
        stop = threading.Event()
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            coming = {pool.submit(self._bring_one, entry, stop): entry for entry in wanted}
            for count, future in enumerate(as_completed(coming), start=1):
                self._known |= future.result()
                done += coming[future].size
                now = time.monotonic()
                if now - shown_at > TELL_S:
                    shown_at = now
                    left_s = (now - began) * (total - done) / max(done, 1)
                    megabytes = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"
                    self._tell(
                        f"{shown(self.path)}: {count} of {len(wanted)} files, {megabytes}, {left_s:.0f} s left"
                    )
                    self._write_index()
        finally:
            # also after an error, so that what was fetched counts
            stop.set()
            pool.shutdown(cancel_futures=True)
            self._write_index()

    def _bring_one(self, entry: Entry, stop: threading.Event) -> dict[str, _Version]:
        """Fetch one object, and unpack it if it is a tar file; returns the versions of the new files."""
        name = self._name(entry)
        if not is_inside(name):
            raise DataError(f"{shown(self.path)}: {name!r} would lie outside; rename the object")
        part = self.path / f"{UNFINISHED}{threading.get_ident()}"

        def download() -> str:
            etag = self.store.download(entry.key, part)
            if etag == entry.etag and part.stat().st_size != entry.size:
                raise StoreAwayError(
                    f"{shown(self.path / name)}: arrived incomplete; try again later"
                )
            return etag

        try:
            etag = patiently(download, self._patience_s, stop)
        except FileNotFoundError as error:
            raise DataError(f"{shown(self.path / name)}: has gone; upload it again") from error
        new = {}
        version = _Version(etag, part.stat().st_size)
        if name.endswith(TAR):
            for member in _unpack(part, self.path, shown(self.path / name)):
                new[member] = _Version(etag, (self.path / member).stat().st_size)
            part.unlink()
        else:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            part.replace(self.path / name)
        return new | {name: version}

    def _write_index(self) -> None:
        write_atomic(self.path / INDEX, json.dumps(self._known))


def _read_index(folder: Path) -> dict[str, _Version]:
    """What a folder of data has, including tar files; nothing if the index is damaged, so that all is fetched again."""
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        index = json.loads((folder / INDEX).read_bytes())
        return {name: _Version(str(etag), int(size)) for name, (etag, size) in index.items()}
    return {}


def _unpack(tar: Path, folder: Path, address: str) -> Iterator[str]:
    """Unpack a tar file below a folder, each file whole or not at all; returns their names."""
    try:
        with tarfile.open(tar) as members:
            for member in members:
                if not member.isfile():
                    continue
                name = member.name.removeprefix("./")
                if not is_inside(name):
                    raise DataError(f"{address}: {name!r} would lie outside; pack it again")
                content = members.extractfile(member)
                assert content is not None, "a regular file has content"
                part = tar.with_name(f"{tar.name}-member")
                with part.open("wb") as file:
                    shutil.copyfileobj(content, file)
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                part.replace(folder / name)
                yield name
    except tarfile.TarError as error:
        raise DataError(f"{address}: is no tar file ({error}); pack it again") from error


def _make_room(folder: Path, needed: int) -> None:
    """Remove data that no process uses, the longest unused first, until there is room for this many bytes.

    Raises:
        ResourceError: there is not enough room even then.
    """
    if not needed:
        return
    limit = os.environ.get(LIMIT_VARIABLE)
    try:
        most = float("inf") if not limit else 1e9 * float(limit)
    except ValueError as error:
        raise ConfigError(
            f"{LIMIT_VARIABLE}: {limit} is not a number; give a size in GB"
        ) from error
    kept = {path.parent: _bytes_of(path.parent) for path in mirrors().rglob(INDEX)}
    free = shutil.disk_usage(folder).free - SPARE_BYTES
    for unused in sorted(kept, key=_last_used):
        if needed <= free and needed + sum(kept.values()) <= most:
            return
        if unused != folder and _remove_unused(unused):
            free += kept.pop(unused)
    if needed > free or needed + sum(kept.values()) > most:
        allowed = f", and {LIMIT_VARIABLE} allows {limit} GB" if limit else ""
        raise ResourceError(
            f"{shown(folder)}: {needed / 1e9:.1f} GB are to be fetched, but {mirrors()} has room for "
            f"{max(free, 0) / 1e9:.1f} GB{allowed}; make room, or name a larger disk with BOXSEG_CACHE"
        )


def _bytes_of(folder: Path) -> int:
    """Bytes of its files, those of tar files unpacked."""
    index = _read_index(folder)
    return sum(version.size for name, version in index.items() if not name.endswith(TAR))


def _last_used(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return (folder / USE_LOCK).stat().st_mtime
    return 0.0


def _remove_unused(folder: Path) -> bool:
    """Remove the files of a folder of data, unless a process reads or fetches them."""
    try:
        with file_lock(folder / FETCH_LOCK, wait=False):
            names = list(_read_index(folder))
            if not names or not _is_free(folder):
                return False
            # The index first, so that what is left after a kill does not count.
            (folder / INDEX).unlink()
            for name in names:
                (folder / name).unlink(missing_ok=True)
    except (OSError, ValueError):
        return False
    logger.info("%s: removed from this machine to make room", shown(folder))
    return True


@contextlib.contextmanager
def _waiting_for(folder: Path, tell: Tell) -> Iterator[None]:
    """Be the only process of this machine that fetches into a folder."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(file_lock(folder / FETCH_LOCK, wait=False))
        except BlockingIOError:
            tell(f"{shown(folder)}: another process of this machine fetches it; waiting")
            held.enter_context(file_lock(folder / FETCH_LOCK))
        yield


_used: dict[Path, int] = {}
"""Folder that this process reads from -> the locked file that says so, which is closed when the process ends."""


def _use(folder: Path) -> None:
    """Mark a folder as read by this process until it ends."""
    if folder not in _used:
        file = os.open(folder / USE_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(file, fcntl.LOCK_SH)
        _used[folder] = file
    # what was used last is removed last
    os.utime(folder / USE_LOCK)


def _is_free(folder: Path) -> bool:
    """Whether no process reads from a folder, this one included."""
    file = os.open(folder / USE_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True
