"""Images and annotations of a store: fetched to each machine that reads them, into the folders that stand for them.

A file counts once it is whole: it is written beside its place, and `.data.json` of the folder tells which version of
the object it is. What was fetched stays for the next run; the folders that nobody has used for the longest go where
`BOXSEG_DATA_GB` would be exceeded.
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
"""Files of a folder of data: versions of what is there, held by who fetches, and held by all who read."""
UNFINISHED = ".data.part-"
"""Begins the names of files that are on their way."""
TAR = ".tar"
LIMIT_VARIABLE = "BOXSEG_DATA_GB"
"""Environment variable: what all data of stores may take on this machine [GB]; unset: what the disk has."""
SPARE_BYTES = 2 * 10**9
"""Left free on the disk."""
AT_ONCE = 32
"""Files that are on their way together: latency is shared by so many."""
PATIENCE_S = 600.0
"""How long a store may be away before a run gives up [s]; it is asked again all the while."""
TELL_S = 10.0
"""Time between two lines about the progress, and between two writes of the index [s]."""

Tell = Callable[[str], None]
"""Says how far it has come."""

logger = logging.getLogger("boxseg.store")


def fetch_annotations(spec: RunSpec) -> None:
    """Have the annotation files of a run's data here, and one of their images, so that settings can be checked.

    Raises:
        DataError: there is no such object, or images that an annotation file lists are not below the prefix.
        StorageError: the store does not answer, or refuses us.
        ResourceError: the disk has no room.
    """
    _fetch(spec, logger.info, patience_s=0.0, most=1)


def fetch_data(spec: RunSpec, tell: Tell = logger.info) -> None:
    """Have all data of a run on this machine; several processes share what one of them fetches.

    Until this process ends nobody removes it, or replaces it by other versions.

    Raises:
        DataError: an object is missing, or has changed while others on this machine read it.
        StorageError: the store refuses us, or has not answered for ten minutes.
        ResourceError: the disk has no room, or `BOXSEG_DATA_GB` allows less.
    """
    _fetch(spec, tell, patience_s=PATIENCE_S)


def fetch_files(
    folder: Path, names: Iterable[str], *, setting: str, tell: Tell
) -> dict[str, list[str]]:
    """Have files below a prefix on this machine, as `fetch_data` does; gives the files of each tar file among them.

    Args:
        folder: The folder that stands for the prefix.
        names: Below the prefix.
        setting: Who names them, for messages.
        tell: Hears how far it has come.
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
    """File names of the images that an annotation file lists; what is wrong with it is told where it is checked."""
    try:
        images = read_well_formed(source.annotations, whole=False)["images"]
    except DataError:
        return []
    return [image["file_name"] for image in images if is_inside(image["file_name"])]


class _Version(NamedTuple):
    """What a file here was made from."""

    etag: str
    """Of the object, or of the tar file that it was in."""
    size: int
    """Of the file [bytes]."""


class _Folder:
    """The objects below a prefix, and the folder of this machine that stands for it."""

    def __init__(self, path: Path, setting: str, tell: Tell, patience_s: float) -> None:
        """`setting` is for messages; for so long a store may be away [s]."""
        self.path = path
        self.store, self.prefix = place_of(path)
        self._setting, self._tell, self._patience_s = setting, tell, patience_s
        self._known: dict[str, _Version] = {}

    def fetch(self, names: Iterable[str], *, most: int | None = None) -> dict[str, list[str]]:
        """Have the named files here in the version that the store has; gives the files of the named tar files.

        Args:
            names: Below the prefix; what is not there may be in tar files.
            most: Fetch no more than so many.
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
                # nobody knows which of them has what
                asked |= tars
            damaged = {
                version.etag for name, version in self._known.items() if not self._is_whole(name)
            }
            wanted = [entry for entry in asked.values() if not self._has(entry, damaged)][:most]
            self._refuse_changes(wanted)
            _make_room(self.path, sum(entry.size for entry in wanted))
            # of processes that were killed, as only the holder of the lock fetches
            for left in self.path.glob(f"{UNFINISHED}*"):
                left.unlink()
            self._bring(wanted)
            if missing and most is None:
                self._require(missing)
            _use(self.path)
        return {name: self._members(listed[name]) for name in names if name in tars}

    def _list(self, names: list[str]) -> dict[str, Entry]:
        """The objects by their names below the prefix; of a single one nothing else is asked for."""
        if len(names) == 1:
            with contextlib.suppress(FileNotFoundError):
                return {names[0]: self.store.entry(self.prefix + names[0])}
        found = self.store.entries(self.prefix.rstrip("/"))
        return {entry.key.removeprefix(self.prefix): entry for entry in found}

    def _name(self, entry: Entry) -> str:
        return entry.key.removeprefix(self.prefix)

    def _has(self, entry: Entry, damaged: set[str]) -> bool:
        """Whether a file is here, of a tar file its members; `damaged` are the versions of which something is not."""
        name = self._name(entry)
        is_whole = entry.etag not in damaged if name.endswith(TAR) else self._is_whole(name)
        return is_whole and self._known.get(name) == _Version(entry.etag, entry.size)

    def _members(self, tar: Entry) -> list[str]:
        """The files that were unpacked from it."""
        names = (name for name, version in self._known.items() if version.etag == tar.etag)
        return [name for name in names if not name.endswith(TAR)]

    def _is_whole(self, name: str) -> bool:
        if name.endswith(TAR):  # its files are here instead
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
        """Refuse to replace files under the eyes of others."""
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
        began = told = time.monotonic()
        stop = threading.Event()
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            coming = {pool.submit(self._bring_one, entry, stop): entry for entry in wanted}
            for count, future in enumerate(as_completed(coming), start=1):
                self._known |= future.result()
                done += coming[future].size
                now = time.monotonic()
                if now - told > TELL_S:
                    told = now
                    left_s = (now - began) * (total - done) / max(done, 1)
                    megabytes = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"
                    self._tell(
                        f"{shown(self.path)}: {count} of {len(wanted)} files, {megabytes}, {left_s:.0f} s left"
                    )
                    self._write_index()
        finally:
            # whatever happens, what is here counts
            stop.set()
            pool.shutdown(cancel_futures=True)
            self._write_index()

    def _bring_one(self, entry: Entry, stop: threading.Event) -> dict[str, _Version]:
        """Fetch one object, and unpack it if it is a tar file; gives the versions of the files that are new."""
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
    """What a folder of data holds, tar files among it; of a damaged index nothing counts, and all is fetched again."""
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        index = json.loads((folder / INDEX).read_bytes())
        return {name: _Version(str(etag), int(size)) for name, (etag, size) in index.items()}
    return {}


def _unpack(tar: Path, folder: Path, address: str) -> Iterator[str]:
    """Write the files of a tar file below a folder, each whole or not at all; gives their names."""
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
    """Remove data that nobody uses, the longest unused first, until so many bytes have room.

    Raises:
        ResourceError: they have none.
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
    """Bytes of its files, those of tar files as they were unpacked."""
    index = _read_index(folder)
    return sum(version.size for name, version in index.items() if not name.endswith(TAR))


def _last_used(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return (folder / USE_LOCK).stat().st_mtime
    return 0.0


def _remove_unused(folder: Path) -> bool:
    """Remove the files of a folder of data, unless somebody reads or fetches them."""
    try:
        with file_lock(folder / FETCH_LOCK, wait=False):
            names = list(_read_index(folder))
            if not names or not _is_free(folder):
                return False
            # The index goes first, so that nothing half removed counts.
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
"""Folders that this process reads from -> the open file that says so; the system closes it when the process ends."""


def _use(folder: Path) -> None:
    """Say that this process reads from a folder, until it ends."""
    if folder not in _used:
        file = os.open(folder / USE_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(file, fcntl.LOCK_SH)
        _used[folder] = file
    # what was used last goes last where room is needed
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
