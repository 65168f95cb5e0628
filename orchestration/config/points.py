"""The settings that a sweep tries first: those that its file names, and the file's own."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

from boxseg.errors import ConfigError
from orchestration.config.source import Source
from orchestration.config.space import (
    Space,
    applying,
    conditions_of,
    drawn_setting,
    is_setting_of,
    misfit,
    names_in,
    names_of,
)

if TYPE_CHECKING:
    from orchestration.config.spec import RunSpec, SweepSpec


def whole_points(spec: SweepSpec, source: Source) -> list[dict[str, Any]]:
    """`sweep.points` with a value for each name of the space, after the file's own settings if `own_first` asks so.

    Raises:
        ConfigError: a name is not in the space, a value not in its domain, or a point comes twice.
    """
    sweep, points = spec.sweep, list[dict[str, Any]]()
    num_settings = sweep.num_trials // len(sweep.seeds)
    if len(sweep.points) > num_settings:
        raise ConfigError(
            f"{source.place(('sweep', 'points'))}: sweep.points has {len(sweep.points)} settings, and {num_settings} "
            "are tried; raise sweep.trials, or name fewer points"
        )
    own = own_values(spec, names_in(sweep.space))
    for number, given in enumerate(sweep.points):
        place = f"{source.place(('sweep', 'points', str(number)))}: sweep.points.{number}"
        point = _whole_point(sweep.space, given, own, place)
        if point in points:
            raise ConfigError(
                f"{place}: is the same as point {points.index(point)}; leave one of them out"
            )
        points.append(point)
    # if there is no room for both, points that somebody wrote down go first
    has_room = len(points) < num_settings and sweep.search != "grid"
    own = applying(sweep.space, own)
    if sweep.own_first and has_room and is_setting_of(sweep.space, own):
        own_point = drawn_setting(sweep.space, own)
        if own_point not in points:
            points.insert(0, own_point)
    return points


def _whole_point(
    space: Space, given: dict[str, Any], own: dict[str, Any], place: str
) -> dict[str, Any]:
    for name in given.keys() - set(names_in(space)):
        raise ConfigError(f"{place}: {name} is not in sweep.space; add it there, or leave it out")
    point = applying(space, own | given)
    for entry, domain in space.items():
        for name in names_of(entry, domain):
            if name in given and name not in point:
                raise ConfigError(
                    f"{place}: {name} does not apply, as it varies when {conditions_of(domain)}; leave it out, or "
                    "change that"
                )
    if reason := misfit(space, point):
        is_given = any(reason.startswith(name) for name in given)
        whose = "" if is_given else "; it is the file's own value"
        raise ConfigError(f"{place}: {reason}{whose}; widen that, or give another value")
    return drawn_setting(space, point)


def own_values(spec: RunSpec, names: Iterable[str]) -> dict[str, Any]:
    """The values of settings that no trial changes."""
    values = {}
    for name in names:
        value = functools.reduce(getattr, name.split("."), spec)
        # as YAML has it, which knows neither paths nor tuples
        values[name] = to_jsonable_python(value)
    return values
