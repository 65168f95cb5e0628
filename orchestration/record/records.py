"""Reads and checks JSON records of runs; an unsound record is warned of once, and does not affect the others."""

from __future__ import annotations

import functools
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from annotated_types import Ge, Le, Predicate

from boxseg.errors import ConfigError
from boxseg.files.writing import plain_size, read_plain, reason_of

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

RULES = {"strict": True, "allow_inf_nan": False}
"""pydantic's settings for records: numbers are finite, and text is not converted to numbers."""
Count = Annotated[int, Ge(0), Le(2**53)]
"""Whole number that every reader of JSON represents exactly."""
Seconds = Annotated[float, Ge(0), Le(253402300799)]
"""Seconds since 1970, up to the year 9999."""
Pid = Annotated[int, Ge(1), Le(2**31 - 1)]
"""Number of a process."""


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[^\x00-\x1f/]{1,255}", text) is not None


Name = Annotated[str, Predicate(_is_name)]
"""What can be the name of a file or folder."""
MAX_BYTES = 2**26
"""Most bytes of a record; real ones have a few thousand."""

logger = logging.getLogger("boxseg.records")
T = TypeVar("T")


class DamagedError(ConfigError):
    """A file of a run is there, but does not hold what it should."""


def read_record(path: Path, kind: type[T], *, way_out: str) -> T:
    """Read a file that holds one record.

    Args:
        path: A JSON file.
        kind: A dataclass or TypedDict with `RULES`; fields that it does not have are left out.
        way_out: What to do about an unsound file, for the message.

    Raises:
        FileNotFoundError: nothing is there.
        DamagedError: it is no plain file, cannot be read, or holds something else.
    """
    from pydantic import ValidationError  # takes a while to load

    try:
        return _validate(kind, read_plain(path, limit=MAX_BYTES))
    except FileNotFoundError:
        raise
    except ValidationError as error:
        raise DamagedError(f"{path}: is damaged: {_first_fault(error)}; {way_out}") from error
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path}: cannot be read: {reason_of(error)}; {way_out}") from error


def read_sound(path: Path, kind: type[T], *, way_out: str) -> T | None:
    """`read_record` of a file that is not needed: None if it is missing or, with a warning, if it is unsound."""
    try:
        return read_record(path, kind, way_out=way_out)
    except FileNotFoundError:
        pass
    except DamagedError as error:
        warn_once(path, str(error))
    return None


def read_lines(path: Path, kind: type[T], offset: int = 0) -> tuple[list[T], int]:
    """Records in the whole lines of a file from a byte on, and the byte after the last of these lines.

    Lines that are torn or unsound are left out with a warning. A file shorter than `offset` has been replaced, and is
    read from its start; one that is missing, or cannot be read, has no lines.
    """
    from pydantic import ValidationError  # takes a while to load

    try:
        size = plain_size(path)
        start = offset if offset <= size else 0
        data = read_plain(path, offset=start)
    except FileNotFoundError:
        return [], offset
    except (OSError, ValueError) as error:
        warn_once(path, f"{path}: left out, it cannot be read: {reason_of(error)}")
        return [], offset
    # What follows the last end of a line may just be being written; the next call reads it.
    end = data.rfind(b"\n") + 1
    records: list[T] = []
    unsound: dict[int, str] = {}
    for number, line in enumerate(data[:end].splitlines()):
        try:
            records.append(_validate(kind, line))
        except ValidationError as error:
            unsound[number] = _first_fault(error) if not unsound else ""
    if unsound:
        number, fault = next(iter(unsound.items()))
        # counted only for the message
        line_number = read_plain(path)[:start].count(b"\n") + number + 1
        others = f" and {len(unsound) - 1} other lines" if len(unsound) > 1 else ""
        warn_once(path, f"{path}:{line_number}{others}: left out, not whole or not sound: {fault}")
    return records, start + end


def warn_once(path: Path, text: str) -> None:
    """Warn of an unsound file, once in the life of this process."""
    if path not in _warned:
        _warned.add(path)
        logger.warning("%s", text)


_warned: set[Path] = set()


def _validate(kind: Any, data: bytes) -> Any:
    return _adapter(kind).validate_json(data)


# building a validator takes pydantic much longer than using it
@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _first_fault(error: ValidationError) -> str:
    """The first thing that is wrong, as in `step: Input should be a valid integer`."""
    fault = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, fault["loc"]))[:100]
    return f"{place}: {fault['msg']}" if place else fault["msg"]
