"""What every training process does: receive the run, train, and write the end to the run's folder."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from boxseg.config.method import BoxSegConfig
from boxseg.errors import StorageError
from boxseg.files.writing import write_atomic
from orchestration.config.spec import RunSpec
from orchestration.errors import PreemptedError
from orchestration.execute.payload import Payload, Send
from orchestration.execute.reporter import FileReporter
from orchestration.record.failures import Failure
from orchestration.record.origin import write_environment
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.secret_text import hide
from orchestration.store.courier import Courier, DriverLink, bring_patiently
from orchestration.store.data import fetch_data
from orchestration.store.mirror import fetch_newest
from orchestration.store.syncer import say

if TYPE_CHECKING:
    from boxseg.engine.train import Progress

logger = logging.getLogger("boxseg.worker")


def train_worker(arguments: dict[str, Any]) -> Failure | None:
    """Body of a Ray Train worker; `arguments["payload"]` is a Payload.

    Returns:
        The failure of a worker that trains alone, if starting it again would not help: Ray restarts workers that raise.
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
        # raised also if it will only come again: other ranks wait for this one, and Ray ends them
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
    """Train in this process and write the end to the run's folder; if memory is short, go on with a split batch.

    Args:
        payload: What to train, and where.
        device: Torch device.
        rank: Rank of this process; rank 0 writes metrics.
        workers: Number of processes that train together, in a torch process group that is already up. If there are
            several, none can try again by itself: it raises, and Ray restarts all of them.
        send: Gets the metrics of every evaluation, on every rank; those of the last one only once the run has finished.
            If the run had finished before, it gets only these.
        taken_away: Says whether one of the machines will soon be taken away. It waits for all ranks, so they have to
            call it equally often.

    Raises:
        PreemptedError: the state is saved because a machine will be taken away; the run has to go on elsewhere.
        StorageError: the run's folder cannot be written, so nothing there says how the run ended.
        Exception: what the loop raised.
    """
    folder = RunFolder(payload.folder)
    alone = workers == 1
    with folder_received(payload.driver_link, payload.folder, rank=rank, alone=alone) as courier:
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
    driver_link: DriverLink | None,
    folder: Path,
    *,
    rank: int = 0,
    alone: bool = True,
    trains: bool = True,
) -> Iterator[Courier | None]:
    """Have a run's folder on this machine; yields what carries changes to a driver that does not see this folder.

    Without `trains` only its records are fetched and carried, which does not depend on the store.

    Raises:
        StorageError: the run's store does not answer or refuses access.
    """
    if driver_link is None or driver_link.is_home(folder):
        yield None
        return
    courier = Courier(driver_link.desk, folder, leads=rank == 0, trains=trains)
    with contextlib.ExitStack() as stack:
        if rank == 0:
            stack.enter_context(courier)
        if not alone:
            from boxseg.engine.distributed import gather_objects

            # if rank 0 is on this machine, it has received the folder for all
            leader = gather_objects(courier.mark if rank == 0 else None)[0]
            if rank != 0 and not courier.is_received(leader):
                stack.enter_context(courier)
        yield courier


def _write_failure(payload: Payload, folder: RunFolder, error: Exception) -> bool:
    """Write a failure to the run's folder: as its end, or as the reason for going on with a split batch.

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
    # An earlier process was lost before it could tell Ray of the end.
    if status.status == "finished":
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
    """Whether a run keeps its end although Ray has restarted its process, as Ray does after any error."""
    if status.status in ("stopped", "interrupted"):
        return True
    failure = status.failure
    if status.status != "failed" or failure is None or failure.rule.policy != "stop":
        return False
    # with several workers, an error that boxseg did not raise may only be the consequence of another worker's
    return alone or failure.is_ours


def _give_way(reporter: FileReporter, step: int) -> NoReturn:
    """End this process because a machine will be taken away; Ray starts another one elsewhere."""
    notice = PreemptedError(f"a machine will be taken away; the state of step {step} is saved")
    if reporter.rank == 0:
        reporter.folder.note_retry(Failure.of(notice), "other machines go on from there")
    raise notice


def split_batch(spec: RunSpec, folder: RunFolder, failure: Failure) -> bool:
    """If a run failed for lack of memory, have it go on with each worker's batch in twice as many parts.

    Returns:
        Whether the batch was split. False if memory was not short, or if a part would have less than one image.
    """
    parts = 2 * (folder.stored().accumulate or spec.train.accumulate)
    if failure.rule.policy != "halve" or parts > spec.train.batch_size // spec.resources.workers:
        return False
    folder.note_retry(failure, f"each worker's batch in {parts} parts", accumulate=parts)
    return True


def _free_memory() -> None:
    """Give back the memory that a failed attempt held."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _train(
    payload: Payload, reporter: FileReporter, device: str, *, accumulate: int | None
) -> Progress:
    fetch_newest(payload.folder / "checkpoints", with_best=reporter.rank == 0)
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
