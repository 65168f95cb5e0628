"""File names that were written on another machine: on Windows, below another folder, or inside a URL."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

INSIDE_RULE = "file names are relative to the image folder and stay inside"
OWN_FOLDERS = {
    ("labels.jsonl", ".lock"): ("review", "yolo"),
    ("predictions.coco.json",): ("overlays",),
    ("metrics.jsonl", "status.json"): ("evaluation", "samples"),
    ("mlflow.db",): ("mlartifacts",),
}
"""Files that only boxseg writes side by side -> folders beside them with pictures that boxseg drew or linked."""


def is_json(name: str | os.PathLike[str]) -> bool:
    """Whether a file is JSON by its name.

    >>> is_json("a.JSON"), is_json("20261122-171500-3f9ckd")
    (True, False)
    """
    return os.fspath(name).lower().endswith(".json")


def is_inside(file_name: str) -> bool:
    r"""Whether a file name from an annotation file stays inside the image folder.

    It has to be relative and must not lead upwards, on this system and on Windows.

    >>> is_inside("val/a.png"), is_inside("../a.png"), is_inside("C:\\photos\\a.png")
    (True, False, False)
    """
    parts = re.split(r"[\\/]", file_name)
    is_absolute = parts[0] == "" or re.fullmatch(r"[A-Za-z]:", parts[0]) is not None
    return not is_absolute and ".." not in parts and "\0" not in file_name


def is_file_inside(folder: Path, file_name: str) -> bool:
    """Whether a file name from an annotation file names a file inside the image folder."""
    # os.path.isfile is False for any name at all; Path.is_file raises for some, such as overlong ones.
    return is_inside(file_name) and os.path.isfile(folder / file_name)  # noqa: PTH113


def plain_name(name: str) -> str:
    r"""A file name as this system writes it: `/` between folders, no drive letter, no `.`, no URL around it.

    >>> plain_name("C:\\photos\\a.png"), plain_name("/data/local-files/?d=photos/my%20cat.png")
    ('/photos/a.png', 'photos/my cat.png')
    >>> plain_name("https://host/up/a.png?sig=1")
    'https:/host/up/a.png'
    """
    # Label Studio writes files of the disk as `/data/local-files/?d=` and the quoted path.
    is_url = re.match("[a-z]+://", name) is not None
    inner = re.split("[?#]", name)[0] if is_url else name.rsplit("?d=", 1)[-1]
    if "%" in inner:
        inner = unquote(inner)
    without_drive = re.sub(r"^[A-Za-z]:", "", inner)
    return PurePosixPath(without_drive.replace("\\", "/")).as_posix()


def listed_name(name: str, folder: Path | None) -> str:
    """A text that is the same for names of one file: the plain name, or the listed one if a file has exactly that name.

    Args:
        name: As in an annotation file.
        folder: Of the images; None: unknown.
    """
    is_odd = "%" in name or "\\" in name
    if folder is not None and is_odd and is_file_inside(folder, name):
        return name
    return plain_name(name)


def split_name(name: str) -> list[str]:
    """Parts of the plain name, the last part first, without `..`.

    >>> split_name("../val/a.png")
    ['a.png', 'val']
    """
    parts = plain_name(name).split("/")
    return [part for part in reversed(parts) if part not in ("", ".", "..")]


def is_tail(name: str, path: str) -> bool:
    """Whether one of two names ends with all parts of the other.

    >>> is_tail("set/val/a.png", "val/a.png"), is_tail("train/a.png", "val/a.png")
    (True, False)
    """
    pairs = list(zip(split_name(name), split_name(path), strict=False))
    return bool(pairs) and all(_composed(one) == _composed(other) for one, other in pairs)


class Names:
    """A set of file names in which a name can be found although its folders or its case differ.

    >>> names = Names(["train/a.png", "val/a.png"])
    >>> names.find("elsewhere/val/A.PNG")
    'val/a.png'
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._by_last_part: dict[str, list[str]] = defaultdict(list)
        for name in names:
            self._by_last_part[_last_part(name)].append(name)

    @classmethod
    def below(cls, folder: str | os.PathLike[str]) -> Names:
        """All files of a folder and its subfolders, relative to the folder."""
        return cls(names_below(folder))

    def alike(self, name: str) -> list[str]:
        """Names with the same last part, whatever their case."""
        return self._by_last_part.get(_last_part(name), [])

    def find(self, name: str) -> str | None:
        """The name that shares most of its last parts with another, whatever their case; None if none or several do."""
        wanted = _folded_parts(name)
        lengths: dict[str, int] = {}
        for candidate in self.alike(name):
            pairs = zip(_folded_parts(candidate), wanted, strict=False)
            same = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
            lengths[candidate] = len(list(same))
        longest = max(lengths.values(), default=0)
        best = [candidate for candidate, length in lengths.items() if length == longest]
        return best[0] if len(best) == 1 else None


def names_below(folder: str | os.PathLike[str]) -> list[str]:
    """All files of a folder and its subfolders, relative to the folder, also of those that are links.

    A folder that several links lead to is looked into once, so that links in a circle come to an end. Left out are
    hidden folders, where editors keep copies, what Macs write beside files (`._a.png`), and pictures that an earlier
    command drew or linked: people call commands from the folder that holds their pictures.
    """
    names: list[str] = []
    seen = set()
    for subfolder, below, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(subfolder)
        if place in seen:
            below.clear()
            continue
        seen.add(place)
        here = set(files)
        drawn = [folders for signs, folders in OWN_FOLDERS.items() if here.issuperset(signs)]
        own = set(itertools.chain(*drawn))
        below[:] = [name for name in below if not name.startswith(".") and name not in own]
        for file in files:
            if file.startswith("._"):
                continue
            path = os.path.join(subfolder, file)  # noqa: PTH118  a million names take seconds this way
            names.append(os.path.relpath(path, folder))
    return names


def files_in(folder: Path, *endings: str) -> list[Path]:
    """Entries of a folder with this ending, in any case, sorted; without what Macs write beside files (`._a.xml`)."""
    paths = [path for path in folder.glob("*") if path.suffix.lower() in endings]
    return sorted(path for path in paths if not path.name.startswith("._"))


def _last_part(name: str) -> str:
    return next(iter(_folded_parts(name)), "")


def _folded_parts(name: str) -> list[str]:
    return [_composed(part).casefold() for part in split_name(name)]


def _composed(name: str) -> str:
    """A name with each accented letter as one character; disks of Macs may have two, letter and accent."""
    return unicodedata.normalize("NFC", name)
