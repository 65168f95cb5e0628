"""Private temporary folders, which are removed when their process ends, or later if it was killed."""

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
"""Most bytes of the path that such a folder is in, if Ray's sockets are to fit in it: Linux allows 107 for a socket."""
OWNER = "owner"
"""File in such a folder that its process keeps locked as long as it lives."""


SHORT_PLACES = ("/tmp", "/var/tmp", "/dev/shm")
"""Where temporary folders can be if the path of TMPDIR is too long, as in batch systems."""


@contextlib.contextmanager
def scratch_folder(what: str, *, for_ray: bool = False) -> Iterator[Path]:
    """A temporary folder of mode 0700, removed on leaving the block; first removes those that killed processes left.

    A lock shows which processes live: process ids mean nothing if containers share the folder for temporary files.

    Args:
        what: Part of its name.
        for_ray: Choose a path that is short enough for Ray's sockets.

    Raises:
        ResourceError: neither TMPDIR nor the usual folders are short enough and can be written.
    """
    place = find_place(RAY_LETTERS if for_ray else None)
    _remove_leftovers(place)
    folder = Path(tempfile.mkdtemp(prefix=f"boxseg-{what}-{os.getpid()}-", dir=place))
    unlocked = folder / f".{OWNER}"
    with file_lock(unlocked):
        # So that no process finds a file of this name unlocked while this one lives.
        unlocked.rename(folder / OWNER)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def find_place(most_letters: int | None) -> Path:
    """The folder for temporary files, or another usual one if its path has more bytes than that.

    Raises:
        ResourceError: there is none that is short enough and can be written.
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
    """Delete the folders of this user whose processes are gone; folders without an owner's file stay."""
    for folder in place.glob("boxseg-*"):
        # suppressed: its owner lives, or another process removes it at the same time
        with contextlib.suppress(OSError, BoxSegError):
            # Not `stat`, which would follow a link that somebody else put there.
            about = folder.lstat()
            is_ours = stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid()
            if is_ours and (folder / OWNER).is_file():
                # If the lock is free, the process that held it is gone.
                with file_lock(folder / OWNER, wait=False):
                    shutil.rmtree(folder, ignore_errors=True)
