"""One run from settings to result: folder, data, tracking, the chosen runner, and a clean end whatever happens."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from boxseg.config.method import CocoSource
from boxseg.data.toy import ensure_toy
from boxseg.engine.checkpoint import find_best, newest_step
from boxseg.errors import CheckpointError, ConfigError
from boxseg.files.writing import naming_storage_faults
from orchestration.config.resolved import (
    COPY_BACK,
    dump_resolved,
    params_of,
    parse_resolved,
    read_resolved,
)
from orchestration.config.spec import RunSpec
from orchestration.errors import ResourceError
from orchestration.execute.session import start_ray
from orchestration.execute.worker import Payload, TrainFn, train_here, train_worker
from orchestration.planning.preflight import runner_of
from orchestration.record.failures import Failure, error_of
from orchestration.record.find_runs import find_run, find_start
from orchestration.record.origin import check_repeatable, provenance, write_changes
from orchestration.record.progress import RunProgress
from orchestration.record.run_folder import RunFolder, RunStatus, new_folder, new_id, own_process
from orchestration.tracking.mirror import Tracker

POLL_S = 0.25
"""Time between two looks at a run [s]."""
GRACE_S = 60.0
"""How long a run may take to save its state after a request to stop [s]."""
RESIZE_S = 60.0
"""Time between two looks whether an elastic run can have more workers [s]."""
WORKER_FAILURES = 3
"""How often lost workers are replaced; the run goes on from its last checkpoint."""


def train_run(
    spec: RunSpec,
    *,
    resume: str | None = None,
    repeat: RunFolder | None = None,
    train_fn: TrainFn | None = None,
    progress: bool = True,
) -> RunStatus:
    """Train once, in this process or with Ray Train's workers (`resources.runner`), and wait for the end.

    Args:
        spec: All settings.
        resume: Id or folder of a run to go on with; null starts a new one.
        repeat: A run whose settings these are; its data has to be the same.
        train_fn: The training loop; null: that of boxseg.
        progress: Show progress on stderr.

    Returns:
        Where the run stands. SIGINT and SIGTERM end it early with its state saved and status `interrupted`.

    Raises:
        BoxSegError: what ended the run; the child of BoxSegError that the worker raised.
        KeyboardInterrupt: a second signal came before the state was saved.
    """
    storage = spec.storage.absolute()
    folder, spec = _open_folder(spec, resume, repeat)
    tracker = Tracker(storage, spec.name, uri=spec.tracking.uri, logs=folder.logs)
    payload = Payload(spec, folder.path, storage / ".data", train_fn=train_fn)
    with (
        tracked(tracker, folder),
        StopSignals() as signals,
        RunProgress(folder, shown=progress) as display,
    ):
        if runner_of(spec) == "inline":
            _watch(
                functools.partial(train_here, payload, device=payload.device),
                folder,
                signals,
                display,
            )
        else:
            with start_ray(spec, logs=folder.logs, give_up=signals.has_received):
                _watch(functools.partial(fit, payload), folder, signals, display)
    status = folder.status()
    if status.failure is not None:
        raise error_of(status.failure)
    return status


def _open_folder(
    spec: RunSpec,
    resume: str | None,
    repeat: RunFolder | None,
) -> tuple[RunFolder, RunSpec]:
    """A new run's folder, or that of the run to go on with, and its settings; its data is there."""
    tags = prepare_data(spec) | provenance(spec)
    if repeat is not None:
        check_repeatable(repeat, tags)
        tags["repeats"] = repeat.path.name
    storage = spec.storage.absolute()
    folder = new_folder(storage / spec.name) if resume is None else find_run(storage, resume)
    if resume is None:
        spec = find_start(spec)
    else:
        _check_resumable(spec, folder, resume)
        # what it started from stays on record
        start = read_resolved(folder.config_path)["model"].get("start_from")
        spec = spec.starting_from(None if start is None else Path(start))
    status = RunStatus(
        folder.path.name,
        spec.name,
        steps=spec.train.steps,
        tags=tags,
        **own_process(),
    )
    folder.open(status, dump_resolved(spec))
    write_changes(folder)
    return folder, spec


def _check_resumable(spec: RunSpec, folder: RunFolder, name: str) -> None:
    status = folder.status()
    if status.kind != "run":
        raise ConfigError(f"{name} is a sweep; go on with it by `boxseg sweep --resume`")
    if status.parent is not None and (folder.path / status.parent / "status.json").exists():
        raise ConfigError(f"{name} is a trial; go on with its sweep by `boxseg sweep --resume`")
    if status.status == "running":
        raise ConfigError(f"{name} is running in process {status.pid}; stop that one first")
    checkpoints = folder.path / "checkpoints"
    if status.best_step is not None and find_best(checkpoints) is None:
        raise CheckpointError(
            f"{checkpoints}: no checkpoint is here, but the run had one of step "
            f"{status.best_step}; put it back, or start a new run"
        )
    check_same_settings(spec, folder, MAY_CHANGE)
    saved = newest_step(checkpoints)
    # told before anything of the run, which may have ended well, is changed
    if saved > spec.train.steps:
        raise ConfigError(
            f"{name} has a checkpoint of step {saved}, beyond train.steps {spec.train.steps}; raise that"
        )


MAY_CHANGE = (
    "model.start_from",
    "train.steps",
    "train.eval_every",
    "train.save_every",
    "train.report_every",
    "train.panels",
    "train.accumulate",
    "data.loader_workers",
)
"""Settings that a resumed run may have otherwise, besides those of `resources`, `storage` and `tracking`."""


def check_same_settings(spec: RunSpec, folder: RunFolder, may_change: Sequence[str]) -> None:
    """Refuse to go on with other settings than a run or sweep began with; its weights belong to those.

    Raises:
        ConfigError: names the settings, both values and the way out.
    """
    now = params_of(parse_resolved(dump_resolved(spec)))
    try:
        before = params_of(read_resolved(folder.config_path))
    except ValueError as error:
        raise ConfigError(f"{folder.config_path}: is damaged: {error}; {COPY_BACK}") from error
    differing = []
    for name, value in now.items():
        is_free = name in may_change or name.startswith(("resources.", "storage", "tracking."))
        # a setting that the earlier version did not have yet cannot differ
        if not is_free and before.get(name, value) != value:
            differing.append(f"{name} {value} (the {folder.stored().kind} has {before[name]})")
    if differing:
        raise ConfigError(
            f"{folder.path.name} cannot go on with other settings: {', '.join(differing[:5])}; "
            "use the file and --set that it began with (all of them are in "
            f"{folder.config_path}), or start a new one"
        )


def _watch(
    work: Callable[[], None],
    folder: RunFolder,
    signals: StopSignals,
    display: RunProgress,
) -> None:
    """Work until it ends, or a stop takes too long.

    Raises:
        StorageError: the run's folder is gone; what still works there is not waited for.
    """
    for _ in run_beside(work):
        check_present(folder)
        display.update()
        if signals.received:
            folder.request_stop()
        if signals.overdue:
            folder.finish("interrupted")
            break
    display.update()


def check_present(folder: RunFolder) -> None:
    """Refuse to go on with a run or sweep whose folder was moved away or unmounted meanwhile.

    Raises:
        StorageError: the folder is gone.
    """
    with naming_storage_faults(folder.path):
        folder.status_path.stat()


def fit(payload: Payload, *, callbacks: Sequence[Any] = ()) -> None:
    """Train with the workers of Ray Train and wait; lost workers are replaced a few times.

    Raises:
        ResourceError: the workers cannot be placed.
        Exception: what Ray Train raises when a worker failed too often; the run's folder names the cause.
    """
    import ray.train
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.train.v2.api.exceptions import ControllerError

    resources = payload.spec.resources
    scale: dict[str, Any] = {"num_workers": resources.workers}
    if resources.min_workers:
        span = (resources.min_workers, resources.workers)
        scale = {"num_workers": span, "elastic_resize_monitor_interval_s": RESIZE_S}
    per_worker = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    # one worker needs no process group, and its drivers no torch
    trainer_type = DataParallelTrainer
    if resources.workers > 1:
        from ray.train.torch import TorchTrainer as trainer_type  # type: ignore[assignment]
    trainer = trainer_type(
        train_worker,
        train_loop_config={"payload": payload},
        scaling_config=ray.train.ScalingConfig(
            **scale,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker={name: amount for name, amount in per_worker.items() if amount},
        ),
        run_config=ray.train.RunConfig(
            # Ray's own state of an earlier start is not read: ours is in the folder
            name=new_id(),
            storage_path=str(RunFolder(payload.folder).logs / "ray"),
            failure_config=ray.train.FailureConfig(
                max_failures=WORKER_FAILURES,
                # starts that found no place; an elastic run tries some in vain while Ray counts on a node that has gone
                # mypy sees the class of Ray Train V1
                controller_failure_limit=10 if resources.min_workers else 2,  # type: ignore[call-arg]
            ),
            callbacks=list(callbacks),
        ),
    )
    try:
        failure = getattr(trainer.fit(), "return_value", None)  # not in every version
    except ControllerError as error:
        raise ResourceError(
            f"Ray could not place {resources.workers} workers of {resources.cpus_per_worker:g} "
            f"CPU cores and {resources.gpus_per_worker:g} GPUs: {error}; lower resources, or wait "
            "until the cluster is free"
        ) from error
    if isinstance(failure, Failure):
        raise error_of(failure)


def run_beside(work: Callable[[], Any]) -> Iterator[None]:
    """Run `work` in a thread, so that the main thread hears signals; yields now and then until it has ended.

    Raises:
        BaseException: what `work` raised.
    """
    raised: list[BaseException] = []

    def target() -> None:
        try:
            work()
        except BaseException as error:  # raised again below
            raised.append(error)

    thread = threading.Thread(target=target, name="training", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        yield
    if raised:
        raise raised[0]


@contextlib.contextmanager
def tracked(tracker: Tracker, folder: RunFolder) -> Iterator[None]:
    """Mark the folder as running, make sure that it has an end when the block is left, and let the tracker follow.

    Raises:
        StorageError: the folder is gone or cannot be written, so its end is not there either.
        BoxSegError: what ended the run or sweep.
    """
    folder.start()
    tracker.add(folder)
    tracker.start()
    try:
        yield
        if not folder.stored().is_final:
            reason = f"training ended without a result; {folder.logs} may tell why"
            folder.finish("failed", Failure("BoxSegError", reason))
    except KeyboardInterrupt:
        folder.finish("interrupted")
        raise
    except Exception as error:
        check_present(folder)
        status = folder.finish("failed", error)
        # otherwise it had ended well, and only Ray's end went wrong
        if status.failure is not None:
            raise error_of(status.failure) from error
    finally:
        if _has_end(folder):
            tracker.close()
        else:  # what could not be written cannot be copied either
            tracker.close(timeout_s=1.0)


def _has_end(folder: RunFolder) -> bool:
    try:
        return folder.stored().is_final
    except ConfigError:
        return False


class StopSignals:
    """Hears SIGINT and SIGTERM while it is entered: the first is noted, a second raises KeyboardInterrupt.

    Outside the main thread, where Python delivers no signals, it hears nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._received_at = 0.0
        self._previous: dict[int, Any] = {}

    def has_received(self) -> bool:
        """True once a signal has come."""
        return self.received is not None

    @property
    def overdue(self) -> bool:
        """True once a signal came so long ago that nobody should wait for a saved state any more."""
        return self.received is not None and time.monotonic() - self._received_at > GRACE_S

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def stop(self, number: int) -> None:
        """Take the signal for received, if none was."""
        if self.received is None:
            self.received = number
            self._received_at = time.monotonic()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.stop(number)


def prepare_data(spec: RunSpec) -> dict[str, str]:
    """Draw the generated data set if it is used and missing; gives the tags `data` and `data_fingerprint`."""
    sources = [spec.data.train, spec.data.val]
    if "toy" in sources:
        drawn = ensure_toy(spec.storage.absolute() / ".data", spec.data.toy)
        for place, toy in enumerate(drawn):
            if sources[place] == "toy":
                sources[place] = toy
    files = [source.annotations for source in sources if isinstance(source, CocoSource)]
    digest = hashlib.sha256()
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return {"data": str(files[0]), "data_fingerprint": digest.hexdigest()[:16]}
