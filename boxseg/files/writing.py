"""Writes files so that readers never see half of one, and reads plain files only."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from boxseg.errors import ConfigError, StorageError

STORAGE_FAULTS = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the quota is used up; make room",
    errno.EFBIG: "files may not be that large here; raise the limit (ulimit -f), or use another disk",
    errno.EROFS: "the disk is read-only; mount it for writing",
    errno.EIO: "the disk does not work; look at the system's log",
    errno.ESTALE: "the network folder is gone; mount it again",
    errno.ENOENT: "the folder is gone; mount or restore it",
    errno.ENODEV: "the disk is gone; mount it again",
    errno.ENXIO: "the disk is gone; mount it again",
    errno.ENOTCONN: "the network folder is gone; mount it again",
    errno.ETIMEDOUT: "the network folder does not answer; mount it again",
    errno.EACCES: "this account may not write there; change the rights",
    errno.EPERM: "this account may not write there; change the rights",
}
"""Error number -> what is wrong with the storage, and what to do; other errors are faults of boxseg."""


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a file beside its place and rename it: readers see the old file or the new one, even after a power loss.

    Args:
        path: The file; its folder exists.
        content: The whole content; text is stored as UTF-8.
        durable: Wait until the content is on the disk. False is faster, for content that can be made again: a power
            loss may then leave an empty file.

    Raises:
        StorageError: the disk is full, read-only or gone; the old file is untouched.
        ConfigError: a device or pipe is there; replacing `/dev/null` would harm all programs.
        IsADirectoryError: a folder is there.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if os.path.lexists(path) and not (path.is_file() or path.is_symlink()):
        raise ConfigError(
            f"{path}: is a device or pipe; what is written needs a name of its own (name another)"
        )
    # In the same folder, as a rename is atomic only within one file system.
    scratch = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(3)}")
    data = content.encode() if isinstance(content, str) else content
    with naming_storage_faults(path):
        try:
            write_file(scratch, data, durable=durable)
            scratch.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                scratch.unlink()
            raise
        if durable:
            sync_folder(path.parent)  # the rename itself is on the disk only now


def write_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file that has no readers yet; with `durable` its content is on the disk when this returns."""
    with path.open("wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def make_folder(path: Path) -> None:
    """Make a folder and missing ones above it; their names are on the disk when this returns."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync_folder(folder.parent)  # the name of a folder is stored in the one above


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk: otherwise a power loss may undo new files and renames."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems store names by themselves and refuse this.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Wait until a folder and all that is below it are on the disk, except its own name, which its parent holds."""
    for folder, _, names in os.walk(path):
        for name in names:
            with Path(folder, name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(folder))


def no_link(path: str, flags: int) -> int:
    """An `opener` for `open` that does not follow a link, for files that are appended to or locked.

    Otherwise somebody who may write in the folder could make boxseg write into any file of this account.

    Raises:
        ConfigError: it is a link.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP or not Path(path).is_symlink():
            raise
        target = str(Path(path).readlink())
        raise ConfigError(
            f"{path} is a link to {target!r}; a file of its own is needed there, so remove the link"
        ) from error


class NotAFileError(ValueError):
    """Something else than a file is there; `kind` says what, as in `a pipe`."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"it is {kind}, not a file")
        self.kind = kind


def plain_size(path: Path) -> int:
    """Size in bytes of a plain file, or of the one that a link leads to.

    Raises:
        OSError: nothing is there, or its folder may not be read.
        NotAFileError: something else than a file is there.
        ValueError: no file can have this path, as it has a zero byte.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise NotAFileError(kinds.get(stat.S_IFMT(status.st_mode), "a device"))
    return status.st_size


def read_plain(path: Path, *, offset: int = 0, limit: int | None = None) -> bytes:
    """Content that a plain file has now, from byte `offset` on.

    Raises:
        OSError: as `plain_size`, or it cannot be read.
        ValueError: as `plain_size`, or it has more bytes than `limit`.
    """
    plain_size(path)  # opening a pipe would wait for somebody who writes into it
    with path.open("rb") as file:
        # Checked again: by now another file may have taken the place of the one above.
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise ValueError(f"it has {size} bytes, and at most {limit} are allowed")
        file.seek(offset)
        # No further than the size: a file that somebody keeps writing to would have no end.
        return file.read(max(size - offset, 0))


def reason_of(error: Exception) -> str:
    """Why a file could not be read, without its path: the system's words for it, or else those of the error."""
    return getattr(error, "strerror", None) or str(error)


def write_picture(
    path: Path, save: Callable[..., object], *, form: str = "png", durable: bool = True
) -> Path:
    """Write a picture as `write_atomic` does and return its path; its folder is made if it is missing.

    Folders above that one are not made: if the disk of a run is gone, its folder must not appear elsewhere.

    Args:
        path: The file.
        save: Called with an open file and the `format`, as the `save` of PIL and of matplotlib are.
        form: Name of the format.
        durable: See `write_atomic`.

    Raises:
        StorageError: the disk is full, read-only or gone; the old file is untouched.
    """
    buffer = io.BytesIO()
    save(buffer, format=form)
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, buffer.getvalue(), durable=durable)
    return path


def csv_text(lines: Iterable[Mapping[str, Any]]) -> str:
    r"""Rows as CSV with a header: a column for each name, in the order in which the names first occur.

    >>> csv_text([{"step": 1}, {"step": 2, "loss": 0.5}])
    'step,loss\n1,\n2,0.5\n'
    """
    rows = list(lines)
    columns = dict.fromkeys(name for row in rows for name in row)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


@contextlib.contextmanager
def naming_storage_faults(path: Path) -> Iterator[None]:
    """Raise a StorageError for faults of the storage that a write to `path` meets; other errors pass."""
    try:
        yield
    except OSError as error:
        reason = STORAGE_FAULTS.get(error.errno or 0)
        if reason is None:
            raise
        raise StorageError(
            f"{path} cannot be written ({error.strerror}): {reason}, then run the command again "
            "(a run or sweep with --resume); what was saved before is untouched"
        ) from error
