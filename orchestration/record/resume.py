"""Which runs and sweeps may go on, and with which settings; what is refused is left unchanged."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ValidationError

from boxseg.engine.checkpoint import newest_step
from boxseg.errors import CheckpointError, ConfigError, DataError
from orchestration.config.resolved import (
    COPY_BACK,
    dump_resolved,
    params_of,
    parse_resolved,
    read_resolved,
)
from orchestration.config.space import is_setting_of, misfit, names_in
from orchestration.config.spec import RunSpec, SweepConfig, SweepSpec
from orchestration.record.find_runs import find_run, list_in, resolve_start_from
from orchestration.record.journal import drive_sweep, find_trials, is_concluded, newest_sweep
from orchestration.record.origin import check_same_data, look_at_data
from orchestration.record.run_folder import RunFolder
from orchestration.record.trial import ENDED
from orchestration.store.data import fetch_annotations
from orchestration.store.mirror import refresh
from orchestration.store.places import address_of, shown

RUN_MAY_CHANGE = (
    "model.start_from",
    "train.steps",
    "train.eval_every",
    "train.save_every",
    "train.report_every",
    "train.panels",
    "train.accumulate",
    "data.loader_workers",
)
"""Settings that may differ in a resumed run, besides those of `resources`, `storage` and `tracking`."""
SAME_RESULT = ("train.save_every", "train.report_every", "train.panels", "data.loader_workers")
"""Settings that do not affect weights and metrics of a run, besides those of the same three groups."""
SWEEP_MAY_CHANGE = (
    "sweep.trials",
    "sweep.seeds",
    "sweep.space",
    "sweep.points",
    "sweep.own_first",
    "sweep.time_budget_h",
    "sweep.patience",
    "sweep.concurrency",
    "train.panels",
    "data.loader_workers",
)
"""Settings that may differ in a resumed sweep; `extend_sweep` checks their new values."""

OTHER_SWEEP = "start another sweep with --new"
"""What to do with settings or data that a sweep cannot take."""

Start = Literal["resume", "retry_failed", "more", "new"]
"""What to do if there is a sweep of the same name.

`resume`: go on with it if it was interrupted, or if the file asks for more trials. `retry_failed`: go on, whether it
has ended or not, and retry trials whose cause of failure may be gone. `more`: go on, whether it has ended or not, and
try more settings. `new`: start another one, even if that one is interrupted or running.
"""


def check_resumable(spec: RunSpec, folder: RunFolder, name: str, tags: dict[str, str]) -> None:
    """Refuse to go on with a run that cannot.

    Args:
        spec: The settings to go on with.
        folder: The run's.
        name: What the user calls it.
        tags: Have the fingerprint of the data as it is now.

    Raises:
        CheckpointError: it has lost its checkpoints.
        ConfigError: it is a sweep or trial, is running, or its settings do not fit.
        DataError: its annotation files or images have changed.
    """
    status = folder.status()
    if status.kind != "run":
        raise ConfigError(f"{name} is a sweep; go on with it by `boxseg sweep --resume`")
    # A trial that was copied out of its sweep may go on as a run of its own.
    if status.parent is not None and (folder.path / status.parent / "status.json").exists():
        raise ConfigError(f"{name} is a trial; go on with its sweep by `boxseg sweep --resume`")
    # in a store only the driver gets here, even if a lost machine left the status `running`
    if status.status == "running" and address_of(folder.path) is None:
        raise ConfigError(f"{name} is running in process {status.pid}; stop that one first")
    checkpoints = folder.path / "checkpoints"
    # Otherwise training would silently begin at step 0, although the history has later steps.
    if status.best_step is not None and newest_step(checkpoints) == 0:
        raise CheckpointError(
            f"{checkpoints}: no checkpoint is here, but the run had one of step "
            f"{status.best_step}; put it back, or start a new run"
        )
    check_same_settings(spec, folder, RUN_MAY_CHANGE)
    saved = newest_step(checkpoints)
    # refused before anything changes in the run, which may have ended well
    if saved > spec.train.steps:
        raise ConfigError(
            f"{name} has a checkpoint of step {saved}, beyond train.steps {spec.train.steps}; raise that"
        )
    check_same_data(folder, spec, tags, otherwise="start a new run without --resume")


def find_newest_run(spec: RunSpec) -> RunFolder | None:
    """The newest run of this name; None where there is none, or it has finished with other settings or data."""
    refresh(spec.storage, spec.name)
    below = list_in(spec.storage.absolute() / spec.name)
    runs = [status for status in below if status.kind == "run"]
    newest = max(runs, key=lambda run: run.order, default=None)
    if newest is None:
        return None
    folder = RunFolder(newest.folder)
    return folder if newest.status != "finished" or _is_of(folder, spec, SAME_RESULT) else None


def find_done_sweep(spec: SweepSpec) -> RunFolder | None:
    """The newest sweep of this name, if it ended well with all that the file asks for, on the same data.

    Raises:
        ConfigError: there may be a newer sweep, whose status cannot be read.
    """
    folder = newest_sweep(spec.storage.absolute(), spec.name)
    if folder is None or folder.stored().status != "finished" or not is_concluded(folder):
        return None
    has_failed = any(trial.status == "failed" for trial in list_in(folder.path))
    if has_failed or not _is_of(folder, spec, SWEEP_MAY_CHANGE):
        return None
    with contextlib.suppress(ConfigError):  # another space or other seeds
        planned, asked = _planned(folder), extend_sweep(spec, folder).sweep
        names = ("trials", "seeds", "points", "space")
        if all(getattr(planned, name) == getattr(asked, name) for name in names):
            return folder
    return None


def _is_of(folder: RunFolder, spec: RunSpec, may_change: Sequence[str]) -> bool:
    """Whether a run or sweep has the data of a file and its settings, except those that may change."""
    fetch_annotations(spec)  # those in a store may have changed
    with contextlib.suppress(ConfigError, DataError):
        check_same_data(folder, spec, look_at_data(spec), otherwise="")
        return not differing_settings(resolve_start_from(spec), folder, may_change)
    return False


def choose_start(spec: SweepSpec) -> Start | None:
    """How to go on with the newest sweep of this name; None if there is none, or nothing is left to do.

    A sweep that ended well goes on if it has the settings of the file and the file asks for more trials.

    Raises:
        ConfigError: there may be a newer sweep, whose status cannot be read.
    """
    folder = newest_sweep(spec.storage.absolute(), spec.name)
    if folder is None:
        return None
    if not is_concluded(folder):
        return "resume"
    has_failed = any(trial.status == "failed" for trial in list_in(folder.path))
    if has_failed:
        return "retry_failed"
    with contextlib.suppress(ConfigError):  # another space or other seeds: another sweep
        if not differing_settings(spec, folder, SWEEP_MAY_CHANGE) and _would_extend(spec, folder):
            return "resume"
    return None


def find_sweep(
    spec: SweepSpec, start: Start | None = None, name: str | None = None
) -> RunFolder | None:
    """The sweep to go on with; None for a new one.

    Args:
        spec: Settings of the file.
        start: What to do.
        name: Id, folder or name of the sweep to go on with; None: the newest one of the file's name.

    Raises:
        ConfigError: there is no such sweep; it is running; it was interrupted and `start` is None; or it cannot be
            resumed.
    """
    if start == "new":
        return None
    folder = newest_sweep(spec.storage.absolute(), spec.name)
    if name is not None:
        folder = _named_sweep(spec, name)
    if start is None:
        _refuse_unfinished(folder)
        return None
    if folder is None:
        what = "no interrupted sweep" if start == "resume" else "there is no sweep"
        raise ConfigError(
            f"{what} {spec.name} under {shown(spec.storage)}; start one without --resume, --retry-failed and --more"
        )
    # a sweep whose driver failed is not concluded, and can go on too
    if start == "resume" and is_concluded(folder) and not _would_extend(spec, folder):
        raise ConfigError(
            f"no interrupted sweep {spec.name} under {shown(spec.storage)}: {folder.path.name} has ended; try more "
            "settings in it with --more N, or more sweep.trials, sweep.seeds or values of sweep.space in the "
            "file (sweep.points alone are tried among sweep.trials: raise those), or start another one without "
            "--resume"
        )
    with drive_sweep(folder):  # raises if another process drives it; released on return
        check_same_settings(spec, folder, SWEEP_MAY_CHANGE)
        extend_sweep(spec, folder)
    return folder


def _refuse_unfinished(folder: RunFolder | None) -> None:
    """Refuse to start beside a sweep that is running or was interrupted."""
    if folder is None or folder.stored().status in ENDED:
        return
    with drive_sweep(folder):  # raises if another process drives it
        raise ConfigError(
            f"sweep {folder.path.name} was interrupted; go on with it by --resume, or start "
            "another one beside it with --new"
        )


def _named_sweep(spec: SweepSpec, name: str) -> RunFolder:
    folder = find_run(spec.storage.absolute(), name)
    status = folder.stored()
    if status.kind != "sweep":
        raise ConfigError(
            f"{name} is not a sweep, but {'a trial of one' if status.parent else 'a single run'}; `boxseg runs ls` "
            "shows which are sweeps"
        )
    return folder


def _would_extend(spec: SweepSpec, folder: RunFolder) -> bool:
    """Whether the file asks for more trials than the sweep was planned with."""
    planned = _planned(folder).num_trials
    return extend_sweep(spec, folder).sweep.num_trials > planned


def extend_sweep(spec: SweepSpec, folder: RunFolder, more: int = 0) -> SweepSpec:
    """The settings to go on with: trials, seeds and points of both file and sweep, and `more` trials.

    Args:
        spec: Settings of the file.
        folder: Folder of the sweep.
        more: Number of further settings to try.

    Raises:
        ConfigError: all settings of the space are planned already, or the file leaves out what the sweep has run.
    """
    planned = _planned(folder)
    _check_space(spec, folder, planned)
    points = [point for point in planned.points if is_setting_of(spec.sweep.space, point)]
    points += [point for point in spec.sweep.points if point not in points]
    joined = {
        "seeds": _join_seeds(spec.sweep.seeds, planned.seeds, folder),
        "points": points,
        "trials": max(spec.sweep.trials, planned.trials),
    }
    going_on = spec.sweep.model_copy(update=joined)
    extended = going_on.model_copy(update={"trials": going_on.trials + more})
    if more and extended.num_trials == going_on.num_trials:
        raise ConfigError(
            f"--more {more}: sweep {folder.path.name} has all {going_on.num_trials} trials of its space; widen "
            "sweep.space in the file"
        )
    return spec.model_copy(update={"sweep": extended})


def _planned(folder: RunFolder) -> SweepConfig:
    """The sweep's settings as they were last planned."""
    try:
        return SweepConfig.model_validate(read_resolved(folder.config_path)["sweep"])
    except (ValidationError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{folder.config_path}: is damaged: {reason:.200}; {COPY_BACK}"
        ) from error


def _join_seeds(of_file: list[int], planned: list[int], folder: RunFolder) -> list[int]:
    """The larger of two lists, one of which contains the other; the sweep's own seeds come first."""
    if not set(of_file) <= set(planned) and not set(planned) <= set(of_file):
        raise ConfigError(
            f"sweep.seeds {of_file} leaves out some of {planned}, which {folder.path.name} runs each setting with; "
            f"name those as well, or {OTHER_SWEEP}"
        )
    return [*planned, *(seed for seed in of_file if seed not in planned)]


def _check_space(spec: SweepSpec, folder: RunFolder, planned: SweepConfig) -> None:
    """Refuse a space that lacks what the sweep has drawn: its trials would be left out."""
    now, before = spec.sweep.space, planned.space
    if now == before:
        return
    names_now, names_before = names_in(now), names_in(before)
    for name in [*names_now, *names_before]:
        if (name in names_now) != (name in names_before):
            change = "has the new name" if name in names_now else "lacks the name"
            raise ConfigError(
                f"sweep.space {change} {name}, and the trials of {folder.path.name} differ in "
                f"{', '.join(names_before)}; vary the same settings, or {OTHER_SWEEP}"
            )
    for number, trial in find_trials(folder, planned).items():
        if reason := misfit(now, trial.values):
            raise ConfigError(
                f"trial {number} of {folder.path.name} is outside of sweep.space: {reason}; widen that, or "
                f"{OTHER_SWEEP}"
            )


def check_same_settings(spec: RunSpec, folder: RunFolder, may_change: Sequence[str]) -> None:
    """Refuse to go on with other settings than those that a run or sweep began with.

    Raises:
        ConfigError: names the settings, both values and the way out.
    """
    differing = [
        f"{name} {value} (the {folder.stored().kind} has {before})"
        for name, value, before in differing_settings(spec, folder, may_change)
    ]
    if differing:
        raise ConfigError(
            f"{folder.path.name} cannot go on with other settings: {', '.join(differing[:5])}; "
            "use the file and --set that it began with (all of them are in "
            f"{folder.config_path}), or start a new one"
        )


def differing_settings(
    spec: RunSpec, folder: RunFolder, may_change: Sequence[str]
) -> list[tuple[str, Any, Any]]:
    """(name, value now, value of the run or sweep) of each setting that differs and must not change.

    Raises:
        ConfigError: the settings of the run or sweep cannot be read, or lack the end.
    """
    # To text and back, as on the disk: otherwise a tuple would differ from the list that it was read as.
    now = params_of(parse_resolved(dump_resolved(spec)))
    before = params_of(read_resolved(folder.config_path))
    missing = [name for name in now if name not in before]
    # half of a YAML file is often YAML too
    is_cut = missing == [*now][-len(missing) :]
    differing = []
    for name, value in now.items():
        is_free = name in may_change or name.startswith(("resources.", "storage", "tracking."))
        there = before.get(name, "nothing")
        if not is_free and there != value:
            if is_cut and name in missing:
                raise ConfigError(
                    f"{folder.config_path}: is damaged: it ends before {name}; {COPY_BACK}"
                )
            differing.append((name, value, there))
    return differing
