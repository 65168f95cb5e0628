"""The space of a sweep: which settings its domains give together, under their conditions.

A setting of a space is a mapping of names to values. It has only the names that apply: where a domain's
condition does not hold, what it would vary stays as in the file.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from orchestration.config.domain import (
    Domain,
    Together,
    corners,
    drawn_value,
    holds,
    is_same,
    values_of,
)
from orchestration.config.explain import as_yaml

Space = dict[str, Domain]
"""Name -> domain: that of a setting, or a free name for settings that move together."""
MOST_SAMPLES = 128
"""How many settings stand for a space, besides its corners."""


def names_in(space: Space) -> list[str]:
    """The settings that a space varies."""
    return [name for entry, domain in space.items() for name in names_of(entry, domain)]


def names_of(entry: str, domain: Domain) -> list[str]:
    """The settings that one line of a space varies."""
    return list(domain.together[0]) if isinstance(domain, Together) else [entry]


def given_by(entry: str, domain: Domain, value: Any) -> dict[str, Any]:
    """Setting name -> value by the value of one line of a space."""
    return dict(value) if isinstance(domain, Together) else {entry: value}


def applies(domain: Domain, values: dict[str, Any]) -> bool:
    """Whether the conditions of a domain hold with the values of what stands above it."""
    return _meets(values, domain.when)


def _meets(values: dict[str, Any], conditions: dict[str, list[Any]]) -> bool:
    for name, allowed in conditions.items():
        if name not in values or not any(is_same(values[name], value) for value in allowed):
            return False
    return True


def conditions_of(domain: Domain) -> str:
    """When a domain applies, in words."""
    parts = []
    for name, allowed in domain.when.items():
        parts.append(f"{name} is {' or '.join(map(as_yaml, allowed))}")
    return " and ".join(parts)


def draw(space: Space, pick: Callable[[str, Domain], Any]) -> dict[str, Any]:
    """The setting in which each line that applies has what `pick` gives for its name and domain."""
    values: dict[str, Any] = {}
    for entry, domain in space.items():
        if applies(domain, values):
            values |= given_by(entry, domain, pick(entry, domain))
    return values


def value_in(values: dict[str, Any], entry: str, domain: Domain) -> Any:
    """The value of one line of a space, from setting name -> value: the inverse of `given_by`.

    Raises:
        KeyError: they have none.
    """
    if isinstance(domain, Together):
        return {name: values[name] for name in names_of(entry, domain)}
    return values[entry]


def applying(space: Space, values: dict[str, Any]) -> dict[str, Any]:
    """The values that apply, given the others.

    Raises:
        KeyError: a setting that applies has no value.
    """
    return draw(space, functools.partial(value_in, values))


def misfit(space: Space, values: dict[str, Any]) -> str:
    """Why a space cannot give these values; empty where it can."""
    names = set(names_in(space))
    for name in values:
        if name not in names:
            return f"{name} is not in sweep.space"
    try:
        fitting = applying(space, values)
    except KeyError as error:
        return f"{error.args[0]} has no value"
    for entry, domain in space.items():
        if applies(domain, fitting):
            value = value_in(fitting, entry, domain)
            if not holds(domain, value):
                return (
                    f"{entry} is {as_yaml(value)}, which its domain in sweep.space does not hold"
                )
    for name in values.keys() - fitting.keys():
        return f"{name} does not apply with the other values"
    return ""


def is_setting_of(space: Space, values: dict[str, Any]) -> bool:
    """Whether a space can give these values."""
    return not misfit(space, values)


def drawn_setting(space: Space, values: dict[str, Any]) -> dict[str, Any]:
    """Values that a space can give, as they would be drawn from there."""
    return draw(space, lambda entry, domain: drawn_value(domain, value_in(values, entry, domain)))


def settings_of(space: Space) -> Iterator[dict[str, Any]]:
    """All settings of a space that `count_settings` counts, one after the other; the last name varies quickest."""
    return _settings_of(list(space.items()), {})


def _settings_of(
    lines: Sequence[tuple[str, Domain]], values: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    if not lines:
        yield values
        return
    entry, domain = lines[0]
    if not applies(domain, values):
        yield from _settings_of(lines[1:], values)
        return
    options = values_of(domain)
    assert options is not None
    for value in options:
        yield from _settings_of(lines[1:], values | given_by(entry, domain, value))


def count_settings(space: Space) -> int | None:
    """How many different settings a space has; None if they are endless, or nothing varies."""
    watched = {name for domain in space.values() for name in domain.when}
    count = _count(list(space.items()), {}, watched)
    return int(count) if space and count < math.inf else None


def _count(
    lines: Sequence[tuple[str, Domain]], values: dict[str, Any], watched: set[str]
) -> float:
    if not lines:
        return 1
    (entry, domain), others = lines[0], lines[1:]
    if not applies(domain, values):
        return _count(others, values, watched)
    options = values_of(domain)
    if options is None:
        return math.inf
    if watched.isdisjoint(names_of(entry, domain)):
        # whichever value it is, the lines below apply alike
        return len(options) * _count(others, values, watched)
    return sum(
        _count(others, values | given_by(entry, domain, value), watched) for value in options
    )


def samples(space: Space) -> Iterator[dict[str, Any]]:
    """Settings that stand for the space: all combinations of its corners, or each corner once and a fixed sample."""
    ends = {entry: corners(domain) for entry, domain in space.items()}
    if math.prod(map(len, ends.values())) <= MOST_SAMPLES:
        for combination in itertools.product(*ends.values()):
            yield _setting(space, dict(zip(space, combination, strict=True)))
        return
    longest = max(map(len, ends.values()))
    for number in range(longest):  # each corner at least once
        yield _setting(space, {name: end[number % len(end)] for name, end in ends.items()})
    first = {name: end[0] for name, end in ends.items()}
    for entry, domain in space.items():
        for value in ends[entry] if domain.when else ():
            yield _setting(space, first | picks_for(space, entry) | {entry: value})
    # a fixed seed, so that a file is refused each time or never
    draw = random.Random(0)
    for _ in range(MOST_SAMPLES):
        yield _setting(space, {name: draw.choice(end) for name, end in ends.items()})


def _setting(space: Space, picked: dict[str, Any]) -> dict[str, Any]:
    """The setting by the value that is picked for each line."""
    return draw(space, lambda entry, _: picked[entry])


def picks_for(space: Space, entry: str) -> dict[str, Any]:
    """Line -> value with which a line of the space applies; empty if it always does."""
    picked: dict[str, Any] = {}
    conditions = space[entry].when
    for giver, domain in space.items():
        needed = conditions.keys() & names_of(giver, domain)
        if not needed:
            continue
        for value in values_of(domain) or ():
            if _meets(given_by(giver, domain, value), {name: conditions[name] for name in needed}):
                picked |= {**picks_for(space, giver), giver: value}
                break
    return picked


def possible_values(space: Space, name: str) -> list[Any]:
    """What stands for all values that a space gives a setting; empty where it does not vary it."""
    for entry, domain in space.items():
        if name in names_of(entry, domain):
            return [given_by(entry, domain, value)[name] for value in corners(domain)]
    return []
