"""The folder of a run or sweep: settings, status and metrics as files; the truth that all other views copy."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from boxseg.errors import BoxSegError, ConfigError

Status = Literal["created", "running", "finished", "stopped", "failed", "interrupted"]
Kind = Literal["run", "sweep"]

FINAL: frozenset[Status] = frozenset({"finished", "stopped", "failed", "interrupted"})
"""A run in one of these has no process any more; `stopped` means by the trial scheduler."""

_ID_LETTERS = "23456789abcdefghjkmnpqrstuvwxyz"


@dataclass(frozen=True)
class Failure:
    """Why a run failed."""

    kind: str
    """Class name of the error."""
    text: str


@dataclass(frozen=True)
class RunStatus:
    """Everything of `status.json`. Times are seconds since 1970."""

    id: str
    name: str
    kind: Kind = "run"
    status: Status = "created"
    folder: str = ""
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    step: int = 0
    """Optimizer updates done, as far as reported; of a sweep, trials ended."""
    steps: int = 0
    """Updates of the whole run; of a sweep, trials planned (0 if not known)."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Latest value of every metric."""
    best: dict[str, float] = field(default_factory=dict)
    """Metrics of the best evaluation."""
    best_step: int | None = None
    failure: Failure | None = None
    description: str = ""
    """One line for people: the settings that a trial varies."""
    values: dict[str, Any] = field(default_factory=dict)
    """Settings that a trial varies, by name."""
    best_run: str | None = None
    """Of a sweep: folder of its best trial."""
    parent: str | None = None
    """Of a trial: folder of its sweep."""
    tags: dict[str, str] = field(default_factory=dict)
    """Git commit, host, data fingerprint, profile, seed and the like."""
    pid: int | None = None
    """Process that drives the run, on the host of the tag `host`."""
    pid_created: float | None = None
    """When that process began, because numbers are used again."""
    mlflow_run_id: str | None = None

    @property
    def is_final(self) -> bool:
        """True once nothing works on the run."""
        return self.status in FINAL

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


class RunFolder:
    """Reads and writes one folder; cheap to make, keeps nothing in memory.

    `status.json` is written beside and renamed. `metrics.jsonl` only grows: one object per line with `step`, `time` and
    `metrics`. A line with a lower step than the line before it comes from a run that went on from a checkpoint: it
    replaces what was reported beyond that step.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunFolder({self.path})"

    @property
    def config_path(self) -> Path:
        """The resolved settings."""
        return self.path / "config.yaml"

    @property
    def status_path(self) -> Path:
        """The state of the run, JSON."""
        return self.path / "status.json"

    @property
    def metrics_path(self) -> Path:
        """All reports, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def tracking_path(self) -> Path:
        """How far the tracking store has followed."""
        return self.path / "tracking.json"

    @property
    def best_checkpoint(self) -> Path:
        """Checkpoint folder of the best evaluation; of a sweep, of its best trial."""
        here = self.path / "best"
        return here if here.exists() else self.path / "checkpoints" / "best"

    @property
    def logs(self) -> Path:
        """What Ray and MLflow had to say."""
        return self.path / "logs"

    def create(self, status: RunStatus, config: str) -> RunFolder:
        """Make the folder with its settings and first status; gives itself."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomic(self.config_path, config)
        self._write(replace(status, folder=str(self.path), created=status.created or time.time()))
        return self

    def status(self) -> RunStatus:
        """The state as last written, and `interrupted` where the driving process has vanished.

        Raises:
            ConfigError: the folder is not one of a run.
        """
        status = self.stored()
        if not status.is_final and _is_dead(status):
            return replace(status, status="interrupted", ended=status.ended or self.status_path.stat().st_mtime)
        return status

    def stored(self) -> RunStatus:
        """The state as last written.

        Raises:
            ConfigError: the folder is not one of a run.
        """
        try:
            values = json.loads(self.status_path.read_text())
        except FileNotFoundError as error:
            raise ConfigError(
                f"{self.path}: no run here (status.json is missing); `boxseg runs ls` lists runs"
            ) from error
        except ValueError as error:
            raise ConfigError(f"{self.status_path} is damaged: {error}") from error
        known = {each.name for each in fields(RunStatus)}
        values = {key: value for key, value in values.items() if key in known}
        failure = values.get("failure")
        values["failure"] = Failure(**failure) if failure else None
        values["folder"] = str(self.path)
        values["mlflow_run_id"] = values.get("mlflow_run_id") or self.read_tracking().get("run_id")
        return RunStatus(**values)

    def update(self, **changes: Any) -> RunStatus:
        """Change some fields of the status; gives the new one."""
        return self._change(lambda status: replace(status, **changes))

    def start(self) -> RunStatus:
        """Mark as running and driven by this process, also again after an end."""
        changes: dict[str, Any] = {"status": "running", "ended": None, "failure": None, **own_process()}
        return self._change(lambda status: replace(status, started=status.started or time.time(), **changes))

    def finish(self, status: Status, failure: BaseException | Failure | None = None) -> RunStatus:
        """Mark as ended; an end already written stays, but for a failure that names its cause better."""
        if isinstance(failure, BaseException):
            failure = Failure(type(failure).__name__, str(failure) or type(failure).__name__)

        def change(now: RunStatus) -> RunStatus:
            is_named = now.failure is not None and _is_known(now.failure)
            is_better = status == now.status == "failed" and failure is not None and _is_known(failure)
            if now.is_final and (is_named or not is_better):
                return now
            return replace(now, status=status, ended=time.time(), failure=failure)

        return self._change(change)

    def report(self, step: int, metrics: dict[str, float], *, is_best: bool = False) -> None:
        """Add metrics to the history and to the status, unless the run has ended: then it was stopped from outside."""
        finite = {key: float(value) for key, value in metrics.items() if math.isfinite(value)}

        def change(now: RunStatus) -> RunStatus:
            if now.is_final:
                return now
            self.append_metrics(step, metrics)
            now = replace(now, step=step, metrics={**now.metrics, **finite})
            return replace(now, best=finite, best_step=step) if is_best else now

        self._change(change)

    def has_own_failure(self) -> bool:
        """True if the run failed with an error that boxseg raised on purpose; trying again would repeat it."""
        status = self.stored()
        return status.status == "failed" and status.failure is not None and _is_known(status.failure)

    def append_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Add one report; values that are not finite are written as null and read as absent."""
        clean = {key: float(value) if math.isfinite(value) else None for key, value in metrics.items()}
        line = json.dumps({"step": step, "time": round(time.time(), 3), "metrics": clean}) + "\n"
        with self.metrics_path.open("ab") as file:
            if file.tell() and not _ends_with_newline(self.metrics_path):
                line = "\n" + line  # a kill tore the last line; it stays alone and is skipped
            file.write(line.encode())

    def reports(self) -> list[Report]:
        """All reports that count, by step; those that a later resume replaced are left out."""
        kept: list[Report] = []
        for report in parse_reports(self.metrics_path.read_bytes() if self.metrics_path.exists() else b""):
            if kept and report.step < kept[-1].step:
                kept = [each for each in kept if each.step < report.step]
            kept.append(report)
        return kept

    def history(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) of one metric, steps rising."""
        values = {each.step: each.metrics[metric] for each in self.reports() if metric in each.metrics}
        return sorted(values.items())

    def read_tracking(self) -> dict[str, Any]:
        """What `write_tracking` kept; empty where there is nothing."""
        try:
            found: dict[str, Any] = json.loads(self.tracking_path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return found

    def write_tracking(self, state: dict[str, Any]) -> None:
        """Remember how far the tracking store has followed."""
        write_atomic(self.tracking_path, json.dumps(state))

    def request_stop(self) -> None:
        """Ask whoever trains in this folder to save a checkpoint and end."""
        (self.path / "stop").touch()

    def clear_stop(self) -> None:
        """Take a request to stop back."""
        (self.path / "stop").unlink(missing_ok=True)

    def stop_requested(self) -> bool:
        """True once somebody asked for a stop."""
        return (self.path / "stop").exists()

    def _change(self, change: Callable[[RunStatus], RunStatus]) -> RunStatus:
        """Read, change and write the status while no other process does."""
        with (self.path / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = self.stored()
            after = change(before)
            if after is not before:
                self._write(after)
        return after

    def _write(self, status: RunStatus) -> None:
        write_atomic(self.status_path, json.dumps(status.to_json(), indent=1))


@dataclass(frozen=True)
class Report:
    """One line of `metrics.jsonl`."""

    step: int
    time: float
    """Seconds since 1970."""
    metrics: dict[str, float]


def parse_reports(data: bytes) -> Iterator[Report]:
    """The reports in some whole lines; torn or foreign lines are skipped."""
    for line in data.split(b"\n"):
        try:
            found = json.loads(line)
            metrics = {key: value for key, value in found["metrics"].items() if value is not None}
            yield Report(found["step"], found["time"], metrics)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue


def new_id() -> str:
    """A short id that sorts by time, as in 20261122-171500-k3f9."""
    letters = "".join(secrets.choice(_ID_LETTERS) for _ in range(4))
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{letters}"


def list_runs(storage: Path) -> list[RunStatus]:
    """States of all runs, trials and sweeps under a storage folder, newest first."""
    found = [*storage.glob("*/*/status.json"), *storage.glob("*/*/*/status.json")]
    statuses = []
    for path in found:
        with contextlib.suppress(ConfigError):
            statuses.append(RunFolder(path.parent).status())
    statuses = [status for status in statuses if Path(status.folder).name == status.id]  # copies are elsewhere
    return sorted(statuses, key=lambda status: (status.created, status.id), reverse=True)


def find_run(storage: Path, name: str) -> RunFolder:
    """The folder of a run.

    Args:
        storage: Where runs are kept.
        name: A run's folder, its id or the unique start or end of it, or `best:` and a sweep.

    Raises:
        ConfigError: nothing or more than one fits, or the sweep has no best trial.
    """
    if name.startswith("best:"):
        sweep = find_run(storage, name.removeprefix("best:"))
        best = sweep.status().best_run
        if best is None:
            raise ConfigError(f"{name}: the sweep has no best trial yet; `boxseg runs show` tells its state")
        return RunFolder(sweep.path / best)
    if (Path(name) / "status.json").exists():
        return RunFolder(Path(name).resolve())
    runs = list_runs(storage)
    fits = [run for run in runs if run.id == name] or [run for run in runs if run.id.startswith(name)]
    fits = fits or [run for run in runs if run.id.endswith(name)]
    if len(fits) == 1:
        return RunFolder(Path(fits[0].folder))
    if not fits:
        raise ConfigError(f"{name}: no such run under {storage}; `boxseg runs ls` lists them")
    raise ConfigError(f"{name}: {len(fits)} runs fit ({', '.join(run.id for run in fits[:4])} …); write more of the id")


def own_process() -> dict[str, Any]:
    """The status fields `pid` and `pid_created` of this process."""
    return {"pid": os.getpid(), "pid_created": psutil.Process().create_time()}


def write_atomic(path: Path, text: str) -> None:
    """Write beside and rename, so that readers see the old file or the new one, never a part."""
    scratch = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(3)}")
    scratch.write_text(text)
    scratch.replace(path)


def error_of(failure: Failure) -> BoxSegError:
    """The error again, of its own class where that is one of ours."""
    return _known_errors().get(failure.kind, BoxSegError)(
        failure.text if _is_known(failure) else f"{failure.kind}: {failure.text}"
    )


def _is_known(failure: Failure) -> bool:
    return failure.kind in _known_errors()


def _known_errors() -> dict[str, type[BoxSegError]]:
    """All children of BoxSegError by class name."""
    import orchestration.errors  # noqa: F401  defines some of the children

    found: dict[str, type[BoxSegError]] = {}
    waiting: list[type[BoxSegError]] = [BoxSegError]
    while waiting:
        kind = waiting.pop()
        found[kind.__name__] = kind
        waiting.extend(kind.__subclasses__())
    return found


def _is_dead(status: RunStatus) -> bool:
    """True if the driving process ran on this host and is gone (or a zombie, or another process with its number)."""
    if status.pid is None or status.tags.get("host") != socket.gethostname():
        return False
    try:
        process = psutil.Process(status.pid)
        reused = status.pid_created is not None and abs(process.create_time() - status.pid_created) > 1
        return reused or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
