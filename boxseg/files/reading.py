"""Files that users name, or that their files name: plain files alone, of a size that fits in memory, read whole.

A pipe or a device may never end, and reading a file that is larger than memory ends the process; both are refused
before they are opened. Needs no torch.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from PIL import Image

from boxseg.errors import DataError
from boxseg.files.writing import NotAFileError, plain_size, read_plain, reason_of

MAX_TEXT_BYTES = 2**26
"""Lists, labels and the like are far smaller."""
MAX_YAML_BYTES = 2**20
"""PyYAML takes about ten seconds for it; names of twenty thousand classes are half of it."""
MAX_DEPTH = 100
"""Brackets within brackets: data files have six, and much that handles JSON fails at a thousand."""
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

IMAGE_RULE = "images must be whole and in a common format"
REPLACE = "replace the file"
FORMATS = frozenset(
    ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
)
"""Formats of PIL that are pictures of pixels; others start programs (EPS) or hold something else."""
NO_COLOURS = {
    "F": "has floats as pixels, and no rule says which are dark and which are bright",
    "La": "has grey with premultiplied transparency as pixels",
}
"""Mode of PIL -> why it does not become RGB."""
COLOURS = "pixels are whole numbers of 8 or 16 bits", "store it as PNG or JPEG"
"""What pixels are, and the way out."""
DOES_NOT_EXIST = "does not exist"

T = TypeVar("T")
Json = dict[str, Any]


class UnreadableError(DataError):
    """A file cannot be read; `value` and `way_out` are parts of its text."""

    def __init__(self, path: Path, value: str, rule: str, way_out: str) -> None:
        # all four, so that the error can go to another process
        super().__init__(path, value, rule, way_out)
        self.value, self.way_out = value, way_out

    def __str__(self) -> str:
        path, value, rule, way_out = self.args
        return f"{path}: {value}; {rule} ({way_out})"


def plain_file(path: Path, rule: str) -> int:
    """Size in bytes of a plain file, or of the one that a link leads to.

    Args:
        path: Any path.
        rule: What is needed there, for the message.

    Raises:
        UnreadableError: there is nothing, or a folder, pipe, device or socket.
    """
    try:
        return plain_size(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnreadableError(path, DOES_NOT_EXIST, rule, "correct the path") from error
    except NotAFileError as error:
        raise UnreadableError(
            path, f"is {error.kind}, not a file", rule, "name a file on the disk"
        ) from error
    except OSError as error:
        raise UnreadableError(
            path, f"cannot be read: {error.strerror}", rule, "check the path"
        ) from error
    except ValueError as error:  # a zero byte, or half a character
        raise UnreadableError(
            path, f"cannot be read: {error}", rule, "correct the path"
        ) from error


def read_bytes(path: Path, rule: str, *, limit: int = MAX_TEXT_BYTES) -> bytes:
    """A plain file of `limit` bytes at most.

    Raises:
        UnreadableError: it is none, larger, or cannot be read.
    """
    size = plain_file(path, rule)
    if size > limit:
        told = f"has {size / 1e6:.0f} MB, and {limit / 1e6:.0f} MB are allowed"
        raise UnreadableError(path, told, rule, "check that it is the right file")
    try:
        return read_plain(path, limit=limit)
    except (OSError, ValueError) as error:
        raise UnreadableError(
            path, f"cannot be read: {reason_of(error)}", rule, "check the path"
        ) from error


def largest_bytes() -> int:
    """A quarter of this machine's memory: what is read takes more once it is taken apart."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def read_text(path: Path, rule: str, *, limit: int = MAX_TEXT_BYTES) -> str:
    """A plain text file of `limit` bytes at most.

    Raises:
        UnreadableError: as `read_bytes`, or it is not UTF-8.
    """
    try:
        return (
            read_bytes(path, rule, limit=limit)
            .decode("utf-8-sig")
            .replace("\r\n", "\n")
            .replace("\r", "\n")
        )
    except UnicodeDecodeError as error:
        raise UnreadableError(
            path, f"is not UTF-8 text, byte {error.start}", rule, "save it as UTF-8"
        ) from error


def read_json(path: Path, rule: str, hook: Callable[[Json], Json] | None = None) -> Any:
    """Content of a JSON file of `largest_bytes` at most; `hook` is given each object.

    Raises:
        UnreadableError: as `read_bytes`, or it is not JSON, has a key twice in one object, or nests too deeply.
    """
    data = read_bytes(path, rule, limit=largest_bytes())
    if is_deep(data):
        told = f"is not JSON that can be used: its values nest more than {MAX_DEPTH} times"
        raise UnreadableError(path, told, rule, "export it again")

    def entry(pairs: list[tuple[str, Any]]) -> Json:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            again = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the key {again!r:.60} is given twice in one object")
        return found if hook is None else hook(found)

    try:
        return json.loads(data, object_pairs_hook=entry)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(path, f"is not JSON: {error}", rule, "export it again") from error


def is_whole(value: Any) -> bool:
    """Whether a value of a JSON file is a whole number of 64 bits, as ids are."""
    return type(value) is int and abs(value) < 2**63


def is_float(value: Any) -> bool:
    """Whether a value of a JSON file is a number that a float holds, infinite ones and NaN too."""
    return type(value) is float or is_whole(value)


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number that a float holds."""
    return is_float(value) and math.isfinite(value)


def is_deep(data: bytes) -> bool:
    """Whether brackets outside of JSON's strings nest more than `MAX_DEPTH` times."""
    brackets = STRING.sub(b"", data).translate(None, delete=NO_BRACKETS)
    # 1 for [ and {, -1 for ] and }
    steps = 1 - (np.frombuffer(brackets, np.uint8) & 4).astype(np.int64) // 2
    return bool((steps.cumsum() > MAX_DEPTH).any())


def read_yaml(path: Path, rule: str) -> Any:
    """Lists and mappings of a small YAML file; all else in it is text as written, so that a class can be named `no`.

    Aliases are refused: a few of them can stand for more than memory holds.

    Raises:
        UnreadableError: as `read_text`, or it is not such YAML.
    """
    text = read_text(path, rule, limit=MAX_YAML_BYTES)
    try:
        return yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        told = " ".join(str(error).split())
        raise UnreadableError(
            path, f"is not YAML that can be used: {told:.200}", rule, "correct the file"
        ) from error


class _PlainLoader(yaml.BaseLoader):
    """Refuses what data files have no use for, although YAML allows it."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(
                problem="it has an alias; write the value out", problem_mark=mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        again = next((key for key, count in keys.items() if count > 1), None)
        if again is not None:
            raise yaml.MarkedYAMLError(
                problem=f"{again!r:.60} is given twice", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_picture(
    path: Path, use: Callable[[Image.Image], T], rule: str = IMAGE_RULE, way_out: str = REPLACE
) -> T:
    """What `use` makes of a picture that PIL opens; its pixels are decoded where `use` asks for them.

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
    except Exception as error:  # decoders raise errors of any kind at damaged bytes
        raise UnreadableError(path, f"cannot be read: {error}", rule, way_out) from error


@functools.cache
def _formats() -> list[str]:
    Image.init()
    return sorted(FORMATS & Image.OPEN.keys())
