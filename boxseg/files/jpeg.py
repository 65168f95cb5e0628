"""Damage that decoders of JPEG pass over: they fill the picture in and go on."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

STRAY_BYTES = 16
"""Bytes between two parts of a file that some cameras leave there; the picture is whole."""
WARNING = re.compile(r"Corrupt JPEG data: (.+)|(Premature end of JPEG file.*)")

_alone = threading.Lock()


def find_damage(path: Path) -> str | None:
    """What libjpeg warns of while it decodes a file that it then takes for good; None if it warns of nothing.

    It tells the process's standard error alone, which is caught for that time.
    """
    import cv2  # takes a while to load
    import numpy as np

    data = np.fromfile(path, dtype=np.uint8)
    with _alone, _caught_errors() as caught:
        cv2.imdecode(data, cv2.IMREAD_REDUCED_GRAYSCALE_8)
        told = [found[1] or found[2] for found in WARNING.finditer(caught())]
    return next((each for each in told if not _is_harmless(each)), None)


def _is_harmless(warning: str) -> bool:
    stray = re.match(r"(\d+) extraneous bytes", warning)
    return stray is not None and int(stray[1]) <= STRAY_BYTES


@contextmanager
def _caught_errors() -> Iterator[Callable[[], str]]:
    """Gives a call for what was written to standard error since, by C code too."""
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: os.pread(file.fileno(), 2**16, 0).decode(errors="replace")
        finally:
            os.dup2(before, 2)
            os.close(before)
