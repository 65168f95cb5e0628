"""Files that several processes use: locks, logs and files of JSON lines."""

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
    """Fingerprint of a file's content: 16 hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock that only one process of this machine can have; it is released when the process ends, however it
    does.

    The file's content stays as it is, and a link in its place is not followed.

    Raises:
        BlockingIOError: another process has it, and `wait` is False.
        ConfigError: there is a link in its place.
        StorageError: the disk is full, read-only or gone.
    """
    with naming_storage_faults(path):
        # O_CLOEXEC: otherwise a program that we start would inherit the open file, and keep the lock after our end.
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
    # `delay` opens the file at the first line, so there is no file without lines.
    handler = _Log(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in loggers:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level)


class _Log(logging.FileHandler):
    """A log that drops lines silently if its disk is full or gone; writers of important files report that."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, if that is possible."""
        # `handleError` only sees errors of writing; the first line also opens the file.
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Print no traceback."""


def to_json(value: Any, *, indent: int | None = None) -> str:
    """A record as valid UTF-8 JSON: lone surrogates, as in a name that is not UTF-8, become `?`."""
    return json.dumps(value, indent=indent, ensure_ascii=False).encode(errors="replace").decode()


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Add an object with the time to a file of JSON lines; on return it is on the disk.

    If a kill left the last line unfinished, the new one begins on a line of its own, so that readers skip only that.

    Raises:
        ConfigError: the file is a link.
        StorageError: the disk is full, read-only or gone.
    """
    line = to_json({"time": round(time.time(), 3), **values}) + "\n"
    with naming_storage_faults(path), open(path, "a+b", opener=no_link) as file:
        # Opening in append mode moves to the end.
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
