"""`boxseg train`: one run from settings to result; it may be new, resumed or a repetition."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import replace
from pathlib import Path

from orchestration.config.resolved import read_resolved
from orchestration.config.spec import RunSpec
from orchestration.connect.desk import open_desk
from orchestration.connect.session import start_ray
from orchestration.execute.fit import train_payload
from orchestration.execute.payload import Payload, TrainFn
from orchestration.execute.supervise import supervise
from orchestration.planning.preflight import runner_of
from orchestration.record.failures import error_of
from orchestration.record.find_runs import find_run, resolve_start_from
from orchestration.record.origin import check_repeatable, open_folder, prepare_data, provenance
from orchestration.record.progress import RunProgress
from orchestration.record.resume import check_resumable
from orchestration.record.run_folder import RunFolder, RunStatus, new_folder
from orchestration.store.syncer import drive_in_store


def train_run(
    spec: RunSpec,
    *,
    resume: str | None = None,
    repeat: RunFolder | None = None,
    train_fn: TrainFn | None = None,
) -> RunStatus:
    """Train once, in this process or with Ray Train's workers (`resources.runner`), and wait for the end.

    Args:
        spec: All settings.
        resume: Id or folder of a run to go on with; None starts a new one.
        repeat: The run that `spec` is from, to be repeated; the data has to be the same.
        train_fn: The training loop; None: that of boxseg.

    Returns:
        Where the run stands. SIGINT, SIGTERM and SIGHUP end it early with its state saved and status `interrupted`.

    Raises:
        BoxSegError: what ended the run; the child of BoxSegError that the worker raised.
        KeyboardInterrupt: a second signal came before the state was saved.
    """
    with contextlib.ExitStack() as stack:
        tags = prepare_data(spec) | provenance(spec)
        if repeat is not None:
            check_repeatable(repeat, spec, tags)
            tags["repeats"] = repeat.path.name
        storage = spec.storage.absolute()
        if resume is None:
            spec = resolve_start_from(spec)
            folder = new_folder(storage / spec.name)
            syncer = stack.enter_context(drive_in_store(folder.path))
        else:
            folder = find_run(storage, resume)
            syncer = stack.enter_context(drive_in_store(folder.path))
            check_resumable(spec, folder, resume, tags)
            # the record of the weights that it started from stays
            start = read_resolved(folder.config_path)["model"].get("start_from")
            spec = spec.starting_from(None if start is None else Path(start))
        open_folder(folder, spec, tags)
        runner = runner_of(spec)
        payload = Payload(spec, folder.path, storage / ".data", runner, train_fn=train_fn)
        supervisor = stack.enter_context(supervise(folder, spec, syncer))
        display = stack.enter_context(RunProgress(folder))
        if runner == "ray_train":
            stack.enter_context(
                start_ray(spec, logs=folder.logs, give_up=supervisor.signals.has_received)
            )
            payload = replace(payload, driver_link=open_desk(spec, folder.path))
            stack.enter_context(supervisor.reached_by(payload.driver_link))
            supervisor.hand_over(folder)
        supervisor.watch(functools.partial(train_payload, payload), display.update)
    status = folder.status()
    if status.failure is not None:
        raise error_of(status.failure)
    return status
