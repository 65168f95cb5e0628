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

from boxseg.errors import StorageError

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


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside and rename, so that readers see the old file or the new one, never a part.

    Raises:
        StorageError: the disk is full, read-only or gone; the old file is untouched.
    """
    scratch = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(3)}")
    with naming_storage_faults(path):
        try:
            scratch.write_bytes(content.encode() if isinstance(content, str) else content)
            scratch.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                scratch.unlink()
            raise


def plain_size(path: Path) -> int:
    """Size in bytes of a plain file, or of the one that a link leads to.

    Raises:
        OSError: nothing is there, or it cannot be looked at.
        ValueError: a folder, or a pipe or device, which may never end; or no name at all.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise ValueError(f"it is {kinds.get(stat.S_IFMT(found.st_mode), 'a device')}, not a file")
    return found.st_size


def read_plain(path: Path, *, offset: int = 0, limit: int | None = None) -> bytes:
    """What a plain file holds now, from a byte on.

    Raises:
        OSError: as `plain_size`, or it cannot be read.
        ValueError: as `plain_size`, or it has more bytes than `limit`.
    """
    size = plain_size(path)
    if limit is not None and size > limit:
        raise ValueError(f"it has {size} bytes, and {limit} are the most")
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(max(size - offset, 0))


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
    writer = csv.DictWriter(file, list(dict.fromkeys(name for line in found for name in line)), lineterminator="\n")
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
            f"{path} cannot be written ({error.strerror}): {reason}, then go on with --resume; what was saved before "
            "is untouched"
        ) from error
