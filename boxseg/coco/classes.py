"""Matches classes of a network and of a data set by their names, whatever their case; needs no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from boxseg.errors import ConfigError, DataError

ABSENT = -1
"""Label of a class that the other data does not have."""
SHOWN = 5
"""Classes that a message names."""
COUNTED_FROM_1 = (
    "here the first class is 0; where another tool counts from 1, each object has the next class's name",
    "look at a few; if so, subtract 1 from the numbers",
)
"""Rule and advice where `are_counted_from_1`."""


def fold_name(name: str) -> str:
    r"""The name of a class as it is compared: without capitals, spaces around it and marks of no width.

    >>> fold_name(" Cat\u200b")
    'cat'
    """
    return re.sub("[\ufeff\u200b]", "", name).strip().casefold()


def are_counted_from_1(numbers: Collection[int]) -> bool:
    """Whether the class numbers that occur are 1, 2, … without a gap and without 0.

    >>> are_counted_from_1({1, 2}), are_counted_from_1({0, 1}), are_counted_from_1({2})
    (True, False, False)
    """
    return bool(numbers) and set(numbers) == set(range(1, max(numbers) + 1))


def distinct_names(categories: Sequence[tuple[int, str]]) -> list[str]:
    """The name of each class (id, name), with the id where another class has that name.

    >>> distinct_names([(1, "cat"), (2, "dog"), (3, "cat")])
    ['cat (id 1)', 'dog', 'cat (id 3)']
    """
    counts = Counter(name for _, name in categories)
    names = []
    for category_id, name in categories:
        names.append(name if counts[name] == 1 else f"{name} (id {category_id})")
    return names


def find_labels(names: Sequence[str], among: Sequence[str]) -> list[int]:
    """For each class its label among others; `ABSENT` where none has its name, or several have.

    >>> find_labels(["Dog", "bird"], among=["cat", "dog"])
    [1, -1]
    """
    folded = [fold_name(name) for name in among]
    counts = Counter(folded)
    label_of = {name: label for label, name in enumerate(folded) if counts[name] == 1}
    return [label_of.get(fold_name(name), ABSENT) for name in names]


def require_same_classes(
    train: Path, of_train: Sequence[tuple[int, str]], val: Path, of_val: Sequence[tuple[int, str]]
) -> None:
    """Refuse two annotation files that list different categories (id, name): labels would mean different classes.

    Raises:
        DataError: ids or names differ.
    """
    if sorted(of_train) != sorted(of_val):
        raise DataError(
            f"{val}: categories {_listing(of_val)} differ from those of {train}, "
            f"{_listing(of_train)}; both files need the same ids and names (copy the list of categories)"
        )


def _listing(categories: Sequence[tuple[int, str]]) -> str:
    classes = [f"{category_id} {name}" for category_id, name in sorted(categories)]
    more = ", …" if len(classes) > SHOWN else ""
    return ", ".join(classes[:SHOWN]) + more


def require_shared_class(of_network: Sequence[str], of_data: Sequence[str], path: Path) -> None:
    """Refuse a network that knows none of the classes of a data set.

    Args:
        of_network: Names of the network's classes.
        of_data: Names of the classes in the annotation file.
        path: The annotation file, for the message.

    Raises:
        ConfigError: names classes of both.
    """
    labels = find_labels(of_network, of_data)
    if any(label != ABSENT for label in labels):
        return
    network_names = ", ".join(of_network[:SHOWN])
    data_names = ", ".join(of_data[:SHOWN]) or "no classes"
    raise ConfigError(
        f"{path}: has {data_names}; none of them is among the network's: {network_names} "
        "(rename them, or name another run)"
    )
