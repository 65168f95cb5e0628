"""What is wrong with a data set: one thing at a time, and how many of each kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

LISTED_FAULTS = 10
"""Faults of each kind that are listed; the others are counted."""
FIX_IN_FILE = (
    "fix or remove it in the file, or take the copy that `boxseg data check --fix` writes"
)
"""Advice for most faults of an annotation file."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong; as text: place, value, rule, way out."""

    file: Path
    """Annotation or image file."""
    value: str
    """What was found, as the predicate of a sentence: `has width 0`."""
    rule: str
    """What it should be."""
    way_out: str
    """What the user can do."""
    image_id: int | None = None
    annotation_id: int | None = None
    fatal: bool = True
    """False: the data can be used, but something will be missing."""
    kind: str = ""
    """Faults of one kind have the same text here; if it is empty, they have the same `rule`."""
    more: int = 0
    """How many faults of the same kind follow that are not listed."""

    @classmethod
    def of_many(
        cls, file: Path, value: str, rule: str, way_out: str, annotations: list[dict[str, Any]]
    ) -> Fault:
        """One fault for many annotations, at the first of them; not fatal."""
        first = annotations[0]
        return cls(file, value, rule, way_out, first["image_id"], first["id"], fatal=False)

    @property
    def text(self) -> str:
        """Value, rule and way out."""
        return f"{self.value}; {self.rule} ({self.way_out})"

    def __str__(self) -> str:
        place = ""
        if self.annotation_id is not None:
            place = f"annotation {self.annotation_id} "
        elif self.image_id is not None:
            place = f"image {self.image_id} "
        return f"{self.file}: {place}{self.text}"


def count_faults(faults: list[Fault], *, fatal: bool) -> int:
    """Number of fatal faults, or of the others, with those that are not listed."""
    return sum(1 + fault.more for fault in faults if fault.fatal == fatal)


def first_of_each_kind(faults: Iterable[Fault]) -> list[Fault]:
    """The first `LISTED_FAULTS` faults of each kind; the last of them says how many were left out."""
    listed: list[Fault] = []
    counts: Counter[tuple[str, bool]] = Counter()
    last_index: dict[tuple[str, bool], int] = {}
    for fault in faults:
        # The same rule can be fatal for one image and harmless for another; such faults are counted apart.
        kind = fault.kind or fault.rule, fault.fatal
        counts[kind] += 1
        if counts[kind] <= LISTED_FAULTS:
            last_index[kind] = len(listed)
            listed.append(fault)
    for kind, index in last_index.items():
        more = max(counts[kind] - LISTED_FAULTS, 0)
        listed[index] = replace(listed[index], more=more)
    return listed
