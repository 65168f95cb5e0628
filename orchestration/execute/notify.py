"""Sends a line to a program or web address when a run or sweep has ended; whatever goes wrong with that is logged."""

from __future__ import annotations

import json
import logging
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from boxseg.config.criterion import MASK_AP
from boxseg.errors import BoxSegError, StorageError
from orchestration.config.notify import NotifyConfig
from orchestration.config.spec import RunSpec, SweepSpec
from orchestration.record.failures import Failure
from orchestration.record.find_runs import list_in, sound_status
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.secret_text import hide
from orchestration.words import show_duration

MAX_LETTERS = 600
"""Limit of the line, as chats cut off longer ones."""
WAIT_S = 10.0
"""How long the program, and each answer of the address, may take [s]."""

logger = logging.getLogger("boxseg.notify")


def notify_end(folder: RunFolder, spec: RunSpec, error: BaseException | None = None) -> None:
    """Send a line about the end of a run or sweep to the receivers that `notify` in its settings names.

    Args:
        folder: Folder of the run or sweep; its end is already written there, unless the storage failed.
        spec: All settings.
        error: The error that ended it, if any; needed if the folder could not be written.
    """
    ways: dict[str, Callable[[NotifyConfig, str], None]] = {"command": _run_command, "url": _post}
    for setting, tell in ways.items():
        if getattr(spec.notify, setting) is None:
            continue
        try:
            tell(spec.notify, make_line(folder, spec, error))
        except Exception as fault:
            # only the kind of errors that are not ours (of urllib's, that of their cause): texts can quote the address
            kind = type(getattr(fault, "reason", fault)).__name__
            text = str(fault) if isinstance(fault, BoxSegError) else kind
            logger.warning("notify.%s: the end was not announced: %s", setting, text)


def make_line(folder: RunFolder, spec: RunSpec, error: BaseException | None) -> str:
    """The line, such as `sweep qam ID finished: best val/mask_ap 0.43 with k_top=10; 7 finished of 8 trials; 2.1 h`."""
    kind = "sweep" if isinstance(spec, SweepSpec) else "run"
    status = sound_status(folder.path)
    if status is None or not status.is_final:
        # the storage is gone, and with it everything else that could be said
        reason = Failure.of(error).summary if error is not None else "its end could not be written"
        end = f"failed: {reason}"
    else:
        ended: str = status.status
        if isinstance(error, StorageError) and status.failure is None:
            ended += f", but {Failure.of(error).summary}"
        end = f"{ended}: {'; '.join(_results(status, spec))}"
    line = hide(f"{kind} {spec.name} {folder.path.name} {end}")
    return " ".join(line.split())[:MAX_LETTERS]


def _results(status: RunStatus, spec: RunSpec) -> list[str]:
    parts = [status.failure.summary] if status.failure is not None else []
    is_sweep = isinstance(spec, SweepSpec)
    trials = list_in(Path(status.folder)) if is_sweep else []
    criterion = spec.sweep.criterion if isinstance(spec, SweepSpec) else MASK_AP
    value = criterion.value(status.best)
    if value is not None:
        metric = criterion.metric if criterion.metric in status.best else criterion.fallback
        best = [f" with {trial.description}" for trial in trials if trial.id == status.best_run]
        parts.append(f"best {metric} {value:.4f}{''.join(best)}")
    if is_sweep:
        counts = Counter(trial.status for trial in trials).most_common()
        ends = ", ".join(f"{count} {state}" for state, count in counts)
        parts.append(f"{ends or 'none'} of {status.steps} trials")
    else:
        parts.append(f"step {status.step} of {status.steps}")
    if status.started and status.ended:
        parts.append(show_duration(status.took_s))
    return parts


def _run_command(notify: NotifyConfig, line: str) -> None:
    """Run the program in a session of its own, so that a signal to this one does not end it.

    Raises:
        BoxSegError: the program ended with an error.
        Exception: there is no such program, or it took too long.
    """
    assert notify.command is not None
    # no pipe: `run` would wait for it as long as anything that the program has started holds it
    nowhere = subprocess.DEVNULL
    ended = subprocess.run(
        [*notify.command, line],
        stdin=nowhere,
        stdout=nowhere,
        stderr=nowhere,
        start_new_session=True,
        timeout=WAIT_S,
    )
    if ended.returncode:
        raise BoxSegError(f"the program ended with {ended.returncode}")


def _post(notify: NotifyConfig, line: str) -> None:
    """Send the line to the web address.

    Raises:
        BoxSegError: an environment variable is missing, or the server answered with an error.
        Exception: no answer came in time.
    """
    # Slack, Mattermost and Teams read `text`, Discord `content`
    content = json.dumps({"text": line, "content": line}).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "boxseg"}
    request = urllib.request.Request(str(notify.address()), content, headers)
    try:
        urllib.request.urlopen(request, timeout=WAIT_S).close()
    except urllib.error.HTTPError as error:
        raise BoxSegError(f"the address answered {error.code}") from error
