"""Fingerprints of many files, which show that one has changed without reading all of it."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MOST_FILES = 10_000
"""Of more files only this many are read, evenly spaced."""
PART_BYTES = 256
"""Bytes that are read at the beginning, in the middle and at the end of a file."""
THREADS = 16
"""Files that are read at the same time: on a network disk each read is mostly waiting."""


def take_prints(folder: Path, names: Sequence[str], *, most: int = MOST_FILES) -> dict[str, str]:
    """Name below the folder -> size and checksum of some bytes, which a copy keeps; missing files are left out.

    Takes about half a second for 10,000 files of a local disk. Of more than `most` files only that many are read.
    """
    chosen = names[:: -(-len(names) // most) or 1]
    with ThreadPoolExecutor(THREADS) as pool:
        prints = pool.map(lambda name: print_of(folder / name), chosen)
        return {name: text for name, text in zip(chosen, prints, strict=True) if text}


def print_of(path: Path) -> str:
    """Size and checksum of some bytes; empty where no plain file can be read."""
    try:
        # a pipe would wait for its writer
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError):
        return ""
    try:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            return ""
        last = max(0, about.st_size - PART_BYTES)
        parts = [os.pread(file, PART_BYTES, place) for place in (0, last // 2, last)]
        return f"{about.st_size}-{zlib.crc32(b''.join(parts)):08x}"
    except OSError:
        return ""
    finally:
        os.close(file)
