"""Runs, trials and sweeps under a storage folder: all of them, or the one that a name means."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from boxseg.engine.checkpoint import ABOUT, BEST, find_best, find_checkpoint, require_sound
from boxseg.errors import ConfigError
from orchestration.config.source import names_run
from orchestration.config.spec import RunSpec
from orchestration.record.records import DamagedError, warn_once
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.store.mirror import bring, fetch_network, pull_tree, refresh
from orchestration.store.places import address_of, shown

Spec = TypeVar("Spec", bound=RunSpec)


def list_runs(storage: Path, *, warns: bool = True) -> list[RunStatus]:
    """States of all runs, trials and sweeps under a storage folder, newest first.

    Args:
        storage: The folder.
        warns: Warn of unsound folders; not wanted by a command that looks for one run only.

    Raises:
        StorageError: the storage is a store that does not answer or refuses the connection.
    """
    refresh(storage)
    return _sorted(_status_paths(storage), warns=warns)


def list_in(folder: Path) -> list[RunStatus]:
    """States of what lies in a folder, newest first: a sweep's trials, or all runs of a name; warns of unsound ones."""
    return _sorted(folder.glob("*/status.json"))


def _status_paths(storage: Path) -> list[Path]:
    # NAME/ID has a run or sweep, NAME/SWEEP/TRIAL a trial.
    return [*storage.glob("*/*/status.json"), *storage.glob("*/*/*/status.json")]


def _sorted(paths: Iterable[Path], *, warns: bool = True) -> list[RunStatus]:
    statuses = []
    for path in paths:
        status = sound_status(path.parent, warns=warns)
        # a copy of a folder under another name still has the id of the original
        if status is not None and Path(status.folder).name == status.id:
            statuses.append(status)
    return sorted(statuses, key=lambda status: (status.created, status.id), reverse=True)


def sound_status(folder: Path, *, warns: bool = True) -> RunStatus | None:
    """The state of a run; None, with a warning the first time if that is wanted, where the folder has no sound one."""
    run = RunFolder(folder)
    try:
        return run.status()
    except DamagedError as error:
        if warns:
            warn_once(run.status_path, str(error))
    except (ConfigError, FileNotFoundError):
        pass  # the folder was removed meanwhile
    return None


def find_run(storage: Path, name: str) -> RunFolder:
    """The folder of a run, with all its records; the files of its checkpoints may be in a store only.

    Args:
        storage: Where runs are kept.
        name: A run's folder, its id, the name of a sweep or run (the newest of this name), or `best:` and a sweep.

    Raises:
        ConfigError: nothing or more than one fits, or the sweep has no best trial.
        StorageError: it is in a store that does not answer or refuses the connection.
    """
    folder = _find_folder(storage, name.removeprefix("best:"))
    pull_tree(folder.path)
    return _best_trial(folder, name) if name.startswith("best:") else folder


def _best_trial(sweep: RunFolder, name: str) -> RunFolder:
    status = sweep.status()
    best = status.best_run
    if status.kind == "run":
        raise ConfigError(f"{name}: names a run and not a sweep; leave out `best:`")
    if best is None:
        raise ConfigError(
            f"{name}: the sweep has no best trial yet; `boxseg runs show` shows its state"
        )
    return RunFolder(sweep.path / best)


def find_trained(storage: Path, name: str) -> Path:
    """The folder of a run's best checkpoint, or of the checkpoint that `name` is the path of; does not load torch.

    Raises:
        ConfigError: there is no such run, or it has no checkpoint yet.
        CheckpointError: the checkpoint of its best evaluation is gone.
        StorageError: it is in a store that does not answer or refuses the connection.
    """
    folder = Path(name) if _holds_run(Path(name)) else find_checkpoint(Path(name))
    if os.path.exists(folder / ABOUT):  # noqa: PTH110 - False for any name at all
        return fetch_network(folder.resolve())
    folder = find_run(storage, name).best_checkpoint
    if not folder.exists():
        if folder.name != BEST:
            require_sound(folder)
        raise ConfigError(
            f"{name}: {folder} has no checkpoint yet; a run writes one at its first evaluation"
        )
    return fetch_network(folder.resolve())


def resolve_start_from(spec: Spec) -> Spec:
    """The settings with `model.start_from` as a path, if it names a run by its id or as `best:SWEEP`.

    Raises:
        ConfigError: there is no such run, or more than one.
        StorageError: it is in a store that does not answer or refuses the connection.
    """
    start = spec.model.start_from
    if start is not None and address_of(start) is not None:
        bring(start)
    if start is None or not (names_run(str(start)) or _holds_run(start)):
        return spec
    try:
        run = find_run(spec.storage, str(start))
    except ConfigError as error:
        raise ConfigError(
            f"model.start_from: {error}; a path has a slash, as in ./{start}"
        ) from error
    best = run.best_checkpoint
    fetch_network(best)
    checkpoints = run.path / "checkpoints"
    # a run's best checkpoint may become another one; a lost one is named itself, so that it is refused
    moves_on = checkpoints.is_dir() and find_best(checkpoints) in (best, None)
    return spec.starting_from(run.path if moves_on else best)


def _holds_run(folder: Path) -> bool:
    return os.path.exists(folder / "status.json")  # noqa: PTH110 - False for any name at all


def _find_folder(storage: Path, name: str) -> RunFolder:
    """The folder of a run, trial or sweep; failing that, an unsound folder of this name, which cannot be read."""
    if _holds_run(Path(name)):
        return RunFolder(Path(name).resolve())
    runs = list_runs(storage, warns=False)
    # A whole id means that run, even if a sweep has the same name.
    fits = [run for run in runs if run.id == name] or _newest_named(runs, name)
    if len(fits) == 1:
        return RunFolder(fits[0].folder)
    if fits:
        folders = ", ".join(run.folder for run in fits[:4])
        raise ConfigError(f"{name}: {len(fits)} runs fit; name one by its folder: {folders}")
    for path in _status_paths(storage):
        if path.parent.name == name:
            # it is not listed, so its status is unsound
            return RunFolder(path.parent)
    raise ConfigError(f"{name}: no such run under {shown(storage)}; `boxseg runs ls` lists them")


def _newest_named(runs: list[RunStatus], name: str) -> list[RunStatus]:
    """The newest sweep of this name, or else the newest run; empty where there is neither."""
    named = [run for run in runs if run.name == name and run.parent is None]
    for kind in ("sweep", "run"):
        of_kind = [run for run in named if run.kind == kind]
        if of_kind:
            return [max(of_kind, key=lambda run: run.order)]
    return []
