"""Tells a program or a web address, in one line, how a run or sweep has ended; whatever goes wrong there is logged."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from boxseg.config.criterion import MASK_AP
from boxseg.errors import BoxSegError
from orchestration.config.notify import NotifyConfig
from orchestration.config.spec import RunSpec, SweepSpec
from orchestration.record.failures import Failure
from orchestration.record.find_runs import list_in
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.secret_text import hide
from orchestration.words import show_duration

MAX_LETTERS = 600
"""Of the line; chats cut off longer ones."""

logger = logging.getLogger("boxseg.notify")


@dataclass(frozen=True)
class Word:
    """What is told."""

    line: str
    status: str
    kind: str
    name: str
    folder: Path


def tell_end(folder: RunFolder, spec: RunSpec, error: BaseException | None = None) -> None:
    """Tell whom `notify` names how a run or sweep has ended.

    Args:
        folder: The run's or sweep's, whose end is written unless its storage does not take it.
        spec: All settings.
        error: What ended it, where something did; says what its folder cannot.
    """
    notify = spec.notify
    if notify.command is None and notify.url is None:
        return
    word = _word(folder, spec, error)
    if notify.command is not None:
        _try("command", lambda: _run_command(notify, word))
    if notify.url is not None:
        _try("url", lambda: _post(notify, word))


def _try(setting: str, tell: Callable[[], None]) -> None:
    try:
        tell()
    except Exception as fault:
        # of libraries' errors only the kind: their texts can quote the address
        text = str(fault) if isinstance(fault, BoxSegError) else type(fault).__name__
        logger.warning(
            "notify.%s: nobody was told of the end: %s", setting, " ".join(text.split())
        )


def _word(folder: RunFolder, spec: RunSpec, error: BaseException | None) -> Word:
    kind = "sweep" if isinstance(spec, SweepSpec) else "run"
    who = f"{kind} {spec.name} {folder.path.name}"
    try:
        status = folder.stored()
    except (BoxSegError, OSError):
        status = None
    if status is None or not status.is_final:
        # its storage has gone, and with it all that could be told besides
        reason = Failure.of(error).summary if error is not None else "its end could not be written"
        line, state = f"{who} failed: {reason}", "failed"
    else:
        line, state = f"{who} {status.status}{_result(status, spec)}", status.status
    line = " ".join(hide(line).split())
    return Word(line[:MAX_LETTERS], state, kind, spec.name, folder.path)


def _result(status: RunStatus, spec: RunSpec) -> str:
    """`: best val/mask_ap 0.4321 with k_top=10; 7 finished, 1 failed; 2.1 h`."""
    parts = [status.failure.summary] if status.failure is not None else []
    criterion = spec.sweep.criterion if isinstance(spec, SweepSpec) else MASK_AP
    value = criterion.value(status.best)
    if value is not None:
        metric = criterion.metric if criterion.metric in status.best else criterion.fallback
        parts.append(f"best {metric} {value:.4f}{_best_settings(status)}")
    if isinstance(spec, SweepSpec):
        counts = Counter(trial.status for trial in list_in(Path(status.folder)))
        trials = [f"{count} {state}" for state, count in counts.most_common()]
        parts.append(f"{', '.join(trials) or 'none'} of {status.steps} trials")
    else:
        parts.append(f"step {status.step} of {status.steps}")
    if status.started and status.ended:
        parts.append(show_duration(status.ended - status.started))
    return f": {'; '.join(parts)}"


def _best_settings(status: RunStatus) -> str:
    """What the best trial of a sweep varies, as in ` with k_top=10`; empty for a run."""
    if status.best_run is None:
        return ""
    with contextlib.suppress(BoxSegError):
        best = RunFolder(Path(status.folder) / status.best_run).stored()
        return f" with {best.description}" if best.description else ""
    return ""


def _run_command(notify: NotifyConfig, word: Word) -> None:
    """Run the program in a session of its own, so that a signal to this one does not end it, and all of it can be.

    Raises:
        BoxSegError: it is not there, took too long, or ended with a fault.
    """
    assert notify.command is not None
    about = {
        "BOXSEG_LINE": word.line,
        "BOXSEG_STATUS": word.status,
        "BOXSEG_KIND": word.kind,
        "BOXSEG_NAME": word.name,
        "BOXSEG_FOLDER": str(word.folder),
    }
    # a file, as a pipe would be waited for while anything that the program has started holds it
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                [*notify.command, word.line],
                env={**os.environ, **about},
                stdin=subprocess.DEVNULL,
                # stdout is for results of ours
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise BoxSegError(f"the program cannot be started ({type(error).__name__})") from error
        try:
            code = process.wait(notify.timeout_s)
        except subprocess.TimeoutExpired as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise BoxSegError(_too_long(notify)) from error
        if code:
            said.seek(0)
            lines = said.read(4096).decode(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
            raise BoxSegError(f"the program ended with {code}: {hide(last)[:200]}")


def _post(notify: NotifyConfig, word: Word) -> None:
    """Send the line to the web address.

    Raises:
        BoxSegError: nobody answered well in time; the text names no more of the address than its host.
    """
    address = notify.address()
    assert address is not None
    # Slack, Mattermost and Teams read `text`, Discord `content`
    about = {"text": word.line, "content": word.line, "status": word.status}
    about |= {"kind": word.kind, "name": word.name, "folder": str(word.folder)}
    faults: list[str] = []

    def send() -> None:
        request = urllib.request.Request(
            address,
            json.dumps(about).encode(),
            {"Content-Type": "application/json", "User-Agent": "boxseg"},
        )
        try:
            with urllib.request.urlopen(request, timeout=notify.timeout_s) as answer:
                answer.read(1)
        except Exception as error:  # told by the caller, who may have stopped waiting
            faults.append(_reason(error, notify))

    # urllib's limit is for each single wait, and none holds for the look-up of a name
    thread = threading.Thread(target=send, name="notify", daemon=True)
    thread.start()
    thread.join(notify.timeout_s)
    if thread.is_alive():
        raise BoxSegError(f"{urlsplit(address).hostname}: {_too_long(notify)}")
    if faults:
        raise BoxSegError(f"{urlsplit(address).hostname}: {faults[0]}")


def _reason(error: Exception, notify: NotifyConfig) -> str:
    """What went wrong with a request; without the error's own text, which can quote the address."""
    if isinstance(error, urllib.error.HTTPError):
        return f"answer {error.code}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return _too_long(notify) if isinstance(cause, TimeoutError) else type(cause).__name__


def _too_long(notify: NotifyConfig) -> str:
    return f"no end within notify.timeout_s {notify.timeout_s:g}"
