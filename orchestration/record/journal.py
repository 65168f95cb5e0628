"""What a sweep has done so far, read from its journal and the folders of its trials, so that it can go on."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from boxseg.engine.checkpoint import find_best, folder_of, newest_step, remove_old
from boxseg.errors import ConfigError
from boxseg.files.writing import make_folder
from orchestration.config.spec import SweepConfig
from orchestration.record.failures import FailureClass
from orchestration.record.files import file_lock
from orchestration.record.find_runs import list_in, sound_status
from orchestration.record.records import warn_once
from orchestration.record.run_folder import RunFolder, RunStatus, own_process
from orchestration.record.trial import ENDED, Trial, TrialStatus, trial_folder
from orchestration.store.mirror import pull_tree, refresh
from orchestration.store.syncer import Syncer, drive_in_store

GO_ON = {FailureClass.DISK_FULL, FailureClass.CHECKPOINT_LOST}
"""A resumed sweep runs trials with these failures again even without `--retry-failed`."""
DAMAGED = "damaged-status.json"
"""New name of a trial's status that cannot be read, so that a sweep can go on with the trial."""


def newest_sweep(storage: Path, name: str) -> RunFolder | None:
    """The folder of the sweep of this name that began last.

    Raises:
        ConfigError: there may be a newer sweep, whose status cannot be read.
        StorageError: the storage is a store that does not answer or refuses the connection.
    """
    refresh(storage, name)
    sweeps: list[RunStatus] = []
    unsound: list[RunFolder] = []
    for path in (storage / name).glob("*/status.json"):
        status = sound_status(path.parent)
        if status is not None and status.kind == "sweep" and status.id == path.parent.name:
            sweeps.append(status)
        elif status is None and RunFolder(path.parent).journal_path.exists():
            unsound.append(RunFolder(path.parent))
    newest = max(sweeps, key=lambda status: status.order, default=None)
    for folder in unsound:
        # ids sort by time, so this one may be newer; reading it raises what is wrong with it
        if newest is None or folder.path.name > newest.id:
            folder.stored()
    if newest is None:
        return None
    pull_tree(Path(newest.folder))
    return RunFolder(newest.folder)


def is_concluded(folder: RunFolder) -> bool:
    """Whether a sweep ran all its trials since it was last started, with or without failures."""
    last_mark: dict[str, Any] = {"event": None}
    for line in folder.journal():
        if line["event"] in ("sweep_start", "sweep_end"):
            last_mark = line
    has_ended = last_mark["event"] == "sweep_end" and not last_mark.get("stopped_by")
    return folder.stored().status in ENDED and has_ended


@contextlib.contextmanager
def drive_sweep(folder: RunFolder) -> Iterator[Syncer | None]:
    """Be the only process that drives a sweep; yields what sends its files if it is in a store.

    Raises:
        ConfigError: another process does.
        StorageError: the store does not answer or refuses the connection.
    """
    with contextlib.ExitStack() as stack:
        make_folder(folder.path)
        try:
            # No waiting: the other process keeps the lock until its sweep ends.
            stack.enter_context(file_lock(folder.path / ".driver", wait=False))
        except BlockingIOError as error:
            status = folder.stored()
            raise ConfigError(
                f"sweep {status.id} is running in process {status.pid} on "
                f"{status.tags.get('host', 'this machine')}; wait for its end or stop it, or "
                "start another one beside it with --new"
            ) from error
        yield stack.enter_context(drive_in_store(folder.path))


def read_past(
    folder: RunFolder, sweep: SweepConfig, *, retry_failed: bool = False
) -> list[TrialStatus]:
    """All trials that a sweep drew, by number; marks those that have not ended as waiting for this process.

    Trials that failed because the storage was full, or because their best checkpoint is lost, count as not ended: they
    go on from their last checkpoint. Checkpoints that ended trials no longer need are removed.

    A trial is known by its line in the journal or by its folder; one of the two is enough. Ray's own files are not
    read.

    Args:
        folder: The sweep's folder, driven by this process.
        sweep: Its settings; trials that it cannot have drawn are left out with a warning.
        retry_failed: Go on with trials too whose cause of failure may be gone.
    """
    for path in folder.path.glob("*/status.json"):
        if sound_status(path.parent) is None:
            # Out of the way, so that the trial can get a new status; its checkpoints stay.
            with contextlib.suppress(FileNotFoundError):
                path.rename(path.with_name(DAMAGED))
    past = []
    for status in find_trials(folder, sweep).values():
        run = RunFolder(status.folder)
        if run.status_path.exists() and not _stays_ended(status, retry_failed=retry_failed):
            # With the id of this process, as a run whose process is gone would count as interrupted.
            status = run.update(status="created", ended=None, failure=None, **own_process())
        elif (newest := newest_step(checkpoints := run.path / "checkpoints")) > 0:
            # a killed driver may have left old checkpoints in its store
            remove_old(checkpoints, folder_of(checkpoints, newest), find_best(checkpoints))
        past.append(TrialStatus.of(status, sweep.criterion))
    return past


def find_trials(folder: RunFolder, sweep: SweepConfig) -> dict[int, RunStatus]:
    """States of the trials that a sweep drew, by rising number; changes nothing.

    Trials that it cannot have drawn are left out with a warning.
    """
    trials: dict[int, RunStatus] = {}
    for line in folder.journal():
        if line["event"] == "trial_drawn":
            trial = _trial(line.get("number"), line.get("values"), line.get("seed"))
            if trial is not None and trial.is_drawn_by(sweep):
                trials[trial.number] = _not_begun(folder, trial)
    for status in list_in(folder.path):
        trial = _trial_of(status)
        if trial is not None and trial.is_drawn_by(sweep):
            # A folder knows more than the line of the journal, and replaces it.
            trials[trial.number] = status
        else:
            path = RunFolder(status.folder).status_path
            warn_once(path, f"{path}: left out, this sweep cannot have drawn such a trial")
    return dict(sorted(trials.items()))


def count_ended(folder: RunFolder, sweep: SweepConfig, *, retry_failed: bool = False) -> int:
    """How many trials of a sweep would not run again if it went on."""
    trials = find_trials(folder, sweep).values()
    return sum(_stays_ended(status, retry_failed=retry_failed) for status in trials)


def _not_begun(sweep: RunFolder, trial: Trial) -> RunStatus:
    """A trial that has no folder yet."""
    folder = trial_folder(sweep.path, trial.number).path
    tags = {"trial": str(trial.number), "seed": str(trial.seed)}
    name = sweep.path.parent.name
    return RunStatus(folder.name, name, folder=str(folder), values=trial.values, tags=tags)


def _stays_ended(status: RunStatus, *, retry_failed: bool) -> bool:
    if status.status == "failed" and status.failure is not None:
        may_have_gone = retry_failed and status.failure.rule.policy != "stop"
        return not (may_have_gone or status.failure.failure_class in GO_ON)
    return status.status in ENDED


def _trial_of(status: RunStatus) -> Trial | None:
    number, seed = _number(status.tags.get("trial")), _number(status.tags.get("seed"))
    return _trial(number, status.values, seed)


def _number(text: str | None) -> int | None:
    # with more digits it would not fit the numbers of others that read it
    if text is not None and re.fullmatch(r"\d{1,18}", text):
        return int(text)
    return None


def _trial(number: Any, values: Any, seed: Any) -> Trial | None:
    """The trial of a line of the journal or of a status; None if one of its parts is missing or unsound."""
    if isinstance(number, int) and isinstance(values, dict) and isinstance(seed, int):
        return Trial(number, values, seed)
    return None
