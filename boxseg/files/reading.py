"""Reads files that users name, or that their files name: only plain files, and only of a size that fits in memory.

A pipe or a device may never end, and reading a file larger than memory ends the process. Both are refused before they
are opened. Needs no torch.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from PIL import Image, UnidentifiedImageError

from boxseg.errors import DataError
from boxseg.files.writing import NotAFileError, plain_size, read_plain, reason_of

MAX_TEXT_BYTES = 2**26
"""Limit for text files such as lists and labels, which are far smaller."""
MAX_YAML_BYTES = 2**20
"""PyYAML takes about ten seconds for a file of this size; the names of twenty thousand classes fill half of it."""
MAX_DEPTH = 100
"""Limit for brackets within brackets: data files have six, and many JSON tools fail at a thousand."""

# A JSON string. The possessive `*+` never steps back, so that no input makes the search take quadratic time.
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

IMAGE_RULE = "images must be whole and in a common format"
REPLACE = "replace the file"
SIZE_RULE = "larger pictures, and the boxes with them, are shrunk or cut into tiles before"
SHRUNK_PX = 8000
"""Longer side of the copy that a message offers for a picture that is too large."""
FORMATS = frozenset(
    ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
)
"""PIL's names of formats that hold pixels; others start programs (EPS) or hold something else."""
OTHER_FILES = {
    b"ftyphei": ("is a HEIC picture", "store it as JPEG or PNG"),
    b"ftypmif1": ("is a HEIC picture", "store it as JPEG or PNG"),
    b"git-lfs": ("is a pointer of Git LFS", "fetch the file with `git lfs pull`"),
    b"<html": ("is a web page", "download the picture again"),
    b"<!doctype html": ("is a web page", "download the picture again"),
    b"<svg": ("is an SVG drawing", "store it as PNG"),
    b"%pdf": ("is a PDF", "store its pages as PNG"),
    b"dicm": ("is a DICOM file", "store its pixels as PNG, of 16 bits if it has more than 8"),
    rb"^ii[*+]\0|^mm\0[*+]": (
        "is a TIFF that is cut off, or whose pixels are neither grey nor RGB in whole numbers",
        "replace the file, or store one or three of its channels as PNG",
    ),
}
"""Pattern for the first bytes of a file that is no picture, in lower case -> what the file is, and what to do."""
DOES_NOT_EXIST = "does not exist"

T = TypeVar("T")
Json = dict[str, Any]


class UnreadableError(DataError):
    """A file cannot be read. Callers that know the purpose of the file build their own text from its parts."""

    def __init__(self, path: Path, value: str, rule: str, way_out: str) -> None:
        # All four arguments: an error from another process is rebuilt from them.
        super().__init__(path, value, rule, way_out)
        self.value = value
        self.rule = rule
        self.way_out = way_out

    def __str__(self) -> str:
        path, value, rule, way_out = self.args
        return f"{path}: {value}; {rule} ({way_out})"


def plain_file(path: Path, rule: str) -> int:
    """Size in bytes of a plain file, or of the one that a link leads to.

    Args:
        path: Any path.
        rule: What is needed there, for the message.

    Raises:
        UnreadableError: nothing is there, or a folder, pipe, device or socket.
    """
    try:
        return plain_size(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnreadableError(path, DOES_NOT_EXIST, rule, "correct the path") from error
    except NotAFileError as error:
        value = f"is {error.kind}, not a file"
        raise UnreadableError(path, value, rule, "name a file on the disk") from error
    except OSError as error:
        value = f"cannot be read: {error.strerror}"
        raise UnreadableError(path, value, rule, "check the path") from error
    except ValueError as error:  # the path has a zero byte, or half a character
        value = f"cannot be read: {error}"
        raise UnreadableError(path, value, rule, "correct the path") from error


def read_bytes(path: Path, rule: str, *, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Content of a plain file of at most `limit` bytes.

    Raises:
        UnreadableError: it is not a plain file, is larger, or cannot be read.
    """
    size = plain_file(path, rule)
    if size > limit:
        value = f"has {size / 1e6:.0f} MB, and {limit / 1e6:.0f} MB are allowed"
        raise UnreadableError(path, value, rule, "check that it is the right file")
    try:
        return read_plain(path, limit=limit)
    except (OSError, ValueError) as error:
        value = f"cannot be read: {reason_of(error)}"
        raise UnreadableError(path, value, rule, "check the path") from error


def largest_bytes() -> int:
    """Size limit of annotation files: a quarter of this machine's memory, as parsed JSON takes more than its text."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def read_text(path: Path, rule: str, *, limit: int = MAX_TEXT_BYTES) -> str:
    r"""Content of a UTF-8 text file of at most `limit` bytes, with `\n` at the end of its lines.

    Raises:
        UnreadableError: as `read_bytes`, or it is not UTF-8.
    """
    data = read_bytes(path, rule, limit=limit)
    try:
        text = data.decode("utf-8-sig")  # editors on Windows begin files with a mark
    except UnicodeDecodeError as error:
        value = f"is not UTF-8 text, byte {error.start}"
        raise UnreadableError(path, value, rule, "save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, rule: str, hook: Callable[[Json], Json] | None = None) -> Any:
    """Content of a JSON file of at most `largest_bytes()`.

    Args:
        path: The file.
        rule: What is needed there, for the message.
        hook: Called with each object as soon as it is read; what it returns takes the object's place.

    Raises:
        UnreadableError: as `read_bytes`, or it is not JSON, has a key twice in one object, or nests too deeply.
    """
    data = read_bytes(path, rule, limit=largest_bytes())
    if is_deep(data):
        value = f"is not JSON that can be used: its values nest more than {MAX_DEPTH} times"
        raise UnreadableError(path, value, rule, "export it again")

    def to_object(pairs: list[tuple[str, Any]]) -> Json:
        entry = _unique(pairs)
        return entry if hook is None else hook(entry)

    try:
        return json.loads(data, object_pairs_hook=to_object)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(path, f"is not JSON: {error}", rule, "export it again") from error


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    """The pairs as a dict; json would silently keep the last of two values of one key."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        repeated = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {repeated!r:.60} is given twice in one object")
    return entry


def is_whole(value: Any) -> bool:
    """Whether a value of a JSON file is a whole number of 64 bits, as ids are.

    >>> is_whole(7), is_whole(7.0), is_whole(True), is_whole(2**63)
    (True, False, False, False)
    """
    return type(value) is int and abs(value) < 2**63


def is_float(value: Any) -> bool:
    """Whether a value of a JSON file is a number that fits into a float; infinity and NaN do."""
    return type(value) is float or is_whole(value)


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number."""
    return is_float(value) and math.isfinite(value)


def is_deep(data: bytes) -> bool:
    """Whether brackets outside of JSON's strings nest more than `MAX_DEPTH` times."""
    brackets = STRING.sub(b"", data).translate(None, delete=NO_BRACKETS)
    codes = np.frombuffer(brackets, np.uint8)
    # Bit 2 is 0 in the codes of [ and {, and 1 in those of ] and }.
    steps = 1 - (codes & 4).astype(np.int64) // 2  # 1 for an opening bracket, -1 for a closing one
    return bool((steps.cumsum() > MAX_DEPTH).any())


def read_yaml(path: Path, rule: str) -> Any:
    """Content of a small YAML file; values that are neither lists nor mappings stay text, so a class can be named `no`.

    Raises:
        UnreadableError: as `read_text`, or it is not YAML, has a key twice in one mapping, or has an alias.
    """
    text = read_text(path, rule, limit=MAX_YAML_BYTES)
    try:
        return yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        message = " ".join(str(error).split())
        value = f"is not YAML that can be used: {message:.200}"
        raise UnreadableError(path, value, rule, "correct the file") from error


class _PlainLoader(yaml.BaseLoader):
    """Refuses what YAML allows but data files do not need."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        # Aliases of aliases can stand for more values than memory holds.
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(
                problem="it has an alias; write the value out", problem_mark=mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        repeated = next((key for key, count in keys.items() if count > 1), None)
        if repeated is not None:
            problem = f"{repeated!r:.60} is given twice"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_picture(
    path: Path,
    use: Callable[[Image.Image], T],
    rule: str = IMAGE_RULE,
    way_out: str = REPLACE,
) -> T:
    """Open an image file and return what `use` makes of it; pixels are decoded only if `use` asks for them.

    Raises:
        UnreadableError: as `plain_file`, or it is damaged, in no known format, or has too many pixels.
    """
    if plain_file(path, rule) == 0:
        raise UnreadableError(path, "cannot be read: the file is empty", rule, way_out)
    try:
        with Image.open(path, formats=_formats()) as picture:
            return use(picture)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        with path.open("rb") as file:
            start = file.read(132).lower()
        for pattern, (value, own_way_out) in OTHER_FILES.items():
            if re.search(pattern, start):
                raise UnreadableError(path, value, rule, own_way_out) from error
        raise UnreadableError(path, f"cannot be read: {error}", rule, way_out) from error
    except Image.DecompressionBombError as error:
        size, *_ = str(error).split(", ")
        raise UnreadableError(path, f"is too large: {size}", SIZE_RULE, _shrink(path)) from error
    except Exception as error:  # decoders raise errors of any kind at damaged bytes
        raise UnreadableError(path, f"cannot be read: {error}", rule, way_out) from error


def look_at(paths: Iterable[Path], use: Callable[[Image.Image], T]) -> dict[Path, T]:
    """`read_picture` of each file that can be read; others are reported where their pixels are needed."""
    found = {}
    for path in paths:
        with contextlib.suppress(UnreadableError):
            found[path] = read_picture(path, use)
    return found


def _shrink(path: Path) -> str:
    """The command that makes a copy of a picture that can be opened."""
    code = (
        "import sys; from PIL import Image; Image.MAX_IMAGE_PIXELS = None; "
        "picture = Image.open(sys.argv[1]); "
        f"picture.thumbnail(({SHRUNK_PX}, {SHRUNK_PX})); picture.save(sys.argv[2])"
    )
    copy = path.with_name(f"{path.stem}-small{path.suffix}")
    names = shlex.join([str(path), str(copy)])
    # This interpreter has Pillow; another one may not.
    return f'shrink it: {shlex.quote(sys.executable)} -c "{code}" {names}'


@functools.cache
def _formats() -> list[str]:
    """The `FORMATS` that this PIL was built with; asking it for others is an error."""
    Image.init()
    return sorted(FORMATS & Image.OPEN.keys())
