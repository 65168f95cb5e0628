"""What a run or sweep would do and cost, worked out without starting anything."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from boxseg.config import CocoSource
from boxseg.data.checks import read_annotations
from boxseg.errors import BoxSegError
from orchestration import preflight
from orchestration.config import RunSpec, SweepSpec, load_run
from orchestration.run_folder import RunFolder, RunStatus, list_runs
from orchestration.search_space import count_trials

UNKNOWN_TIME = "unknown: no earlier run of this name and size under storage; run one short run first"


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


@dataclass(frozen=True)
class Plan:
    """What would be done, and what it takes."""

    name: str
    kind: Literal["run", "sweep"]
    train: DataPlan
    val: DataPlan
    trials: int
    concurrency: int | None
    """Trials at the same time; None where a cluster decides."""
    workers: int
    steps: int
    """Updates of each trial."""
    epochs: float | None
    seconds: float | None
    """Time of the whole, if no trial is stopped early."""
    time_basis: str
    """Where the time comes from."""
    disk_bytes: int | None
    """Checkpoints of all trials, best and last of each."""
    disk_basis: str
    free_bytes: int
    storage: Path
    faults: list[BoxSegError] = field(default_factory=list)
    """Why it would not start; empty if it would."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "storage": str(self.storage), "faults": [str(fault) for fault in self.faults]}


def make_plan(spec: RunSpec) -> Plan:
    """Work out the plan of a run, or of a sweep if `spec` is one; reads data files and earlier runs, writes nothing."""
    faults = preflight.find_faults(spec)
    train = _data_plan(spec.data.train, toy_images=spec.data.toy.train_images)
    val = _data_plan(spec.data.val, toy_images=spec.data.toy.val_images)
    trials = count_trials(spec.sweep) if isinstance(spec, SweepSpec) else 1
    concurrency = _concurrency(spec, trials)
    earlier = _earlier_runs(spec)
    step_s, time_basis = _step_time(earlier)
    rounds = None if concurrency is None else -(-trials // concurrency)
    seconds = None if step_s is None or rounds is None else step_s * spec.train.steps * rounds
    checkpoint_bytes, disk_basis = _checkpoint_size(earlier)
    return Plan(
        name=spec.name,
        kind="sweep" if isinstance(spec, SweepSpec) else "run",
        train=train,
        val=val,
        trials=trials,
        concurrency=concurrency,
        workers=spec.resources.workers,
        steps=spec.train.steps,
        epochs=spec.train.steps * spec.train.batch_size / train.used_images if train.used_images else None,
        seconds=seconds,
        time_basis=time_basis,
        disk_bytes=None if checkpoint_bytes is None else checkpoint_bytes * trials,
        disk_basis=disk_basis,
        free_bytes=preflight.free_bytes(spec.storage),
        storage=spec.storage,
        faults=faults,
    )


def _data_plan(source: Literal["toy"] | CocoSource, *, toy_images: int) -> DataPlan:
    if not isinstance(source, CocoSource):
        return DataPlan("toy", images=toy_images, used_images=toy_images)
    try:
        content = read_annotations(source.annotations)
    except BoxSegError:  # already among the faults
        return DataPlan(str(source.annotations))
    boxes = [each.get("image_id") for each in content["annotations"] if not each.get("iscrowd")]
    return DataPlan(
        str(source.annotations),
        images=len(content["images"]),
        boxes=len(boxes),
        used_images=len(set(boxes)),
        classes=len(content["categories"]),
    )


def _concurrency(spec: RunSpec, trials: int) -> int | None:
    wanted = spec.sweep.concurrency if isinstance(spec, SweepSpec) else 1
    if preflight.uses_cluster(spec):
        return None if wanted is None else min(wanted, trials)
    resources = spec.resources
    room = preflight.count_cpus() / (resources.workers * resources.cpus_per_worker)
    if resources.gpus_per_worker:
        room = min(room, preflight.count_gpus() / (resources.workers * resources.gpus_per_worker))
    return max(1, min(int(room), trials, wanted or trials))


def _earlier_runs(spec: RunSpec) -> list[RunFolder]:
    """Runs of the same name that trained the same network on images and batches of the same size, newest first."""
    return [
        RunFolder(Path(status.folder))
        for status in list_runs(spec.storage)[:100]
        if status.kind == "run" and status.name == spec.name and _is_alike(status, spec)
    ]


def _is_alike(status: RunStatus, spec: RunSpec) -> bool:
    try:
        other = load_run(Path(status.folder) / "config.yaml")
    except BoxSegError:
        return False
    same_network = other.model.backbone == spec.model.backbone and other.model.channels == spec.model.channels
    same_work = (other.train.image_size, other.train.batch_size, other.resources) == (
        spec.train.image_size,
        spec.train.batch_size,
        spec.resources,
    )
    return same_network and same_work and other.method == spec.method


def _step_time(earlier: list[RunFolder]) -> tuple[float | None, str]:
    """Seconds per step: wall time with evaluation of a finished run, else the reported time of its steps."""
    for folder in earlier:
        status = folder.status()
        if status.status == "finished" and status.started and status.ended and status.step:
            return (status.ended - status.started) / status.step, f"run {status.id}, start and evaluation included"
    for folder in earlier:
        times = [value for _, value in folder.history("train/step_s")]
        if times:
            return statistics.median(times), f"run {folder.status().id}, steps alone, without evaluation"
    return None, UNKNOWN_TIME


def _checkpoint_size(earlier: list[RunFolder]) -> tuple[int | None, str]:
    for folder in earlier:
        sizes = [path.stat().st_size for path in (folder.path / "checkpoints").glob("step-*/*")]
        steps = len(list((folder.path / "checkpoints").glob("step-*")))
        if sizes:
            return 2 * sum(sizes) // steps, f"run {folder.status().id}, best and last checkpoint of each trial"
    return None, UNKNOWN_TIME
