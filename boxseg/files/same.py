"""Finds files with the same content."""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from boxseg.files.names import is_file_inside
from boxseg.files.prints import print_of

READ_THREADS = 8
"""Reading files is mostly waiting for the disk."""


def listed_files(folder: Path, images: Iterable[dict[str, Any]]) -> dict[Path, str]:
    """Path of each listed file that is there -> its name in the list."""
    names = [str(image["file_name"]) for image in images]
    return {folder.absolute() / name: name for name in names if is_file_inside(folder, name)}


def find_same(paths: Sequence[Path]) -> list[list[Path]]:
    """Groups of files with the same bytes, in the order of the paths; links to one file are the same."""
    alike: dict[tuple[Hashable, ...], list[Path]] = {(): list(paths)}
    with ThreadPoolExecutor(READ_THREADS) as pool:
        # Each test costs more than the one before, but has fewer files left.
        for look in (_size, print_of, _digest):
            members = [(key, path) for key, group in alike.items() for path in group]
            seen = pool.map(functools.partial(_try, look), [path for _, path in members])
            parts = defaultdict(list)
            for (key, path), what in zip(members, seen, strict=True):
                parts[*key, what].append(path)
            alike = {key: group for key, group in parts.items() if len(group) > 1}
    return list(alike.values())


def _try(look: Callable[[Path], Hashable], path: Path) -> Hashable:
    """What `look` gives for a file; if it cannot be read, its path, which no other file has."""
    try:
        return look(path)
    except OSError:
        return path


def _size(path: Path) -> Hashable:
    return path.stat().st_size or path  # empty files are damaged, and no pictures at all


def _digest(path: Path) -> Hashable:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
