"""Files that several processes use: locked, or growing line by line."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from boxseg.files.writing import naming_storage_faults, no_link, sync_folder


def digest(path: Path) -> str:
    """What a file holds, as 16 hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock that only one process of this machine can have; it goes with the process, however that ends.

    The file's content stays as it is, and a link in its place is not followed.

    Raises:
        BlockingIOError: another has it, and we are not to wait.
        ConfigError: there is a link in its place.
        StorageError: the disk is full, read-only or gone.
    """
    with naming_storage_faults(path):
        # O_CLOEXEC: a program that we start would inherit the open file, and keep the lock when we have gone.
        file = no_link(str(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        # The file stays. Were it removed, two processes could each lock a file of this name.
        os.close(file)


def log_to_file(path: Path, loggers: Sequence[str], *, level: int = logging.NOTSET) -> None:
    """Send the records of some loggers to a file and nowhere else; makes its folder, but not those above."""
    path.parent.mkdir(exist_ok=True)
    # `delay` opens it at the first line, so nothing appears where nobody has anything to say.
    handler = _Log(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in loggers:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level)


class _Log(logging.FileHandler):
    """A log whose disk may be full or gone: whoever writes what matters tells that, so lines are dropped in silence."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, if that is possible."""
        # `handleError` hears of faulty writes only; the first line also opens the file.
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Print no traceback."""


def to_json(value: Any, *, indent: int | None = None) -> str:
    """A record as JSON that every reader takes: half a letter, as in a name that is not UTF-8, becomes `?`."""
    return json.dumps(value, indent=indent, ensure_ascii=False).encode(errors="replace").decode()


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Add an object with the time to a file of JSON lines; a line that a kill tore stays alone and is skipped.

    The line is on the disk when this returns.

    Raises:
        ConfigError: the file is a link.
        StorageError: the disk is full, read-only or gone.
    """
    line = to_json({"time": round(time.time(), 3), **values}) + "\n"
    with naming_storage_faults(path), open(path, "a+b", opener=no_link) as file:
        # Opening to append moves to the end.
        is_new = file.tell() == 0
        if not is_new:
            file.seek(-1, os.SEEK_END)
            line = line if file.read() == b"\n" else "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())
        # The name of a new file is stored in its folder, apart from its content.
        if is_new:
            sync_folder(path.parent)
