"""Where the tracebacks of faults of ours are kept, for whoever reports one."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from pathlib import Path

from orchestration.secret_text import hide

KEPT = 20
"""Number of tracebacks kept; older ones go."""


def state_folder() -> Path:
    """The user's folder for logs of boxseg, as the XDG base directories have it.

    Raises:
        RuntimeError: this account has no home.
    """
    named = os.environ.get("XDG_STATE_HOME", "")
    return (
        # the rules of XDG are to ignore relative paths
        Path(named) if Path(named).is_absolute() else Path.home() / ".local" / "state"
    ) / "boxseg"


def keep_traceback() -> Path | None:
    """Write the traceback of the current exception to a file that only this user can read; None where that fails."""
    import tempfile  # takes a while to load

    # arguments can hold secrets too
    text = hide(f"boxseg {' '.join(sys.argv[1:])}\n{traceback.format_exc()}")
    try:
        folder = state_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        prefix = time.strftime("error-%Y%m%d-%H%M%S-")  # names sort by time
        # has mode 0600, and a name that no other command takes
        with tempfile.NamedTemporaryFile(
            "w",
            dir=folder,
            prefix=prefix,
            suffix=".log",
            delete=False,
            encoding="utf-8",
            errors="replace",  # in names, bytes that are no UTF-8 are half characters
        ) as log:
            log.write(text)
    except (OSError, RuntimeError):
        return None
    for old in sorted(folder.glob("error-*.log"))[:-KEPT]:
        with contextlib.suppress(OSError):  # another command was faster
            old.unlink()
    return Path(log.name)
