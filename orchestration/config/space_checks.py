"""Which settings a sweep's space may vary, and on which conditions they may depend."""

from __future__ import annotations

from boxseg.config.method import Config
from boxseg.errors import ConfigError
from orchestration.config.domain import Choice, Together, is_same
from orchestration.config.explain import as_yaml, find_field, group_of, unknown_setting
from orchestration.config.space import (
    Space,
    applies,
    conditions_of,
    given_by,
    names_of,
    picks_for,
    possible_values,
)

_FIXED = ("name", "storage", "resources", "tracking", "notify", "train.seed")
"""Settings that no trial may change: all trials share them, or the sweep sets them itself."""


def check_names(space: Space, places: dict[str, str], model: type[Config]) -> None:
    """Refuse names that are no settings, that vary twice, or that never apply.

    Args:
        space: The space.
        places: Line of the space -> where it was written.
        model: Settings of a run.

    Raises:
        ConfigError: names the place, the value, the rule and what to do.
    """
    varied: set[str] = set()
    for entry, domain in space.items():
        place = places[entry]
        if isinstance(domain, Together) and find_field(model, entry.split(".")) is not None:
            raise ConfigError(
                f"{place}: sweep.space: {entry} is a setting; settings that move together need a name of their own"
            )
        for name in names_of(entry, domain):
            _check_name(name, place, model)
            if name in varied:
                raise ConfigError(
                    f"{place}: sweep.space: {name} varies twice; leave one of them out"
                )
            varied.add(name)
        _check_conditions(space, entry, place)


def _check_name(name: str, place: str, model: type[Config]) -> None:
    field = find_field(model, name.split("."))
    if field is None:
        raise ConfigError(f"{place}: sweep.space: {unknown_setting(name, model)}")
    # only what is always a group: `data.train` can be the word toy
    if group_of(field) is field.annotation is not None:
        way_out = f"vary its settings one by one, as in {name}.NAME"
        raise ConfigError(f"{place}: sweep.space: {name} is a group; {way_out}")
    if any(name == fixed or name.startswith(f"{fixed}.") for fixed in _FIXED):
        hint = "all trials share it; set it once above"
        if name == "train.seed":
            hint = "list its values in sweep.seeds"
        raise ConfigError(f"{place}: sweep.space: {name} cannot vary; {hint}")


def _check_conditions(space: Space, entry: str, place: str) -> None:
    above: Space = {}
    for other, domain in space.items():
        if other == entry:
            break
        if isinstance(domain, Choice | Together):
            above[other] = domain
    for name, allowed in space[entry].when.items():
        values = possible_values(above, name)
        if not values:
            raise ConfigError(
                f"{place}: sweep.space: {entry} varies when {conditions_of(space[entry])}, and no choice above it "
                f"gives {name}; add one there, or leave the condition out"
            )
        for value in allowed:
            if not any(is_same(value, other) for other in values):
                raise ConfigError(
                    f"{place}: sweep.space: {entry} varies when {name} is {as_yaml(value)}, which it never is; it can "
                    f"be {', '.join(map(as_yaml, values[:10]))}"
                )
    needed: dict[str, object] = {}
    for giver, value in picks_for(space, entry).items():
        needed |= given_by(giver, space[giver], value)
    if not applies(space[entry], needed):
        raise ConfigError(
            f"{place}: sweep.space: the conditions of {entry} never hold together; leave one of them out"
        )
