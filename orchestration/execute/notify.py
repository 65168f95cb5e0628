"""Tells a program or a web address, in one line, how a run or sweep has ended; whatever goes wrong there is logged."""

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
"""Of the line; chats cut off longer ones."""
WAIT_S = 10.0
"""How long the program, and each answer of the address, is waited for [s]."""

logger = logging.getLogger("boxseg.notify")


def tell_end(folder: RunFolder, spec: RunSpec, error: BaseException | None = None) -> None:
    """Tell whom `notify` names how a run or sweep has ended.

    Args:
        folder: The run's or sweep's, whose end is written unless its storage does not take it.
        spec: All settings.
        error: What ended it, where something did; says what its folder cannot.
    """
    ways: dict[str, Callable[[NotifyConfig, str], None]] = {"command": _run_command, "url": _post}
    for setting, tell in ways.items():
        if getattr(spec.notify, setting) is None:
            continue
        try:
            tell(spec.notify, make_line(folder, spec, error))
        except Exception as fault:
            # of other errors only the kind, and of urllib's that of their cause: texts can quote the address
            kind = type(getattr(fault, "reason", fault)).__name__
            text = str(fault) if isinstance(fault, BoxSegError) else kind
            logger.warning("notify.%s: nobody was told of the end: %s", setting, text)


def make_line(folder: RunFolder, spec: RunSpec, error: BaseException | None) -> str:
    """As in `sweep qam ID finished: best val/mask_ap 0.43 with k_top=10; 7 finished of 8 trials; 2.1 h`."""
    kind = "sweep" if isinstance(spec, SweepSpec) else "run"
    status = sound_status(folder.path)
    if status is None or not status.is_final:
        # its storage has gone, and with it all that could be told besides
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
        parts.append(show_duration(status.ended - status.started))
    return parts


def _run_command(notify: NotifyConfig, line: str) -> None:
    """Run the program in a session of its own, so that a signal to this one does not end it.

    Raises:
        BoxSegError: it ended with a fault.
        Exception: it is not there, or took too long.
    """
    assert notify.command is not None
    # not through a pipe, which would be waited for while anything that the program has started holds it
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
        BoxSegError: a variable is missing, or the answer was none of thanks.
        Exception: nobody answered in time.
    """
    # Slack, Mattermost and Teams read `text`, Discord `content`
    content = json.dumps({"text": line, "content": line}).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "boxseg"}
    request = urllib.request.Request(str(notify.address()), content, headers)
    try:
        urllib.request.urlopen(request, timeout=WAIT_S).close()
    except urllib.error.HTTPError as error:
        raise BoxSegError(f"the address answered {error.code}") from error
