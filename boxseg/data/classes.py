"""Classes of a network and of a data set are the same where their names are, in small letters; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from boxseg.errors import ConfigError

ABSENT = -1
"""In the place of the label of a class that the others do not have."""
SHOWN = 5
"""Classes that a message names."""


def find_labels(names: Sequence[str], among: Sequence[str]) -> list[int]:
    """For each class its label among others; `ABSENT` where none has its name."""
    label_of = {name.casefold(): label for label, name in enumerate(among)}
    return [label_of.get(name.casefold(), ABSENT) for name in names]


def require_shared_class(of_network: Sequence[str], of_data: Sequence[str], path: Path) -> None:
    """Refuse a network that knows none of the classes of a data set.

    Raises:
        ConfigError: names classes of both; `path` is the annotation file.
    """
    if all(label == ABSENT for label in find_labels(of_network, of_data)):
        theirs, ours = ", ".join(of_network[:SHOWN]), ", ".join(of_data[:SHOWN]) or "no classes"
        rule = f"none of them is among the network's: {theirs}"
        raise ConfigError(f"{path}: has {ours}; {rule} (rename them, or name another run)")
