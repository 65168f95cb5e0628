"""Classes of a network and of a data set are the same where their names are, in small letters; needs no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from boxseg.errors import ConfigError

ABSENT = -1
"""In the place of the label of a class that the others do not have."""
SHOWN = 5
"""Classes that a message names."""


def fold_name(name: str) -> str:
    """The name of a class without what nobody means by it: capitals, spaces around it, marks without a width."""
    return re.sub("[\ufeff\u200b]", "", name).strip().casefold()


def distinct_names(categories: Sequence[tuple[int, str]]) -> list[str]:
    """The name of each class (id, name), with the id where others have that name."""
    counts = Counter(name for _, name in categories)
    return [
        name if counts[name] == 1 else f"{name} (id {category_id})"
        for category_id, name in categories
    ]


def find_labels(names: Sequence[str], among: Sequence[str]) -> list[int]:
    """For each class its label among others; `ABSENT` where none has its name, or several."""
    folded = list(map(fold_name, among))
    counts = Counter(folded)
    label_of = {name: label for label, name in enumerate(folded) if counts[name] == 1}
    return [label_of.get(fold_name(name), ABSENT) for name in names]


def require_shared_class(of_network: Sequence[str], of_data: Sequence[str], path: Path) -> None:
    """Refuse a network that knows none of the classes of a data set.

    Raises:
        ConfigError: names classes of both; `path` is the annotation file.
    """
    if all(label == ABSENT for label in find_labels(of_network, of_data)):
        theirs, ours = ", ".join(of_network[:SHOWN]), ", ".join(of_data[:SHOWN]) or "no classes"
        rule = f"none of them is among the network's: {theirs}"
        raise ConfigError(f"{path}: has {ours}; {rule} (rename them, or name another run)")
