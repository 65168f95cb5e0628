"""What a run or sweep would do and cost, worked out without starting anything."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import ValidationError

from boxseg.coco.checks import read_well_formed, reading_once
from boxseg.coco.entries import objects_of
from boxseg.config.method import CocoSource
from boxseg.errors import BoxSegError
from orchestration.config.resolved import read_resolved
from orchestration.config.space import count_settings
from orchestration.config.spec import RunSpec, SweepSpec
from orchestration.planning import preflight
from orchestration.planning.estimate import START_S, estimate_step
from orchestration.planning.machine import count_cpus, count_gpus
from orchestration.record.find_runs import list_runs
from orchestration.record.journal import count_ended
from orchestration.record.origin import check_same_data, look_at_data
from orchestration.record.resume import OTHER_SWEEP, Start, extend_sweep, find_sweep
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.record.table import describe
from orchestration.store.data import fetch_annotations
from orchestration.store.places import named, shown
from orchestration.words import show_bytes, show_duration

UNKNOWN = "unknown: no earlier run of this name and size under storage; run one short run first"


@dataclass(frozen=True)
class DataPlan:
    """Counts of one data set; None where they are not known yet."""

    source: str
    """`toy`, or the annotation file."""
    images: int | None = None
    boxes: int | None = None
    """Boxes that are not crowd regions."""
    used_images: int | None = None
    """Images with at least one such box: those that are trained on."""
    classes: int | None = None
    aspect: float | None = None
    """Mean of long side over short side."""


@dataclass(frozen=True)
class Plan:
    """What would be done, and what it takes."""

    name: str
    kind: Literal["run", "sweep"]
    train: DataPlan
    val: DataPlan
    settings: int | None
    """Number of different settings in the space of a sweep; None if it is infinite."""
    tried_first: list[str]
    """Settings that a sweep begins with, each in a line."""
    trials: int
    ended: int
    """Trials that have ended, in a sweep that goes on; time, cost and disk are those of the others."""
    concurrency: int | None
    """Trials at the same time; None if a cluster decides."""
    workers: int
    steps: int
    """Updates of each trial."""
    epochs: float | None
    seconds: float | None
    """Time of everything that is still to run, if no trial is stopped early [s]."""
    time_basis: str
    """What the time is based on."""
    gpu_h: float | None
    """Hours of all GPUs together, if no trial is stopped early; None without GPUs, or without a time."""
    price: float | None
    """What they cost; None without `resources.price_per_gpu_hour`."""
    disk_bytes: int | None
    """Checkpoints of all trials to be run: the best and the last two of each."""
    disk_basis: str
    free_bytes: int
    storage: Path
    warnings: list[str]
    """Where the settings do not fit the data."""
    faults: list[BoxSegError]
    """Why it would not start; empty if it would."""


@reading_once()
def make_plan(spec: RunSpec, *, ended: int = 0) -> Plan:
    """Work out the plan of a run, or of a sweep if `spec` is one; reads data files and earlier runs, writes nothing.

    From a store only annotations are fetched.

    Args:
        spec: All settings.
        ended: Number of trials that are not run again, for a sweep that goes on.
    """
    with contextlib.suppress(BoxSegError):  # problems with a store are among the faults
        fetch_annotations(spec)
    faults = list(preflight.find_faults(spec))  # first, as it reads most of the files
    train = _data_plan(spec.data.train, toy_images=spec.data.toy.train_images)
    trials = spec.sweep.num_trials if isinstance(spec, SweepSpec) else 1
    left = max(0, trials - ended)
    concurrency = _concurrency(spec, trials)
    earlier = list(_earlier_runs(spec))
    step_s, time_basis = _step_time(earlier)
    trial_s = None if step_s is None else step_s * spec.train.steps
    # a measurement here is better than any estimate
    if trial_s is None and (guess := estimate_step(spec, aspect=train.aspect)) is not None:
        step_s, basis = guess
        trial_s = START_S + step_s * spec.train.steps
        time_basis = f"with {START_S:g} s to start and updates {basis}"
    seconds = None
    if trial_s is not None and concurrency is not None:
        # trials of equal length run in rounds
        seconds = trial_s * math.ceil(left / concurrency)
    gpu_h, price = None, None
    if trial_s is not None and spec.resources.gpus_per_worker:
        # whatever the number that run at the same time
        gpu_h = spec.resources.gpus * trial_s * left / 3600
        price = spec.resources.price_of(gpu_h)
    epochs = None
    if train.used_images:
        epochs = spec.train.steps * spec.train.batch_size / train.used_images
    checkpoint_bytes, disk_basis = _checkpoint_size(earlier)
    points = spec.sweep.points if isinstance(spec, SweepSpec) and not ended else []
    return Plan(
        name=spec.name,
        kind="sweep" if isinstance(spec, SweepSpec) else "run",
        train=train,
        val=_data_plan(spec.data.val, toy_images=spec.data.toy.val_images),
        settings=count_settings(spec.sweep.space) if isinstance(spec, SweepSpec) else 1,
        tried_first=[describe(point) for point in points],
        trials=trials,
        ended=ended,
        concurrency=concurrency,
        workers=spec.resources.workers,
        steps=spec.train.steps,
        epochs=epochs,
        seconds=seconds,
        time_basis=time_basis,
        gpu_h=gpu_h,
        price=price,
        disk_bytes=None if checkpoint_bytes is None else checkpoint_bytes * left,
        disk_basis=disk_basis,
        free_bytes=preflight.free_bytes(spec.storage),
        storage=spec.storage,
        warnings=preflight.warnings(spec),
        faults=faults,
    )


def as_it_goes_on(
    spec: SweepSpec, start: Start | None, earlier: str | None, more: int
) -> tuple[SweepSpec, int]:
    """Settings that an earlier sweep would go on with, and the number of its trials that have ended.

    Args:
        spec: Settings of the file.
        start: What to do with the earlier sweep.
        earlier: Its id, folder or name; None: the newest one of the file's name.
        more: Number of further settings to try.

    Raises:
        ConfigError: there is no such sweep, or it cannot go on like this.
        DataError: its annotation files have changed.
    """
    folder = find_sweep(spec, start, earlier)
    if folder is None:
        return spec, 0
    check_same_data(folder, spec, look_at_data(spec), otherwise=OTHER_SWEEP)
    extended = extend_sweep(spec, folder, more)
    return extended, count_ended(folder, extended.sweep, retry_failed=start == "retry_failed")


def _data_plan(source: Literal["toy"] | CocoSource, *, toy_images: int) -> DataPlan:
    if not isinstance(source, CocoSource):
        return DataPlan("toy", images=toy_images, used_images=toy_images)
    try:
        content = read_well_formed(source.annotations, whole=False)
    except BoxSegError:  # already among the faults
        return DataPlan(named(source.annotations))
    image_ids = [entry["image_id"] for entry in objects_of(content)]
    return DataPlan(
        named(source.annotations),
        images=len(content["images"]),
        boxes=len(image_ids),
        used_images=len(set(image_ids)),
        classes=len(content["categories"]),
        aspect=_mean_aspect(content["images"]),
    )


def _mean_aspect(images: list[dict[str, Any]]) -> float | None:
    if not images:
        return None
    sizes = [(image["width"], image["height"]) for image in images]
    return fmean(max(size) / min(size) for size in sizes)


def _concurrency(spec: RunSpec, trials: int) -> int | None:
    if not isinstance(spec, SweepSpec):
        return 1
    if preflight.uses_cluster(spec):
        most = spec.sweep.concurrency
        return None if most is None else min(most, trials)
    gpus = count_gpus() if spec.resources.gpus_per_worker else 0
    machine = {"CPU": count_cpus(), "GPU": gpus}
    return min(preflight.concurrency(spec, [machine]), trials)


def _earlier_runs(spec: RunSpec) -> Iterator[RunStatus]:
    """Runs of the same name and the same amount of work for each step, newest first."""
    # only the newest, as reading the settings of each takes a moment
    for status in list_runs(spec.storage, warns=False)[:100]:
        if status.kind == "run" and status.name == spec.name:
            try:
                settings = read_resolved(RunFolder(status.folder).config_path)
                other = RunSpec.model_validate(settings)
            except (BoxSegError, ValidationError):
                continue
            if _work(other) == _work(spec):
                yield status


def _work(spec: RunSpec) -> tuple[Any, ...]:
    """The settings that decide how long a step takes and how large a checkpoint is."""
    model, train = spec.model, spec.train
    network = (model.backbone, model.channels)
    # a price has no effect on these
    resources = spec.resources.model_copy(update={"price_per_gpu_hour": None})
    return spec.method, *network, train.image_size, train.batch_size, resources


def _step_time(earlier: list[RunStatus]) -> tuple[float | None, str]:
    """Seconds per step of the newest run that finished, start and evaluations included."""
    for run in earlier:
        if run.status in ("finished", "stopped") and run.started and run.ended and run.step:
            step_s = run.took_s / run.step
            return step_s, f"as measured in run {run.id}, start and evaluation included"
    return None, UNKNOWN


def _checkpoint_size(earlier: list[RunStatus]) -> tuple[int | None, str]:
    for run in earlier:
        checkpoint = RunFolder(Path(run.folder)).best_checkpoint
        size = sum(path.stat().st_size for path in checkpoint.glob("*"))
        if size:
            return 3 * size, f"run {run.id}, the best checkpoint and the last two of each trial"
    return None, UNKNOWN


def plan_rows(plan: Plan) -> list[tuple[str, Any]]:
    """The plan as names and values, for people."""
    is_sweep = plan.kind == "sweep"
    epochs = "" if plan.epochs is None else f", {plan.epochs:.3g} epochs"
    time = "" if plan.seconds is None else f"about {show_duration(plan.seconds)}, "
    disk = ""
    if plan.disk_bytes is not None:
        disk = f"about {show_bytes(plan.disk_bytes)}, as measured in "
    rows = {
        plan.kind: plan.name,
        "train data": _data_text(plan.train),
        "val data": _data_text(plan.val),
        "space": f"{plan.settings or 'no end of'} settings" if is_sweep else None,
        "tried first": "; ".join(plan.tried_first) or None,
        "trials": _trials_text(plan) if is_sweep else plan.trials,
        "workers": f"{plan.workers} in each trial" if is_sweep else plan.workers,
        "steps": f"{plan.steps}{epochs}",
        "time": time + plan.time_basis,
        "price": _price_text(plan),
        "disk": f"{disk}{plan.disk_basis}; {show_bytes(plan.free_bytes)} free",
        "storage": shown(plan.storage),
    }
    return [(name, value) for name, value in rows.items() if value is not None]


def _trials_text(plan: Plan) -> str:
    ended = f", of which {plan.ended} have ended" if plan.ended else ""
    if plan.concurrency is None:
        return f"{plan.trials}{ended}, as many as the cluster holds"
    return f"{plan.trials}{ended}, {plan.concurrency} at a time"


def _price_text(plan: Plan) -> str | None:
    if plan.price is None or plan.gpu_h is None:
        return None
    early = ", less what early stopping saves" if plan.kind == "sweep" else ""
    return f"about {plan.price:.2f} for {plan.gpu_h:.3g} GPU hours{early}"


def _data_text(data: DataPlan) -> str:
    if data.images is None:
        return f"{data.source}: not usable"
    if data.boxes is None:
        return f"{data.source}: {data.images} images, drawn on first use"
    return f"{data.source}: {data.images} images, {data.boxes} boxes, {data.classes} classes"
