"""Damage that JPEG decoders pass over: they fill in what is missing and report success."""

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
"""Some cameras leave up to this many bytes between two parts of a file; the picture is whole all the same."""
WARNING = re.compile(r"Corrupt JPEG data: (.+)|(Premature end of JPEG file.*)")
HARMLESS = re.compile("Invalid SOS parameters|Inconsistent progression|unknown JFIF|Unknown Adobe")
"""What libjpeg also prints, about pictures that are whole."""

# There is one standard error per process, so only one thread at a time can read what libjpeg prints there.
_stderr_lock = threading.Lock()


def find_damage(path: Path) -> str | None:
    """Decode a JPEG file and return libjpeg's first warning about it; None if there is none.

    Neither Pillow, which throws libjpeg's warnings away, nor OpenCV gives them as values: libjpeg prints them to the
    standard error of the process, which is redirected to a file meanwhile. What other threads print there meanwhile is
    printed afterwards.
    """
    import cv2  # here because it is slow to load
    import numpy as np

    data = np.fromfile(path, dtype=np.uint8)
    with _stderr_lock, _captured_stderr() as read_output:
        # Warnings come from reading the bits, and even the smallest result needs all of them.
        cv2.imdecode(data, cv2.IMREAD_REDUCED_GRAYSCALE_8)
        matches = list(WARNING.finditer(read_output()))
    warnings = [match[1] or match[2] for match in matches]
    return next((warning for warning in warnings if not _is_harmless(warning)), None)


def _is_harmless(warning: str) -> bool:
    stray = re.match(r"(\d+) extraneous bytes", warning)
    return stray is not None and int(stray[1]) <= STRAY_BYTES


def _is_of_libjpeg(line: str) -> bool:
    return WARNING.search(line) is not None or HARMLESS.search(line) is not None


@contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Redirect standard error, for C code too; yields a function that returns what was written so far."""
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as file:
        # Replacing `sys.stderr` would not reach C code, which writes to descriptor 2.
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: os.pread(file.fileno(), 2**16, 0).decode(errors="replace")
        finally:
            os.dup2(original, 2)
            os.close(original)
            file.seek(0)
            # Other threads may have written as well, a progress line for instance.
            others = [line for line in file if not _is_of_libjpeg(line.decode(errors="replace"))]
            os.write(2, b"".join(others))
