"""The settings that a new sweep takes from those of `sweep.start_from`: their best ones, which it tries first."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from boxseg.errors import ConfigError
from orchestration.config.resolved import read_resolved
from orchestration.config.space import applying, drawn_setting, misfit, names_in
from orchestration.config.spec import SweepSpec
from orchestration.record.find_runs import find_run
from orchestration.record.run_folder import RunFolder
from orchestration.record.table import read_table
from orchestration.record.trial import TrialStatus

POINTS_SHARE = 3
"""An earlier sweep gives at most one in this many of the settings to try."""


@dataclass(frozen=True)
class Known:
    """What is taken from earlier sweeps."""

    points: list[dict[str, Any]] = field(default_factory=list)
    """Settings to try first."""
    sentences: list[str] = field(default_factory=list)
    """For people: how many settings were taken from which sweep, and why not more."""


def find_known(spec: SweepSpec) -> Known:
    """The settings that a new sweep takes from those of `sweep.start_from`, best first; from `best:SWEEP` one.

    Raises:
        ConfigError: there is no such sweep, or none of its settings lies in the space.
    """
    known = Known()
    sweep = spec.sweep
    room = sweep.num_trials // len(sweep.seeds) - len(sweep.points)
    for number, name in enumerate(sweep.start_from):
        best_first = _points_of(spec, name, f"sweep.start_from.{number}: {name}")
        candidates = best_first[:1] if name.startswith("best:") else best_first
        # these are tried anyway, as the file's own settings usually are, and must not take the place of others
        planned = [*sweep.points, *known.points]
        points = [point for point in candidates if point not in planned]
        most = max(1, sweep.trials // POINTS_SHARE)
        points = points[: min(most, room - len(known.points))]
        known.points.extend(points)
        because = ""
        if not points:
            full = room <= len(known.points)
            because = "; sweep.trials has no room left" if full else "; they are tried anyway"
        known.sentences.append(f"start_from {name}: {len(points)} settings to try{because}")
    return known


def _points_of(spec: SweepSpec, name: str, place: str) -> list[dict[str, Any]]:
    """The settings of an earlier sweep that lie in the new space, best first."""
    try:
        folder = find_run(spec.storage.absolute(), name.removeprefix("best:"))
        if folder.stored().kind != "sweep":
            raise ConfigError(f"{folder.path.name} is no sweep; `boxseg runs ls` lists them")
        earlier = SweepSpec.model_validate(read_resolved(folder.config_path))
    except (ConfigError, ValidationError) as error:
        text = " ".join(str(error).split()).removeprefix(f"{name}: ")
        raise ConfigError(f"{place}: {text:.300}") from error
    points, misfits = list[dict[str, Any]](), list[str]()
    for rows in read_table(folder.path, earlier).settings():
        if all(row.value is None for row in rows):
            continue
        values = _values_of(rows[0], spec)
        if reason := misfit(spec.sweep.space, values):
            misfits.append(f"{rows[0].label}: {reason}")
        else:
            points.append(drawn_setting(spec.sweep.space, values))
    if not points:
        reason = "none of its trials has a value yet"
        if misfits:
            reason = f"none of its settings is in sweep.space ({misfits[0]})"
        raise ConfigError(f"{place}: {reason}; widen the space, or leave the sweep out")
    return points


def _values_of(row: TrialStatus, spec: SweepSpec) -> dict[str, Any]:
    """The values that a trial of another sweep had for the settings that are varied now."""
    names = names_in(spec.sweep.space)
    values = {name: row.values[name] for name in names if name in row.values}
    if len(values) < len(names):
        # including those of its presets
        resolved = read_resolved(RunFolder(row.folder).config_path)
        for name in names:
            values.setdefault(name, functools.reduce(_get, name.split("."), resolved))
    return applying(spec.sweep.space, values)


def _get(group: Any, name: str) -> Any:
    return group.get(name) if isinstance(group, dict) else None
