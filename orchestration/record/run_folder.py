"""The folder of a run or sweep: settings, status and metrics as files, which all other views are copied from."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
from annotated_types import Ge, Predicate
from pydantic import BeforeValidator

from boxseg.engine.checkpoint import BEST, find_best, folder_of, step_of
from boxseg.errors import ConfigError
from boxseg.files.writing import make_folder, naming_storage_faults, write_atomic
from orchestration.record.failures import Failure
from orchestration.record.files import append_line, file_lock, to_json
from orchestration.record.records import (
    RULES,
    Count,
    DamagedError,
    Name,
    Pid,
    Seconds,
    read_lines,
    read_record,
    read_sound,
)
from orchestration.store.places import address_of

START_FIELD = 19
"""Index of the start time among the words after the process's name in `/proc/PID/stat` [clock ticks since boot]."""
Status = Literal["created", "running", "finished", "stopped", "failed", "interrupted"]
Kind = Literal["run", "sweep"]

FINAL: frozenset[Status] = frozenset({"finished", "stopped", "failed", "interrupted"})
"""A run with one of these has no process any more; `stopped`: by the trial scheduler."""


@dataclass(frozen=True)
class RunStatus:
    """Everything of `status.json`. Times are seconds since 1970."""

    __pydantic_config__ = RULES

    id: Name
    name: Name
    kind: Kind = "run"
    status: Status = "created"
    folder: str = ""
    created: Seconds = 0.0
    sequence: Count = 0
    """Number among the runs and sweeps of its name, which does not depend on the clock; 0 for trials."""
    started: Seconds | None = None
    ended: Seconds | None = None
    paused_s: Annotated[float, Ge(0)] = 0.0
    """Time between its ends, or last signs of life, and its next starts [s]."""
    step: Count = 0
    """Optimizer updates done, as far as reported; for a sweep, trials that have ended."""
    steps: Count = 0
    """Updates of the whole run; for a sweep, trials that are planned."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Latest value of every metric."""
    best: dict[str, float] = field(default_factory=dict)
    """Metrics of the best evaluation."""
    best_step: Count | None = None
    failure: Failure | None = None
    """Why it failed; while it runs, why it was started again."""
    retries: list[str] = field(default_factory=list)
    """Why the run was started again automatically, one line each."""
    accumulate: Annotated[int, Ge(1)] | None = None
    """Parts of each worker's batch since memory was too short; None: `train.accumulate`."""
    workers: list[Count] = field(default_factory=list)
    """Number of training processes, one entry after each change; empty until training begins."""
    start: str = ""
    """What it took over from the weights of `model.start_from`; empty if there are none."""
    description: str = ""
    """One line for people: the settings that a trial varies."""
    values: dict[str, Any] = field(default_factory=dict)
    """Settings that a trial varies, by name."""
    best_run: Name | None = None
    """For a sweep: folder of its best trial."""
    front: list[Name] = field(default_factory=list)
    """For a sweep of several metrics that has ended: folders of the trials whose settings no other setting beats."""
    parent: Name | None = None
    """For a trial: folder of its sweep."""
    tags: dict[str, str] = field(default_factory=dict)
    """Git commit, host, data fingerprint, profile, seed and the like."""
    pid: Pid | None = None
    """Process that drives the run, on the host of the tag `host`."""
    pid_created: Seconds | None = None
    """When that process began, because process ids are used again; see `began_at`."""
    mlflow_run_id: str | None = None

    @property
    def order(self) -> tuple[int, float, str]:
        """Sorting key: among the runs and sweeps of one name, the newest has the largest."""
        return self.sequence, self.created, self.id

    @property
    def is_final(self) -> bool:
        """True once nothing works on the run."""
        return self.status in FINAL

    @property
    def took_s(self) -> float:
        """How long it has worked, its start included, until its end or now [s]."""
        until = time.time() if self.ended is None else self.ended
        # the clock may have been set back meanwhile
        return max(0.0, until - self.created - self.paused_s)

    @property
    def best_or_latest(self) -> dict[str, float]:
        """Metrics of the best evaluation, or else the latest ones."""
        return self.best or self.metrics


def _without_nulls(metrics: Any) -> Any:
    if not isinstance(metrics, dict):
        return metrics
    return {name: value for name, value in metrics.items() if value is not None}


@dataclass(frozen=True)
class Report:
    """One line of `metrics.jsonl`."""

    __pydantic_config__ = RULES

    step: Count
    time: Seconds
    metrics: Annotated[dict[str, float], BeforeValidator(_without_nulls)]
    """Only finite ones; the file has null for others."""

    @property
    def is_evaluation(self) -> bool:
        """Whether it has metrics of an evaluation."""
        return any(name.startswith("val/") for name in self.metrics)


_Event = Annotated[dict[str, Any], Predicate(lambda line: isinstance(line.get("event"), str))]
"""One line of `journal.jsonl`."""


@dataclass(frozen=True)
class _Tracking:
    """Content of `tracking.json`: how much of the run has been copied to MLflow."""

    __pydantic_config__ = RULES

    uri: str | None = None
    run_id: str | None = None
    described: bool | None = None
    offset: Count | None = None
    """Bytes of `metrics.jsonl` whose reports were copied."""
    files: dict[str, str] | None = None
    """Artifact -> digest of its content."""
    ended: list[str | float | None] | None = None
    """Status and time of the end that was copied."""
    deleted: bool | None = None
    """Whether somebody deleted the run in MLflow."""


class RunFolder:
    """Reads and writes one folder; cheap to make, keeps nothing in memory.

    `status.json` is always replaced as a whole. `metrics.jsonl` only grows: one object per line with `step`, `time` and
    `metrics`. If a line has a lower step than the one before it, the run went on from a checkpoint, and earlier reports
    beyond that step no longer count. `journal.jsonl` of a sweep has a line for each event: `sweep_start`,
    `trial_drawn`, `trial_start`, `trial_end`, `sweep_end`; a resumed sweep appends to it. `logs` has the logs of Ray
    and MLflow.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.yaml"
        self.status_path = self.path / "status.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.journal_path = self.path / "journal.jsonl"
        self.tracking_path = self.path / "tracking.json"
        self.logs = self.path / "logs"
        self._stop_path = self.path / "stop"

    @property
    def best_checkpoint(self) -> Path:
        """Checkpoint folder of the best evaluation, even if that is lost; for a sweep, that of its best trial."""
        here, checkpoints = self.path / BEST, self.path / "checkpoints"
        if here.exists():
            return here
        best = find_best(checkpoints)
        status = read_sound(self.status_path, RunStatus, way_out="put a copy back")
        reported = (status and status.best_step) or 0
        # a newer one counts though it was not reported yet; an earlier one does not take the place of a lost one
        if reported > (0 if best is None else step_of(best)):
            return folder_of(checkpoints, reported)
        return best or checkpoints / BEST

    def create(self, status: RunStatus, config: str) -> RunFolder:
        """Make the folder with its settings and first status; returns itself."""
        make_folder(self.path)
        write_atomic(self.config_path, config)
        if status.parent is None and not status.sequence:
            status = replace(status, sequence=_next_place(self.path.parent))
        # The status comes last: from then on the folder counts as a run.
        self._write(replace(status, created=status.created or time.time()))
        return self

    def open(self, status: RunStatus, config: str) -> RunFolder:
        """`create`; for a run that goes on, take over settings and tags, and mark as running by this process.

        A copy under another name becomes a run of its own, as its old id and its records in MLflow belong to the
        original.
        """
        if not self.status_path.exists():
            return self.create(status, config)
        write_atomic(self.config_path, config)
        if self.stored().id != self.path.name:
            self.tracking_path.unlink(missing_ok=True)
        self.start(id=self.path.name, steps=status.steps, tags=status.tags)
        return self

    def status(self) -> RunStatus:
        """The state as last written, but `interrupted` if the driving process is gone or drives another folder.

        Raises:
            ConfigError: the folder is not one of a run.
        """
        written = self._read()
        status = self._with_present_places(written)
        if not status.is_final and (_is_dead(status) or self._is_copy_of(written.folder)):
            # Nobody wrote the end; the last change of the file is the last sign of the run.
            return replace(status, status="interrupted", ended=self.status_path.stat().st_mtime)
        return status

    def stored(self) -> RunStatus:
        """The state as last written.

        Raises:
            ConfigError: the folder is not one of a run.
        """
        return self._with_present_places(self._read())

    def _read(self) -> RunStatus:
        way_out = "put a copy back, or remove the run's folder"
        try:
            return read_record(self.status_path, RunStatus, way_out=way_out)
        except FileNotFoundError as error:
            raise ConfigError(
                f"{self.path}: no run here (status.json is missing); `boxseg runs ls` lists runs"
            ) from error

    def _with_present_places(self, written: RunStatus) -> RunStatus:
        """The state with its present folder and MLflow run, as the folder may have been copied since."""
        in_mlflow = self.read_tracking().get("run_id")
        return replace(written, folder=str(self.path), mlflow_run_id=in_mlflow)

    def _is_copy_of(self, folder: str) -> bool:
        """Whether this is another folder than the one that the state was written in."""
        if address_of(self.path) is not None:
            return folder != address_of(self.path)
        try:
            return not Path(folder).samefile(self.path)
        except OSError:
            return True

    def update(self, **changes: Any) -> RunStatus:
        """Change some fields of the status; returns the new one."""
        return self._change(lambda status: replace(status, **changes))

    def start(self, **changes: Any) -> RunStatus:
        """Mark as running and driven by this process, even if the run had ended; withdraws requests to stop.

        Other fields can change with it, as in `update`.
        """
        self._stop_path.unlink(missing_ok=True)
        started: dict[str, Any] = {"status": "running", "ended": None, "failure": None}
        started |= own_process()

        def change(now: RunStatus) -> RunStatus:
            paused_s = now.paused_s + self._idle_s(now)
            return replace(
                now, started=now.started or time.time(), paused_s=paused_s, **changes, **started
            )

        return self._change(change)

    def _idle_s(self, now: RunStatus) -> float:
        """For how long a run that is to start again has been idle [s]."""
        works_here = now.status == "running" and now.pid == os.getpid()
        if now.started is None or works_here:
            return 0.0
        # of a process that was killed, the last change of the file is the last sign
        last = self.status_path.stat().st_mtime if now.ended is None else now.ended
        return max(0.0, time.time() - last)

    def finish(self, status: Status, failure: BaseException | Failure | None = None) -> RunStatus:
        """Mark as ended.

        An end that is already written stays, except that a failure with a known cause replaces one without. If a run
        fails without a known cause after a retry that had one, that cause is kept.
        """
        if isinstance(failure, BaseException):
            failure = Failure.of(failure)

        def change(now: RunStatus) -> RunStatus:
            cause_was_known = now.failure is not None and now.failure.names_cause
            cause_is_known = failure is not None and failure.names_cause
            if now.is_final:
                both_failed = status == now.status == "failed"
                is_better = both_failed and cause_is_known and not cause_was_known
                if not is_better:
                    return now
            kept = failure
            if failure is not None and cause_was_known and not cause_is_known:
                # The reason of the retry says more than that the process is gone.
                kept = now.failure
            return replace(now, status=status, ended=time.time(), failure=kept)

        return self._change(change)

    def note_retry(self, failure: Failure, how: str, *, accumulate: int | None = None) -> None:
        """Record that the run is started again, why and how; `accumulate` is set if the batch is split from now on."""

        def change(now: RunStatus) -> RunStatus:
            line = f"{failure.failure_class} after step {now.step}: {how}"
            parts = now.accumulate if accumulate is None else accumulate
            return replace(now, failure=failure, retries=[*now.retries, line], accumulate=parts)

        self._change(change)

    def report(self, step: int, metrics: dict[str, float], *, is_best: bool = False) -> None:
        """Add metrics to history and status, unless the run has ended, which means that it was stopped from outside."""

        def change(now: RunStatus) -> RunStatus:
            if not now.is_final:
                # Under the lock, so that no line follows an end. If a kill comes before the status is written,
                # `report_again` repairs that.
                self.append_metrics(step, metrics)
            return _with_metrics(now, step, metrics, is_best=is_best)

        self._change(change)

    def report_again(self, step: int, metrics: dict[str, float], *, is_best: bool = False) -> None:
        """`report` an evaluation that may already be in the history, in the status, in both or in neither."""
        reported: set[str] = set()
        for report in self.reports():
            if report.step == step:
                reported |= report.metrics.keys()
        if reported.issuperset(only_finite(metrics)):
            self._change(lambda now: _with_metrics(now, step, metrics, is_best=is_best))
        else:
            self.report(step, metrics, is_best=is_best)

    def keep_best(self, step: int, metrics: dict[str, float]) -> None:
        """Make the evaluation of a step the best one, with everything that was reported of it; step 0: none."""
        if (self.stored().best_step or 0) == step:
            return
        best = only_finite(metrics)
        for report in self.reports():
            # with its costs, which only the report has
            best |= report.metrics if report.step == step and report.is_evaluation else {}
        self.update(best=best, best_step=step or None)

    def append_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Add one report, which is on the disk on return; values that are not finite become null and read as absent."""
        finite = only_finite(metrics)
        written = {name: finite.get(name) for name in metrics}
        append_line(self.metrics_path, {"step": step, "metrics": written})

    def note(self, event: str, **details: Any) -> None:
        """Add one event to the journal."""
        append_line(self.journal_path, {"event": event, **details})

    def journal(self) -> list[dict[str, Any]]:
        """All events of the journal, oldest first."""
        return read_lines(self.journal_path, _Event)[0]

    def reports_since(self, offset: int) -> tuple[list[Report], int]:
        """The reports from a byte of the file on, and the byte after the last whole line.

        Reports that no longer count since the run was resumed are still among them.
        """
        return read_lines(self.metrics_path, Report, offset)

    def reports(self) -> list[Report]:
        """All reports that count, steps rising: without those beyond the checkpoint that a resumed run went on from."""
        kept: list[Report] = []
        for report in self.reports_since(0)[0]:
            while kept and kept[-1].step > report.step:
                kept.pop()
            kept.append(report)
        return kept

    def history(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) of one metric, steps rising; if a step was reported twice, the later value."""
        values = {}
        for report in self.reports():
            if metric in report.metrics:
                values[report.step] = report.metrics[metric]
        return list(values.items())

    def read_tracking(self) -> dict[str, Any]:
        """What `write_tracking` kept; empty if there is nothing."""
        way_out = "MLflow is asked again what it has"
        tracking = read_sound(self.tracking_path, _Tracking, way_out=way_out) or _Tracking()
        return {name: value for name, value in vars(tracking).items() if value is not None}

    def write_tracking(self, state: dict[str, Any]) -> None:
        """Remember how much was copied to MLflow; if a power loss takes that, MLflow is asked again."""
        write_atomic(self.tracking_path, json.dumps(state), durable=False)

    def training(self) -> contextlib.AbstractContextManager[None]:
        """Lock of the process that trains here: after a kill, a new process waits until the old one has ended."""
        return file_lock(self.path / ".training")

    def tracking(self) -> contextlib.AbstractContextManager[None]:
        """Lock for copying this run to MLflow, as two processes would undo each other's changes.

        Raises:
            BlockingIOError: another process has it. It is not waited for, as its MLflow may hang.
        """
        return file_lock(self.path / ".tracking", wait=False)

    def request_stop(self) -> None:
        """Ask the process that trains in this folder to save a checkpoint and end."""
        write_atomic(self._stop_path, "", durable=False)

    def stop_requested(self) -> bool:
        """True once somebody asked for a stop."""
        return self._stop_path.exists()

    def _change(self, change: Callable[[RunStatus], RunStatus]) -> RunStatus:
        """Read, change and write the status while no other process does.

        Raises:
            StorageError: the folder is gone, or cannot be written.
        """
        # Not a lock on `status.json`, which is another file after each write.
        with naming_storage_faults(self.status_path), file_lock(self.path / ".lock"):
            before = self.stored()
            after = change(before)
            if after is not before:
                self._write(after)
        return after

    def replace_status(self, content: bytes) -> None:
        """Take over a status that another machine wrote, unless this one has written the end.

        Raises:
            ConfigError: there is none yet, or it is damaged.
        """
        with naming_storage_faults(self.status_path), file_lock(self.path / ".lock"):
            if not self.stored().is_final:
                write_atomic(self.status_path, content)

    def _write(self, status: RunStatus) -> None:
        # For a run in a store the address, which is the same on every machine.
        written = replace(status, folder=address_of(self.path) or str(self.path))
        write_atomic(self.status_path, to_json(asdict(written), indent=1))


def _next_place(folder: Path) -> int:
    """The `sequence` of the next run or sweep of a name, in the folder of that name."""
    places = [0]
    for path in folder.glob("*/status.json"):
        with contextlib.suppress(DamagedError, FileNotFoundError):
            places.append(read_record(path, RunStatus, way_out="").sequence)
    return max(places) + 1


def only_finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics without those that JSON cannot represent."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def _with_metrics(
    now: RunStatus, step: int, metrics: dict[str, float], *, is_best: bool
) -> RunStatus:
    """The status after a report; unchanged if the run has ended."""
    if now.is_final:
        return now
    finite = only_finite(metrics)
    now = replace(now, step=step, metrics={**now.metrics, **finite})
    return replace(now, best=finite, best_step=step) if is_best else now


ID_LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"
"""Digits and letters that are not mistaken for each other."""


def new_id() -> str:
    """A short id that sorts by time, as in 20261122-171500-3f9ckd; two of the same second agree once in 10^9 times."""
    end = "".join(secrets.choice(ID_LETTERS) for _ in range(6))
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{end}"


def end_of(id: str) -> str:
    """The last part of an id, which for a trial is its number, as in `07`."""
    return id.rpartition("-")[2]


def new_folder(parent: Path) -> RunFolder:
    """Make a folder with a new id, which no other process gets, however many start in the same second.

    Raises:
        StorageError: the disk is full, read-only or gone.
    """
    with naming_storage_faults(parent):
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            folder = RunFolder(parent / new_id())
            with contextlib.suppress(FileExistsError):
                folder.path.mkdir()
                return folder


def own_process() -> dict[str, Any]:
    """The status fields `pid` and `pid_created` of this process."""
    return {"pid": os.getpid(), "pid_created": began_at(psutil.Process())}


def began_at(process: psutil.Process) -> float:
    """When a process began [s since boot], which does not change when the clock is set.

    Where the kernel does not say (not on Linux), the time of day.

    Raises:
        psutil.Error: the process is gone, or may not be looked at.
    """
    try:
        text = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return process.create_time()
    after_name = text.rpartition(")")[2].split()  # the name may hold anything
    return int(after_name[START_FIELD]) / os.sysconf("SC_CLK_TCK")


def _is_dead(status: RunStatus) -> bool:
    """True if the driving process ran on this host and is gone (or a zombie, or another process has its id)."""
    # nothing is known about processes of another machine
    if status.pid is None or status.tags.get("host") != socket.gethostname():
        return False
    try:
        process = psutil.Process(status.pid)
        is_reused = False
        if status.pid_created is not None:
            is_reused = abs(began_at(process) - status.pid_created) > 1
        return is_reused or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:  # it exists, but this account may not look at it
        return False
