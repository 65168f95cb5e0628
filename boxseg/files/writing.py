"""Files that are whole whenever somebody reads them."""

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
"""Faults of the storage rather than of us, and the way out."""


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write beside and rename, so that readers see the old file or the new one, never a part; also after a power loss.

    Args:
        path: The file; its folder exists.
        content: All of it, text as UTF-8.
        durable: Have it on the disk when this returns. False is faster, for what can be found out again: a power loss
            may then leave an empty file.

    Raises:
        StorageError: the disk is full, read-only or gone; the old file is untouched.
        ConfigError: there is a device or pipe; replacing `/dev/null` would harm all programs.
        IsADirectoryError: there is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if os.path.lexists(path) and not (path.is_file() or path.is_symlink()):
        raise ConfigError(
            f"{path}: is a device or pipe; what is written needs a name of its own (name another)"
        )
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
            sync_folder(path.parent)


def write_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file where nobody reads it yet; with `durable` its content is on the disk when this returns."""
    with path.open("wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def make_folder(path: Path) -> None:
    """Make a folder and those above it unless they are there; their names are on the disk when this returns."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        sync_folder(each.parent)


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk: without it, a power loss may take new files back, or renames."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some network file systems keep names by themselves, and refuse
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Have all files and folders below a folder on the disk, and the folder itself; its own name is in its parent."""
    for folder, _, names in os.walk(path):
        for name in names:
            with Path(folder, name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(folder))


def no_link(path: str, flags: int) -> int:
    """An `opener` of `open` for files that we add to or hold: a link in their place is not followed.

    Raises:
        ConfigError: it is a link.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP or not Path(path).is_symlink():
            raise
        raise ConfigError(
            f"{path} is a link to {str(Path(path).readlink())!r}; a file of its own is needed there, so remove the link"
        ) from error


class NotAFileError(ValueError):
    """A folder is there, or a pipe or device, which may never end; `kind` says which, as in `a pipe`."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"it is {kind}, not a file")
        self.kind = kind


def plain_size(path: Path) -> int:
    """Size in bytes of a plain file, or of the one that a link leads to.

    Raises:
        OSError: nothing is there, or it cannot be looked at.
        NotAFileError: something else is there.
        ValueError: the path is none, as one with a zero byte.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise NotAFileError(kinds.get(stat.S_IFMT(found.st_mode), "a device"))
    return found.st_size


def read_plain(path: Path, *, offset: int = 0, limit: int | None = None) -> bytes:
    """What a plain file holds now, from a byte on.

    Raises:
        OSError: as `plain_size`, or it cannot be read.
        ValueError: as `plain_size`, or it has more bytes than `limit`.
    """
    plain_size(path)  # nobody waits for a pipe
    with path.open("rb") as file:
        # of this very file: by now another may have taken its place
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise ValueError(f"it has {size} bytes, and {limit} are the most")
        file.seek(offset)
        return file.read(max(size - offset, 0))


def reason_of(error: Exception) -> str:
    """Why a file could not be read, without its path: the system's words, or those of the error."""
    return getattr(error, "strerror", None) or str(error)


def write_picture(path: Path, save: Callable[..., object]) -> Path:
    """Write a PNG as `write_atomic` does, its folder too, and return its path; `save` writes it to a file it is given.

    Folders above are not made: those of a run may be gone with its disk, and must not come up anew elsewhere.

    Raises:
        StorageError: the disk is full, read-only or gone; the old file is untouched.
    """
    buffer = io.BytesIO()
    save(buffer, format="png")
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, buffer.getvalue())
    return path


def csv_text(lines: Iterable[Mapping[str, Any]]) -> str:
    """Lines as CSV with a header: a column for each name, in the order in which they come up."""
    found = list(lines)
    file = io.StringIO()
    writer = csv.DictWriter(
        file, list(dict.fromkeys(name for line in found for name in line)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(found)
    return file.getvalue()


@contextlib.contextmanager
def naming_storage_faults(path: Path) -> Iterator[None]:
    """Tell of faults of the storage that a write to `path` meets by a StorageError; other errors pass."""
    try:
        yield
    except OSError as error:
        reason = STORAGE_FAULTS.get(error.errno or 0)
        if reason is None:
            raise
        raise StorageError(
            f"{path} cannot be written ({error.strerror}): {reason}, then run the command again (a run or sweep "
            "with --resume); what was saved before is untouched"
        ) from error
