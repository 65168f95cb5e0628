"""What earlier sweeps tell a new one, by `sweep.start_from`: settings to try, and scores that TPE learns from."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from boxseg.errors import ConfigError
from orchestration.config.domain import is_same
from orchestration.config.explain import as_yaml
from orchestration.config.points import own_values
from orchestration.config.resolved import read_resolved
from orchestration.config.space import applying, drawn_setting, is_setting_of, misfit, names_in
from orchestration.config.spec import SweepConfig, SweepSpec
from orchestration.record.find_runs import find_run
from orchestration.record.origin import look_at_data
from orchestration.record.resume import SWEEP_MAY_CHANGE, differing_settings
from orchestration.record.run_folder import RunFolder
from orchestration.record.score import Merit, merit_of
from orchestration.record.table import read_table
from orchestration.record.trial import TrialStatus

EVENT = "known"
"""Line of the journal with what was found, so that a sweep that goes on needs none of the earlier ones."""
POINTS_SHARE = 3
"""A sweep whose scores do not count gives one in so many settings to try."""
DATA_SETTINGS = ("data.train", "data.val", "data.toy")
"""Where data sets lie; what is in them is told by the fingerprint."""


@dataclass(frozen=True)
class Told:
    """A setting that has been judged elsewhere."""

    values: dict[str, Any]
    merit: Merit


@dataclass(frozen=True)
class Known:
    """What earlier sweeps tell."""

    points: list[dict[str, Any]] = field(default_factory=list)
    """Settings to try first."""
    told: list[Told] = field(default_factory=list)
    """Those that the search learns from; they are not run again."""
    sentences: list[str] = field(default_factory=list)
    """What was taken from which sweep, and why not more, for people."""


def find_known(spec: SweepSpec) -> Known:
    """What the sweeps of `sweep.start_from` tell a new sweep.

    Scores count for TPE alone, and only between sweeps that would give a setting the same score: with the same metric,
    annotation files, length and all other settings. Of other sweeps the best settings are tried first.

    Raises:
        ConfigError: there is no such sweep, or none of its settings lies in the space.
    """
    known = Known()
    room = spec.sweep.num_trials // len(spec.sweep.seeds) - len(spec.sweep.points)
    name_of: dict[Path, str] = {}
    for number, name in enumerate(spec.sweep.start_from):
        place = f"sweep.start_from.{number}: {name}"
        earlier = _read_earlier(spec, name, place)
        is_best = name.startswith("best:")
        # ids, folders and names can mean one sweep, whose scores would count twice
        if not is_best and earlier.folder.path in name_of:
            first = name_of[earlier.folder.path]
            raise ConfigError(f"{place}: is the sweep of {first} as well; name each once")
        if not is_best:
            name_of[earlier.folder.path] = name
        reason = "one setting is no history" if is_best else earlier.why_not_told(spec)
        if not reason:
            known.told.extend(earlier.told)
            known.sentences.append(
                f"start_from {name}: {len(earlier.told)} settings with their scores"
            )
            continue
        candidates = earlier.points[:1] if is_best else earlier.points
        # tried anyway, as the file's own settings mostly are; they must not take the room of others
        points = [
            point
            for point in candidates
            if point not in spec.sweep.points and point not in known.points
        ]
        most = max(1, spec.sweep.trials // POINTS_SHARE)
        points = points[: min(most, room - len(known.points))]
        known.points.extend(points)
        because = "" if is_best else f"; scores do not count, as {reason}"
        if not points:
            full = room <= len(known.points)
            because += "; sweep.trials has no room left" if full else "; they are tried anyway"
        known.sentences.append(f"start_from {name}: {len(points)} settings to try{because}")
    return known


def note_known(folder: RunFolder, known: Known) -> None:
    """Keep what was found in the journal of the new sweep."""
    told = [{"values": each.values, "merit": list(each.merit)} for each in known.told]
    folder.note(EVENT, told=told, sentences=known.sentences)


def read_told(folder: RunFolder, sweep: SweepConfig) -> list[Told]:
    """The judged settings that a sweep began with, as far as they lie in its space."""
    told = []
    for line in folder.journal():
        for each in line.get("told", []) if line["event"] == EVENT else []:
            if is_setting_of(sweep.space, each["values"]):
                all_finished, some_finished, score, *others = each["merit"]
                # JSON has lists alone
                merit = Merit(all_finished, some_finished, score, *map(tuple, others))
                told.append(Told(each["values"], merit))
    return told


@dataclass(frozen=True)
class _Earlier:
    """An earlier sweep, as seen from the new one."""

    folder: RunFolder
    spec: SweepSpec
    points: list[dict[str, Any]]
    """Its settings that lie in the new space, best first."""
    told: list[Told]
    """Those of them that differ from the new file in nothing else."""
    varied_elsewhere: list[str]
    """What it varied, and the new one does not."""

    def why_not_told(self, spec: SweepSpec) -> str:
        """Why its scores do not count; empty where they do."""
        if spec.sweep.search != "tpe":
            return f"search {spec.sweep.search} does not learn"
        if spec.sweep.criterion != self.spec.sweep.criterion:
            there = self.spec.sweep.criterion
            return f"it was judged by {there.metric} {there.mode}"
        if spec.sweep.against != self.spec.sweep.against:
            against = ", ".join(self.spec.sweep.against) or "nothing"
            return f"it weighed that against {against}"
        before = self.folder.stored().tags.get("data_fingerprint")
        now = look_at_data(spec).get("data_fingerprint")
        # without files there is nothing to compare but their names
        free = DATA_SETTINGS if now is not None else ()
        if now not in (None, before):
            return "its annotation files are others"
        varied = (*names_in(spec.sweep.space), *names_in(self.spec.sweep.space))
        for name, here, there in differing_settings(spec, self.folder, SWEEP_MAY_CHANGE):
            if name not in ("name", "train.seed", *varied) and not name.startswith(
                ("sweep.", *free)
            ):
                return f"{name} is {as_yaml(there)} there and {as_yaml(here)} here"
        if not self.told:
            return f"{', '.join(self.varied_elsewhere)} varies there"
        return ""


def _read_earlier(spec: SweepSpec, name: str, place: str) -> _Earlier:
    try:
        folder = find_run(spec.storage.absolute(), name.removeprefix("best:"))
        if folder.stored().kind != "sweep":
            raise ConfigError(f"{folder.path.name} is no sweep; `boxseg runs ls` lists them")
        earlier = SweepSpec.model_validate(read_resolved(folder.config_path))
    except (ConfigError, ValidationError) as error:
        text = " ".join(str(error).split()).removeprefix(f"{name}: ")
        raise ConfigError(f"{place}: {text:.300}") from error
    table = read_table(folder.path, earlier)
    points, told = list[dict[str, Any]](), list[Told]()
    misfits = []
    here = names_in(spec.sweep.space)
    elsewhere = [other for other in names_in(earlier.sweep.space) if other not in here]
    settings = table.settings()
    for rows in settings:
        sweep = earlier.sweep
        merit = merit_of(rows, sweep.criterion, seeds=len(sweep.seeds), others=sweep.others)
        if merit.score == -math.inf:
            continue
        values = _values_of(rows[0], spec)
        if reason := misfit(spec.sweep.space, values):
            misfits.append(f"{rows[0].label}: {reason}")
        else:
            point = drawn_setting(spec.sweep.space, values)
            points.append(point)
            if merit.has_all and _is_elsewhere_alike(rows[0], spec, elsewhere):
                told.append(Told(point, merit))
    if not points:
        reason = f"none of its settings is in sweep.space ({misfits[0]})" if misfits else ""
        reason = reason or "none of its trials has a value yet"
        raise ConfigError(f"{place}: {reason}; widen the space, or leave the sweep out")
    return _Earlier(folder, earlier, points, told, elsewhere)


def _values_of(row: TrialStatus, spec: SweepSpec) -> dict[str, Any]:
    """What a trial of another sweep had for the settings that are varied now."""
    names = names_in(spec.sweep.space)
    values = {name: row.values[name] for name in names if name in row.values}
    if len(values) < len(names):
        # with presets and all
        resolved = read_resolved(RunFolder(row.folder).config_path)
        for name in names:
            values.setdefault(name, functools.reduce(_get, name.split("."), resolved))
    return applying(spec.sweep.space, values)


def _get(group: Any, name: str) -> Any:
    return group.get(name) if isinstance(group, dict) else None


def _is_elsewhere_alike(row: TrialStatus, spec: SweepSpec, names: Sequence[str]) -> bool:
    """Whether a trial has the new file's own values of what is not varied any more."""
    own = own_values(spec, names)
    return all(is_same(row.values.get(name, own[name]), own[name]) for name in names)
