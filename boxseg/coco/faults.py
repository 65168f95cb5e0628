"""What is wrong with a data set: one thing at a time, and how many of each kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

LISTED_FAULTS = 10
"""Faults of each kind that are listed; the others are counted."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong; as text: place, value, rule, way out."""

    file: Path
    """Annotation or image file."""
    value: str
    """What was found, the predicate of a sentence: `has width 0`."""
    rule: str
    """What it should be."""
    way_out: str
    """What the user can do."""
    image_id: int | None = None
    annotation_id: int | None = None
    fatal: bool = True
    """False: the data can be used, but something will be missing."""
    kind: str = ""
    """Faults of one kind have this in common; the rule if empty."""
    more: int = 0
    """How many of the same kind follow that are not listed."""

    @property
    def told(self) -> str:
        """Value, rule and way out."""
        return f"{self.value}; {self.rule} ({self.way_out})"

    def __str__(self) -> str:
        place = f"image {self.image_id} " if self.image_id is not None else ""
        if self.annotation_id is not None:
            place = f"annotation {self.annotation_id} "
        return f"{self.file}: {place}{self.told}"


def count_faults(faults: list[Fault], *, fatal: bool) -> int:
    """How many fatal faults there are, or others, with those that are not listed."""
    return sum(1 + fault.more for fault in faults if fault.fatal == fatal)


def first_of_each_kind(faults: Iterable[Fault]) -> list[Fault]:
    """The first few faults of each kind, the last of them with the number of those that are left out."""
    listed: list[Fault] = []
    counts: Counter[tuple[str, bool]] = Counter()
    last: dict[tuple[str, bool], int] = {}
    for fault in faults:
        kind = fault.kind or fault.rule, fault.fatal
        counts[kind] += 1
        if counts[kind] <= LISTED_FAULTS:
            last[kind] = len(listed)
            listed.append(fault)
    for kind, place in last.items():
        listed[place] = replace(listed[place], more=max(counts[kind] - LISTED_FAULTS, 0))
    return listed
