"""File names that were written elsewhere: on Windows, below another folder, inside a URL."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath
from urllib.parse import unquote


def is_inside(file_name: str) -> bool:
    """Whether a file name of an annotation file stays inside the image folder: relative, and never upwards."""
    parts = re.split(r"[\\/]", file_name)
    anchored = parts[0] == "" or re.fullmatch(r"[A-Za-z]:", parts[0]) is not None
    return not anchored and ".." not in parts and "\0" not in file_name


def plain_name(name: str) -> str:
    """A file name as this system writes it: with `/`, without `.` and without what stands before `?d=` of a URL."""
    inner = name.rsplit("?d=", 1)[-1]
    inner = unquote(inner) if "%" in inner else inner
    return PurePosixPath(re.sub(r"^[A-Za-z]:", "", inner).replace("\\", "/")).as_posix()


def split_name(name: str) -> list[str]:
    """Parts of a plain name from the last one on, without those that lead upwards."""
    return [part for part in reversed(plain_name(name).split("/")) if part not in ("", ".", "..")]


def is_tail(name: str, path: str) -> bool:
    """Whether one of two names ends with all parts of the other: `set/val/a.png` and `val/a.png`."""
    pairs = list(zip(split_name(name), split_name(path), strict=False))
    return bool(pairs) and all(one == other for one, other in pairs)


class Names:
    """File names by their last part."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names: dict[str, list[str]] = defaultdict(list)
        for name in names:
            self._names[_last_part(name)].append(name)

    @classmethod
    def below(cls, folder: str | os.PathLike[str]) -> Names:
        """All files of a folder and of those in it, relative to it."""
        return cls(
            os.path.relpath(os.path.join(place, name), folder)  # noqa: PTH118 - a million names take seconds this way
            for place, _, names in os.walk(folder)
            for name in names
        )

    def alike(self, name: str) -> list[str]:
        """Names with the same last part, upper and lower case being the same."""
        return self._names.get(_last_part(name), [])

    def find(self, name: str) -> str | None:
        """The name that has most of its last parts in common with another; None if there is none, or several.

        Upper and lower case are the same.
        """
        wanted = _folded_parts(name)
        common = {
            each: _length_of_common(_folded_parts(each), wanted) for each in self.alike(name)
        }
        most = max(common.values(), default=0)
        best = [each for each, length in common.items() if length == most]
        return best[0] if len(best) == 1 else None


def _last_part(name: str) -> str:
    return next(iter(_folded_parts(name)), "")


def _folded_parts(name: str) -> list[str]:
    return [part.casefold() for part in split_name(name)]


def _length_of_common(one: list[str], other: list[str]) -> int:
    length = 0
    for here, there in zip(one, other, strict=False):
        if here != there:
            break
        length += 1
    return length
