"""One run from settings to result: folder, data, tracking, the chosen runner, and a clean end whatever happens."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import boxseg
from boxseg.config import CocoSource
from boxseg.data.toy import ensure_toy
from boxseg.errors import BoxSegError, ConfigError
from orchestration.config import RunSpec, dump_resolved
from orchestration.errors import ResourceError
from orchestration.progress import RunProgress
from orchestration.ray_session import start_ray
from orchestration.run_folder import (
    Failure,
    RunFolder,
    RunStatus,
    Status,
    error_of,
    find_run,
    new_id,
    own_process,
    write_atomic,
)
from orchestration.tracking import Tracker
from orchestration.worker import Payload, TrainFn, train_here, train_worker

POLL_S = 0.25
GRACE_S = 60.0
"""How long a run may take to save its state after a request to stop [s]."""
WORKER_FAILURES = 2
"""How often lost workers are replaced; the run goes on from its last checkpoint."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    id: str
    folder: Path
    status: Status
    """`finished`, or `interrupted` with its state saved."""
    metrics: dict[str, float]
    """Latest value of every metric."""
    best: dict[str, float] = field(default_factory=dict)
    """Metrics of the best evaluation."""


def run(
    spec: RunSpec, *, resume: str | None = None, train_fn: TrainFn | None = None, progress: bool = True
) -> RunResult:
    """Train once, on Ray or in this process, and wait for the end.

    Args:
        spec: All settings.
        resume: Id or folder of a run to go on with; null starts a new one.
        train_fn: The training loop; null: that of boxseg.
        progress: Show progress on stderr.

    Returns:
        The result. SIGINT and SIGTERM end the run early with its state saved and status `interrupted`.

    Raises:
        BoxSegError: what ended the run; the child of BoxSegError that the worker raised.
        KeyboardInterrupt: a second signal came before the state was saved.
    """
    storage = spec.storage.absolute()
    folder = _open_folder(spec, resume)
    tracker = Tracker(storage, spec.name, uri=spec.tracking.uri, logs=folder.logs)
    payload = Payload(spec, folder.path, storage / ".data", train_fn=train_fn)
    with tracked(tracker, folder), StopSignals() as signals:
        launch = _launch_inline if spec.resources.runner == "inline" else _launch_on_ray
        with RunProgress(folder, spec.train.steps, shown=progress) as display:
            launch(payload, functools.partial(_watch, folder, signals, display.update))
    status = folder.status()
    if status.failure is not None:
        raise error_of(status.failure)
    return RunResult(status.id, folder.path, status.status, status.metrics, status.best)


def _open_folder(spec: RunSpec, resume: str | None) -> RunFolder:
    """A new run's folder, or that of the run to go on with; its data is there."""
    tags = prepare_data(spec) | provenance(spec)
    if resume is None:
        run_id = new_id()
        folder = RunFolder(spec.storage.absolute() / spec.name / run_id)
        status = RunStatus(run_id, spec.name, steps=spec.train.steps, tags=tags, **own_process())
        return folder.create(status, dump_resolved(spec))
    folder = find_run(spec.storage.absolute(), resume)
    status = folder.status()
    if status.kind != "run":
        raise ConfigError(f"{resume} is a sweep; `boxseg sweep --resume` goes on with it")
    if status.status == "running":
        raise ConfigError(f"{resume} is running in process {status.pid}; stop that one first")
    write_atomic(folder.config_path, dump_resolved(spec))
    folder.clear_stop()
    folder.update(steps=spec.train.steps, tags=tags)
    folder.start()
    return folder


def _launch_inline(payload: Payload, watch: Callable[[threading.Thread], None]) -> None:
    """The loop in a thread of this process, so that the main thread can hear signals and show progress."""
    train_beside(functools.partial(train_here, payload, device=_inline_device(payload.spec)), watch)


def _launch_on_ray(payload: Payload, watch: Callable[[threading.Thread], None]) -> None:
    with start_ray(payload.spec, logs=RunFolder(payload.folder).logs):
        train_beside(functools.partial(fit, payload), watch)


def fit(payload: Payload, *, callbacks: Sequence[Any] = ()) -> None:
    """Train with the workers of Ray Train and wait; lost workers are replaced a few times.

    Raises:
        ResourceError: the workers cannot be placed.
        Exception: what Ray Train raises when a worker failed too often; the run's folder names the cause.
    """
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import ControllerError

    resources = payload.spec.resources
    per_worker = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"payload": payload},
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker={name: amount for name, amount in per_worker.items() if amount},
        ),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=str(RunFolder(payload.folder).logs / "ray"),
            failure_config=ray.train.FailureConfig(
                max_failures=WORKER_FAILURES,
                controller_failure_limit=2,  # type: ignore[call-arg]  # mypy sees the class of Ray Train V1
            ),
            callbacks=list(callbacks),
        ),
    )
    try:
        trainer.fit()
    except ControllerError as error:
        raise ResourceError(
            f"Ray could not place {resources.workers} workers of {resources.cpus_per_worker:g} CPU cores and "
            f"{resources.gpus_per_worker:g} GPUs: {error}; lower resources, or wait until the cluster is free"
        ) from error


def _inline_device(spec: RunSpec) -> str:
    if not spec.resources.gpus_per_worker:
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise ResourceError("resources.gpus_per_worker asks for a GPU, but torch sees none; set it to 0")
    return "cuda"


def train_beside(work: Callable[[], Any], watch: Callable[[threading.Thread], None]) -> None:
    """Run `work` in a thread while the calling thread watches; what `work` raises is raised here."""
    raised: list[BaseException] = []

    def target() -> None:
        try:
            work()
        except BaseException as error:  # handed to the caller below
            raised.append(error)

    thread = threading.Thread(target=target, name="training", daemon=True)
    thread.start()
    watch(thread)
    if raised and not thread.is_alive():
        raise raised[0]


def _watch(folder: RunFolder, signals: StopSignals, show: Callable[[], None], thread: threading.Thread) -> None:
    """Show progress until the thread ends, the run fails for a reason of its own, or a stop took too long."""
    asked = None
    while thread.is_alive():
        thread.join(POLL_S)
        show()
        if signals.received and asked is None:
            folder.request_stop()
            asked = time.monotonic()
        if folder.has_own_failure():
            thread.join(2.0)  # Ray would try again; its end is not waited for
            return
        if asked is not None and time.monotonic() - asked > GRACE_S:
            folder.finish("interrupted")
            return
    show()


@contextlib.contextmanager
def ended_with(folder: RunFolder) -> Iterator[None]:
    """Make sure that the folder has an end when the block is left, and mark it as running when it is entered."""
    folder.start()
    try:
        yield
    except KeyboardInterrupt:
        folder.finish("interrupted")
        raise
    except Exception as error:
        status = folder.finish("failed", shorten(error))
        if status.failure is not None:  # otherwise it had ended well, and only Ray's end went wrong
            raise error_of(status.failure) from error
    else:
        folder.finish("failed", Failure("BoxSegError", f"training ended without a result; {folder.logs} may tell why"))


@contextlib.contextmanager
def tracked(tracker: Tracker, folder: RunFolder) -> Iterator[None]:
    """Follow the folder while the block runs, and copy its end afterwards."""
    tracker.add(folder)
    tracker.start()
    try:
        with ended_with(folder):  # the end must be written before the last copy
            yield
    finally:
        tracker.close()


class StopSignals:
    """Hears SIGINT and SIGTERM while it is entered: the first is noted, a second raises KeyboardInterrupt.

    Outside the main thread, where Python delivers no signals, it hears nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number


def shorten(error: BaseException) -> Failure:
    """Class and text of an error; of Ray's long texts the last line, which names the cause."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = lines[-1].strip() if len(lines) > 6 else "\n".join(lines)
    kind = type(error).__name__
    return Failure(kind, text if isinstance(error, BoxSegError) else text[:2000] or kind)


def prepare_data(spec: RunSpec) -> dict[str, str]:
    """Draw the generated data set if it is used and missing; gives the tags `data` and `data_fingerprint`."""
    sources = [spec.data.train, spec.data.val]
    if "toy" in sources:
        drawn = ensure_toy(spec.storage.absolute() / ".data", spec.data.toy)
        sources = [toy if source == "toy" else source for source, toy in zip(sources, drawn, strict=True)]
    digest = hashlib.sha256()
    for source in sources:
        assert isinstance(source, CocoSource)
        with source.annotations.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    assert isinstance(sources[0], CocoSource)
    return {"data": str(sources[0].annotations), "data_fingerprint": digest.hexdigest()[:16]}


def provenance(spec: RunSpec) -> dict[str, str]:
    """Tags that say where a run comes from: code, machine, profile, method and seed."""
    tags = {
        "host": socket.gethostname(),
        "profile": spec.profile,
        "method": spec.method,
        "seed": str(spec.train.seed),
        "cpus": str(os.cpu_count()),
    }
    return tags | _git_state()


@functools.cache
def _git_state() -> dict[str, str]:
    """Commit of the checkout that boxseg runs from, and whether it has changes; nothing outside a checkout."""
    here = Path(boxseg.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if git("ls-files", "--error-unmatch", "__init__.py") != "__init__.py":
            return {}
        return {
            "git_commit": git("rev-parse", "HEAD"),
            "git_dirty": str(bool(git("status", "--porcelain", "--untracked-files=no"))).lower(),
        }
    except (OSError, subprocess.SubprocessError):
        return {}
