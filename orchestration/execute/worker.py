"""What a training process does, whoever started it: the loop, with a reporter that writes files and tells Ray."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

from boxseg.config.criterion import MASK_AP, Criterion
from boxseg.config.method import BoxSegConfig, CocoSource
from boxseg.engine.events import EvalReport, StartReport, StepReport
from boxseg.errors import ConfigError, StorageError
from boxseg.files.writing import write_atomic
from orchestration.config.spec import COSTS, RunSpec, SweepConfig
from orchestration.connect.shares import Share
from orchestration.errors import PreemptedError
from orchestration.execute.peak_memory import PeakMemory
from orchestration.record.failures import Failure
from orchestration.record.origin import write_environment
from orchestration.record.pulse import Pulse
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.secret_text import hide
from orchestration.store.courier import Courier, Outpost, bring_patiently
from orchestration.store.data import fetch_data
from orchestration.store.mirror import fetch_newest
from orchestration.store.places import mirrors, moved
from orchestration.store.syncer import say

if TYPE_CHECKING:
    from torch import Tensor

    from boxseg.engine.train import Progress

TrainFn = Callable[..., "Progress"]
"""A loop with the arguments of `boxseg.build.run_training`."""

Send = Callable[[dict[str, float]], None]
"""Passes metrics, with the step under `step`, to Ray."""

STOP_POLL_S = 0.5
"""Time between two looks for a request to stop [s]."""

logger = logging.getLogger("boxseg.worker")


@dataclass(frozen=True)
class Work:
    """What travels to other processes; paths are absolute because these run elsewhere."""

    spec: RunSpec
    folder: Path
    data_root: Path
    runner: Literal["inline", "ray_train"] = "inline"
    train_fn: TrainFn | None = None
    """The loop; null: `boxseg.build.run_training`."""
    outpost: Outpost | None = None
    """How to reach the driver from a machine that does not see its folder; null: all see it."""
    home: Path = field(default_factory=mirrors, kw_only=True)
    """The folder for mirrors of the machine that it comes from."""

    def here(self) -> Self:
        """The same with the paths that this machine has for those of the driver's mirrors."""
        home = mirrors()
        if home == self.home:
            return self
        return replace(
            self,
            spec=_moved_spec(self.spec, self.home),
            folder=moved(self.folder, self.home),
            data_root=moved(self.data_root, self.home),
            outpost=None if self.outpost is None else replace(self.outpost, home=home),
            home=home,
        )


@dataclass(frozen=True)
class Payload(Work):
    """What a training process gets."""

    sweep: SweepConfig | None = None
    """The sweep that a trial belongs to, which says what metric decides; null: a single run."""
    share: Share | None = None
    """Tells with how many workers an elastic trial may train; null: their number is fixed, or Ray's own choice."""

    @property
    def criterion(self) -> Criterion:
        """What decides which evaluation is the best."""
        return MASK_AP if self.sweep is None else self.sweep.criterion

    @property
    def device(self) -> str:
        """Torch device of a run without Ray Train."""
        return "cuda" if self.spec.resources.gpus_per_worker else "cpu"


def _moved_spec(spec: RunSpec, home: Path) -> RunSpec:
    """Settings whose paths in the mirrors of another machine are those of this one; see `moved`."""
    start = spec.model.start_from
    if start is not None and Path(start).is_relative_to(home):
        spec = spec.starting_from(moved(Path(start), home))
    sources = {}
    for name, source in (("train", spec.data.train), ("val", spec.data.val)):
        if isinstance(source, CocoSource):
            paths = {
                "images": moved(source.images, home),
                "annotations": moved(source.annotations, home),
            }
            sources[name] = source.model_copy(update=paths)
    data = spec.data.model_copy(update=sources)
    storage = moved(spec.storage.absolute(), home)
    return spec.model_copy(update={"data": data, "storage": storage})


def train_worker(arguments: dict[str, Any]) -> Failure | None:
    """Body of a Ray Train worker; `arguments["payload"]` is a Payload.

    Returns:
        Why a worker that trains alone failed, where starting it again would not help; Ray starts again what raises.
    """
    import ray.train
    import ray.train.torch

    payload: Payload = arguments["payload"].here()
    context = ray.train.get_context()
    device = str(ray.train.torch.get_device())
    workers = context.get_world_size()
    notice = getattr(ray.train, "get_preemption_info", lambda: None)  # not in every version
    try:
        train_here(
            payload,
            rank=context.get_world_rank(),
            workers=workers,
            device=device,
            send=ray.train.report,
            taken_away=lambda: notice() is not None,
        )
    except Exception as error:
        failure = Failure.of(error)
        if workers == 1 and failure.rule.policy != "retry":
            return failure
        # other ranks would wait for this one, so Ray has to end them, and starts all of them again
        raise
    return None


def train_here(
    payload: Payload,
    *,
    device: str,
    rank: int = 0,
    workers: int = 1,
    send: Send | None = None,
    taken_away: Callable[[], bool] = lambda: False,
) -> None:
    """Train in this process and leave the end in the run's folder; short of memory, go on with a split batch.

    Args:
        payload: What to train, and where.
        device: Torch device.
        rank: This process among those that train together, whose torch process group is up; rank 0 writes metrics.
        workers: How many there are. Several cannot try again by themselves: the error tells Ray to start them.
        send: Gets the metrics of every evaluation, on every rank; those of the last one once the run has finished. A
            run that had finished before sends only these.
        taken_away: Tells whether one of the machines will go soon; waits for all ranks, which ask equally often.

    Raises:
        PreemptedError: the state is saved because a machine will go; the run is to go on elsewhere.
        StorageError: the run's folder cannot be written, so nothing there tells how the run ended.
        Exception: what the loop raised.
    """
    folder = RunFolder(payload.folder)
    alone = workers == 1
    with folder_received(payload.outpost, payload.folder, rank=rank, alone=alone) as courier:
        start = payload.spec.model.start_from
        if courier is not None and start is not None:
            bring_patiently(Path(start))
        while True:
            try:
                reporter = FileReporter(folder, payload, rank, workers, send, taken_away, courier)
                _train_once(reporter, device)
                return
            except PreemptedError:
                raise
            except Exception as error:
                is_split = _write_failure(payload, folder, error)
                if not (is_split and alone):
                    raise
                logger.warning(
                    "%s: %s; going on from the last checkpoint", folder.path.name, error
                )
            _free_memory()


@contextlib.contextmanager
def folder_received(
    outpost: Outpost | None, folder: Path, *, rank: int = 0, alone: bool = True
) -> Iterator[Courier | None]:
    """Have a run's folder on this machine; gives what carries its changes away, where the driver does not see it.

    Raises:
        StorageError: the run's store does not answer or refuses us.
    """
    if outpost is None or outpost.is_home(folder):
        yield None
        return
    courier = Courier(outpost.desk, folder, leads=rank == 0)
    with contextlib.ExitStack() as stack:
        if rank == 0:
            stack.enter_context(courier)
        if not alone:
            from boxseg.engine.distributed import gather_objects

            # others of the same machine have the folder then
            leader = gather_objects(courier.mark if rank == 0 else None)[0]
            if rank != 0 and not courier.is_received(leader):
                stack.enter_context(courier)
        yield courier


def _write_failure(payload: Payload, folder: RunFolder, error: Exception) -> bool:
    """Leave a failure in the run's folder: as its end, or as the reason for going on with a split batch.

    Returns:
        Whether the batch was split.

    Raises:
        StorageError: the folder cannot be written.
    """
    with contextlib.suppress(OSError, StorageError):
        text = hide("".join(traceback.format_exception(error)))
        write_atomic(folder.path / "traceback.txt", text, durable=False)
    try:
        if split_batch(payload.spec, folder, Failure.of(error)):
            return True
        folder.finish("failed", error)
    except StorageError as fault:
        raise fault from error
    return False


def _train_once(reporter: FileReporter, device: str) -> None:
    payload, folder = reporter.payload, reporter.folder
    status = folder.stored()
    if _is_to_stay(status, alone=reporter.workers == 1):
        return
    if status.status == "finished":  # its process was lost before Ray heard of the end
        reporter.finish(status.step, status.metrics)
        return
    if reporter.rank == 0:
        before = status.workers
        now = before if before[-1:] == [reporter.workers] else [*before, reporter.workers]
        started = status.started or time.time()
        folder.update(status="running", started=started, failure=None, workers=now)
        write_environment(folder, device=device)
    try:
        with folder.training() if reporter.rank == 0 else contextlib.nullcontext():
            result = _train(payload, reporter, device, accumulate=status.accumulate)
    except SystemExit:  # how Tune ends a trial that its scheduler stopped
        folder.finish("stopped")
        raise
    except KeyboardInterrupt:
        folder.finish("interrupted")
        raise
    if result.step >= payload.spec.train.steps:
        reporter.finish(result.step, result.metrics)
    elif folder.stop_requested():
        folder.finish("interrupted")
    else:
        _give_way(reporter, result.step)


def _is_to_stay(status: RunStatus, *, alone: bool) -> bool:
    """Whether a run that Ray starts once more, as after any error, has an end that it keeps."""
    if status.status in ("stopped", "interrupted"):
        return True
    failure = status.failure
    if status.status != "failed" or failure is None or failure.rule.policy != "stop":
        return False
    # among several workers, an error that boxseg did not raise may only follow from another worker's
    return alone or failure.is_ours


def _give_way(reporter: FileReporter, step: int) -> NoReturn:
    """End this process because a machine goes; Ray starts another elsewhere."""
    notice = PreemptedError(f"a machine will be taken away; the state of step {step} is saved")
    if reporter.rank == 0:
        reporter.folder.note_retry(Failure.of(notice), "other machines go on from there")
    raise notice


def split_batch(spec: RunSpec, folder: RunFolder, failure: Failure) -> bool:
    """After a lack of memory, have the run go on with each worker's batch in twice as many parts; its size stays.

    Returns:
        Whether the batch was split. False if memory was not short, or if each part would hold less than one image.
    """
    parts = 2 * (folder.stored().accumulate or spec.train.accumulate)
    if failure.rule.policy != "halve" or parts > spec.train.batch_size // spec.resources.workers:
        return False
    folder.note_retry(failure, f"each worker's batch in {parts} parts", accumulate=parts)
    return True


def _free_memory() -> None:
    """Give back what a failed attempt held."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _train(
    payload: Payload,
    reporter: FileReporter,
    device: str,
    *,
    accumulate: int | None,
) -> Progress:
    fetch_newest(payload.folder / "checkpoints")
    train_fn = payload.train_fn
    if train_fn is None:
        from boxseg.build import run_training

        train_fn = run_training
    spec = payload.spec
    fetch_data(spec, say)
    config = BoxSegConfig(**spec.model_dump(include=set(BoxSegConfig.model_fields)))
    if accumulate is not None:
        train = config.train.model_copy(update={"accumulate": accumulate})
        config = config.model_copy(update={"train": train})
    return train_fn(
        config,
        folder=payload.folder,
        data_root=payload.data_root,
        reporter=reporter,
        device=device,
        threads=max(1, int(spec.resources.cpus_per_worker)),
        criterion=payload.criterion,
    )


@dataclass
class FileReporter:
    """Writes reports to the run's folder (rank 0) and passes evaluations to Ray (every rank).

    The evaluation of the last step is passed on by `finish` instead, so that a trial scheduler cannot end a run between
    its last evaluation and its end. On a machine whose files the driver does not see, Ray hears of an evaluation once
    its checkpoint is in the store; training goes on meanwhile.
    """

    folder: RunFolder
    payload: Payload
    rank: int = 0
    workers: int = 1
    """Processes that train together."""
    send: Send | None = None
    taken_away: Callable[[], bool] = lambda: False
    """Tells whether a machine will go soon; asked equally often on every rank."""
    courier: Courier | None = None
    """Carries the folder's files to a driver that does not see them."""
    _memory: PeakMemory = field(default_factory=PeakMemory)
    _pulse: Pulse | None = None
    _untold: list[EvalReport] = field(default_factory=list)
    """Evaluations that Ray has not heard of, the oldest first."""
    _looked: float = 0.0
    _stop: bool = False

    def on_start(self, report: StartReport) -> None:
        """Keep what the run took over from other weights."""
        if self.rank == 0:
            self.folder.update(start=str(report))

    def on_update(self, step: int, metrics: dict[str, Tensor]) -> None:
        """Write now and then how fast it goes and what the losses are, for people who watch."""
        if self.rank == 0:
            self._pulse = self._pulse or Pulse(self.folder, first_step=step)
            self._pulse.beat(step, metrics)

    def on_step(self, report: StepReport) -> None:
        """Write the means of some steps."""
        if self.rank == 0:
            self.folder.report(report.step, report.metrics)
        self._tell_ray()

    def on_eval(self, report: EvalReport) -> None:
        """Write an evaluation and tell Ray.

        Raises:
            ConfigError: the metric that decides is not reported, as data or settings leave it out. One of `health/`
                needs masks that the network finds, which may come with a later evaluation.
        """
        self._check_reported(report)
        if self.rank == 0:
            write = self.folder.report_again if report.is_repeated else self.folder.report
            write(report.step, report.metrics | self._costs(report), is_best=report.is_best)
        if report.step < self.payload.spec.train.steps:
            self._untold.append(report)
            self._tell_ray()

    def _tell_ray(self) -> None:
        """Pass on evaluations whose checkpoints are safe; a scheduler may end this process as soon as it knows."""
        while self._untold and self._is_safe(self._untold[0].checkpoint):
            report = self._untold.pop(0)
            self._pass_on(report.step, report.metrics)

    def _is_safe(self, checkpoint: Path) -> bool:
        """Whether a checkpoint outlives this machine; the same on every rank."""
        if self.payload.outpost is None:
            return True
        is_safe = self.courier is None or self.courier.has_sent(checkpoint)
        if self.workers == 1:
            return is_safe
        from boxseg.engine.distributed import gather_objects

        return gather_objects(is_safe)[0]  # rank 0 has the courier that sends

    def _check_reported(self, report: EvalReport) -> None:
        sweep = self.payload.sweep
        if sweep is None:
            return
        known = {*report.metrics, *self.folder.stored().metrics, *COSTS}
        for name in (sweep.metric, *sweep.against):
            if name not in known and not name.startswith("health/"):
                setting = "sweep.against" if name in sweep.against else "sweep.metric"
                names = ", ".join(sorted(report.metrics))
                raise ConfigError(f"{setting} {name} is not reported; choose one of {names}")

    def _costs(self, report: EvalReport) -> dict[str, float]:
        """What training took so far, where the sweep asks for it; of a repeated evaluation as it was reported."""
        sweep = self.payload.sweep
        wanted = [] if sweep is None else [name for name in sweep.against if name in COSTS]
        costs: dict[str, float] = {}
        if wanted and report.is_repeated:
            for earlier in self.folder.reports():
                costs |= earlier.metrics if earlier.step == report.step else {}
        elif wanted:
            costs["cost/memory_mb"] = self._memory.read()
            if report.step_s is not None:
                costs["cost/step_s"] = report.step_s
        return {name: costs[name] for name in wanted if name in costs}

    def should_stop(self) -> bool:
        """True once somebody asked for a stop in the run's folder, or a machine will be taken away."""
        due = time.monotonic() - self._looked > STOP_POLL_S
        # other ranks would wait for this one
        leaving = (due or self.workers > 1) and self.taken_away()
        if due and not self._stop:
            self._stop = self.folder.stop_requested()
            self._looked = time.monotonic()
        return self._stop or leaving

    def finish(self, step: int, metrics: dict[str, float]) -> None:
        """Write the end before Ray hears of it: a scheduler may kill this process as soon as it knows."""
        if self.rank == 0:
            self.folder.finish("finished")
        if self.courier is not None:
            self.courier.flush()
        for report in self._untold:
            self._pass_on(report.step, report.metrics)
        self._pass_on(step, metrics)

    def _pass_on(self, step: int, metrics: dict[str, float]) -> None:
        """Tell Ray; the deciding metric is that of the best evaluation so far, or worse than any other."""
        if self.send is None:
            return
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        if self.payload.sweep is not None:
            criterion = self.payload.criterion
            finite[criterion.metric] = criterion.told(criterion.value(self.folder.stored().best))
        self.send({**finite, "step": step})
