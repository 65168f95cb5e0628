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
from orchestration.errors import ResourceError
from orchestration.record.files import file_lock

NAME_LETTERS = len("/boxseg-ray-4194304-abcdefgh")
"""Most bytes that the name of such a folder adds to a path."""
RAY_LETTERS = (
    107
    - len("/ray1/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
    - NAME_LETTERS
)
"""Bytes that the path around such a folder may have for Ray's sockets in it: Linux allows the name of a socket 107."""
OWNER = "owner"
"""File in such a folder on which its process holds a lock as long as it lives."""


SHORT_PLACES = ("/tmp", "/var/tmp", "/dev/shm")
"""Where temporary folders can be if TMPDIR is too long a path, as those of batch systems are."""


@contextlib.contextmanager
def scratch_folder(what: str, *, for_ray: bool = False) -> Iterator[Path]:
    """A temporary folder of mode 0700 that goes when the block is left; what killed processes left goes before.

    A lock tells who lives: numbers of processes mean nothing where containers share the folder for temporary files.

    Args:
        what: For its name.
        for_ray: Its path will be short enough for the sockets of a Ray.

    Raises:
        ResourceError: neither TMPDIR nor the usual folders are short enough and can be written.
    """
    place = find_place(RAY_LETTERS if for_ray else None)
    _remove_leftovers(place)
    folder = Path(tempfile.mkdtemp(prefix=f"boxseg-{what}-{os.getpid()}-", dir=place))
    unlocked = folder / f".{OWNER}"
    with file_lock(unlocked):
        unlocked.rename(folder / OWNER)  # under its name nobody ever finds it free while we live
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def find_place(most_letters: int | None) -> Path:
    """The folder for temporary files, or another usual one where its path has more than so many bytes.

    Raises:
        ResourceError: there is none.
    """
    chosen = tempfile.gettempdir()
    for place in (chosen, *SHORT_PLACES):
        is_short = most_letters is None or len(os.fsencode(place)) <= most_letters
        if is_short and os.access(place, os.W_OK | os.X_OK):
            return Path(place)
    raise ResourceError(
        f"TMPDIR {chosen}: sockets there would have longer names than Linux allows, and none of "
        f"{', '.join(SHORT_PLACES)} can be written; set TMPDIR to a path of {most_letters} letters or less"
    )


def _remove_leftovers(place: Path) -> None:
    """Delete the folders of this user whose processes have gone; what has no owner's file stays."""
    for folder in place.glob("boxseg-*"):
        # its owner lives, or another process that starts was faster
        with contextlib.suppress(OSError, BoxSegError):
            # Not `stat`, which would follow a link that somebody else put there.
            about = folder.lstat()
            is_ours = stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid()
            if is_ours and (folder / OWNER).is_file():
                # If the lock can be had at once, the process that held it has gone.
                with file_lock(folder / OWNER, wait=False):
                    shutil.rmtree(folder, ignore_errors=True)
