"""What a sweep has done so far, by its journal and the folders of its trials; from there it goes on after a stop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from boxseg.errors import ConfigError
from orchestration.failures import FailureClass
from orchestration.files import file_lock
from orchestration.run_folder import RunFolder, RunStatus, Status, own_process
from orchestration.search_space import PastTrial, Trial

ENDED: frozenset[Status] = frozenset({"finished", "stopped", "failed"})
"""A trial in one of these is not run again."""


def newest_sweep(storage: Path, name: str) -> RunFolder | None:
    """The folder of the sweep of this name that began last."""
    found: list[RunStatus] = []
    for path in (storage / name).glob("*/status.json"):
        with contextlib.suppress(ConfigError):
            status = RunFolder(path.parent).stored()
            if status.kind == "sweep":
                found.append(status)
    newest = max(found, key=lambda status: (status.created, status.id), default=None)
    return None if newest is None else RunFolder(newest.folder)


def is_concluded(folder: RunFolder) -> bool:
    """Whether a sweep came to its end since it was last started, with or without failures."""
    marks = [event["event"] for event in folder.journal() if event["event"] in ("sweep_start", "sweep_end")]
    return folder.stored().status in ENDED and marks[-1:] == ["sweep_end"]


@contextlib.contextmanager
def driving(folder: RunFolder) -> Iterator[None]:
    """Be the only process that drives a sweep.

    Raises:
        ConfigError: another process does.
    """
    with contextlib.ExitStack() as stack:
        folder.path.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(file_lock(folder.path / ".driver", wait=False))
        except BlockingIOError as error:
            status = folder.stored()
            raise ConfigError(
                f"sweep {status.id} is running in process {status.pid} on {status.tags.get('host', 'this machine')}; "
                "wait for its end or stop it, or start another one beside it with --new"
            ) from error
        yield


def read_past(folder: RunFolder, metric: str, *, retry_failed: bool = False) -> list[PastTrial]:
    """All trials that a sweep drew, by number; those that have not ended wait for this process to go on with them.

    A trial that its storage did not take has not ended: there is room now, or the sweep stops again.

    Neither Ray's files nor the whole journal are needed: a trial that lost its line there is known by its folder, and
    one without a sound folder by its line.

    Args:
        folder: The sweep's folder, driven by this process.
        metric: The deciding metric.
        retry_failed: Trials that failed for a reason that may have gone are to go on too.
    """
    trials: dict[int, Trial] = {}
    for event in folder.journal():
        if event["event"] == "trial_drawn":
            trials[event["number"]] = Trial(event["number"], event["values"], event["seed"])
    known: dict[int, PastTrial] = {}
    for path in folder.path.glob("*/status.json"):
        run = RunFolder(path.parent)
        try:
            status = run.stored()
        except ConfigError:
            path.rename(path.with_name("damaged-status.json"))
            continue
        ended = status.status in ENDED
        if status.status == "failed" and status.failure is not None:
            may_have_gone = retry_failed and status.failure.rule.policy != "stop"
            ended = not (may_have_gone or status.failure.failure_class is FailureClass.DISK_FULL)
        if not ended:
            run.update(status="created", ended=None, failure=None, **own_process())
        number = int(status.tags["trial"])
        trial = trials.setdefault(number, Trial(number, status.values, int(status.tags["seed"])))
        known[number] = PastTrial(trial, ended, run.history(metric))
    return [known.get(number, PastTrial(trials[number], False, [])) for number in sorted(trials)]
