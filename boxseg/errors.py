"""The errors that boxseg raises on purpose; everything else is a bug."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class BoxSegError(Exception):
    """Root of the family; its text names the place, the value, the rule and what to do."""


class ConfigError(BoxSegError):
    """A setting is unknown, out of range, or contradicts another."""


class DataError(BoxSegError):
    """A data set, an image or an annotation cannot be used as it is."""


class ShapeError(BoxSegError):
    """A tensor handed to a public function has the wrong shape or dtype."""


class CheckpointError(BoxSegError):
    """A checkpoint is missing, damaged, or belongs to other settings."""


class NonFiniteLossError(BoxSegError):
    """A loss became NaN or infinite; the run is stopped."""


class CollapseError(BoxSegError):
    """Predicted masks are their boxes: nothing is learnt about shape; the run is stopped."""


class StorageError(BoxSegError):
    """Files cannot be written: the disk is full, read-only or gone."""


@contextlib.contextmanager
def naming(place: str) -> Iterator[None]:
    """Put a place in front of the text of a DataError that comes from code which does not know it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{place} {error}") from error
