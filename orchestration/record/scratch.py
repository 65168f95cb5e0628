"""Private folders for what a process needs while it lives; those of processes that were killed are removed later."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from boxseg.errors import BoxSegError
from orchestration.record.files import file_lock

OWNER = "owner"
"""File in such a folder on which its process holds a lock as long as it lives."""


@contextlib.contextmanager
def scratch_folder(what: str) -> Iterator[Path]:
    """A temporary folder of mode 0700 that goes when the block is left; what killed processes left goes before.

    A lock tells who lives: numbers of processes mean nothing where containers share the folder for temporary files.
    """
    _remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=f"boxseg-{what}-{os.getpid()}-"))
    unlocked = folder / f".{OWNER}"
    with file_lock(unlocked):
        unlocked.rename(folder / OWNER)  # under its name nobody ever finds it free while we live
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers() -> None:
    """Delete the folders of this user whose processes have gone; what has no owner's file stays."""
    for folder in Path(tempfile.gettempdir()).glob("boxseg-*"):
        # its owner lives, or another process that starts was faster
        with contextlib.suppress(OSError, BoxSegError):
            about = folder.lstat()
            is_ours = stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid()
            if is_ours and (folder / OWNER).is_file():
                with file_lock(folder / OWNER, wait=False):
                    shutil.rmtree(folder, ignore_errors=True)
