"""Cheap checks before anything starts: data, weights, cores, GPUs and storage; needs neither torch nor Ray."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from boxseg.coco.checks import MASK_AP_RULE, read_well_formed, require_usable
from boxseg.coco.classes import require_same_classes
from boxseg.coco.faults import Fault
from boxseg.config.method import CocoSource
from boxseg.data.fingerprint import take_fingerprint
from boxseg.data.misfits import find_misfits, find_misplaced, find_shared, find_unlearnt
from boxseg.errors import BoxSegError, CheckpointError, ConfigError, DataError
from orchestration.config.points import own_values
from orchestration.config.space import count_settings, names_of, possible_values, samples
from orchestration.config.spec import NEEDS_NO_MASKS, ResourcesConfig, RunSpec, SweepSpec
from orchestration.errors import ResourceError
from orchestration.planning.machine import count_cpus, count_gpus
from orchestration.record.find_runs import resolve_start_from
from orchestration.store.client import place_of
from orchestration.store.data import fetch_annotations
from orchestration.store.places import address_of, named

UNUSED_VARIABLES = {
    "MLFLOW_TRACKING_URI": "tracking.uri",
    "MLFLOW_EXPERIMENT_NAME": "name",
    "MLFLOW_EXPERIMENT_ID": "name",
}
"""Variables that MLflow's own functions read -> the setting that counts here."""
MIN_FREE_BYTES = 200_000_000
"""Room for the checkpoints of the smallest network, with MLflow's files."""


def check(spec: RunSpec) -> None:
    """Refuse a run or sweep that could not work on this machine or with these files.

    Raises:
        ResourceError: more workers, CPU cores or GPUs than there are, or a full disk.
        ConfigError: a file that a setting names is missing, the storage cannot be written, a cluster's address is that
            of its dashboard, or `notify` or `tracking` cannot work.
        DataError: a data set has fatal faults.
    """
    for fault in find_faults(spec):
        raise fault


def find_faults(spec: RunSpec) -> Iterator[BoxSegError]:
    """All that `check` could raise, quickest checks first; nothing is left behind on the disk."""
    for look in (
        _check_address,
        _check_notify,
        _check_tracking,
        _check_room,
        lambda spec: check_storage(spec.storage),
        _check_weights,
        _check_lengths,
        fetch_annotations,
        _check_train_data,
        _check_val_data,
        _check_classes,
        _check_varied_data,
        _check_timm_name,
        _check_start,
    ):
        try:
            look(spec)
        except BoxSegError as fault:
            yield fault


def warnings(spec: RunSpec) -> list[str]:
    """Warnings of what is probably not meant: settings that do not fit the data, variables without effect."""
    sentences = []
    for name, setting in UNUSED_VARIABLES.items():
        if os.environ.get(name):
            sentences.append(f"{name} has no effect; {setting} says it")
    if spec.resources.price_per_gpu_hour and not spec.resources.gpus:
        sentences.append("resources.price_per_gpu_hour has no effect, as gpus_per_worker is 0")
    if isinstance(spec, SweepSpec) and spec.sweep.against and spec.sweep.trial_scheduler != "none":
        sentences.append(
            f"sweep.trial_scheduler {spec.sweep.trial_scheduler} stops trials by {spec.sweep.metric} alone, also those "
            f"that are good by {', '.join(spec.sweep.against)}; sweep.trial_scheduler: none runs all to their ends"
        )
    if isinstance(spec, SweepSpec) and spec.sweep.search != "grid":
        size = count_settings(spec.sweep.space)
        if size is not None and size < spec.sweep.trials:
            sentences.append(
                f"settings to try: {spec.sweep.trials}, but sweep.space has no more than {size}, and each is run once "
                "for each seed"
            )
    if isinstance(spec, SweepSpec):
        sentences += _score_thrs_alike(spec)
        sentences += _varied_in_vain(spec)
    if isinstance(spec.data.train, CocoSource):
        with contextlib.suppress(DataError):  # it is among the faults
            sentences += find_misfits(spec, take_fingerprint(spec.data.train))
            if isinstance(spec.data.val, CocoSource):
                sentences += find_shared(spec.data.train, spec.data.val)
                sentences += find_unlearnt(spec.data.train, spec.data.val)
    if isinstance(spec.data.val, CocoSource) and spec.data.val != spec.data.train:
        with contextlib.suppress(DataError):
            sentences += find_misplaced(take_fingerprint(spec.data.val))
    return sentences


def _score_thrs_alike(spec: SweepSpec) -> Iterator[str]:
    """Warn of `qam.score_thr` values without effect: scores of candidates exceed sqrt(teacher.cand_score_thr) anyway.

    Source: `docs/method.md#ranking`.
    """
    space = spec.sweep.space
    floors = possible_values(space, "teacher.cand_score_thr") or [spec.teacher.cand_score_thr]
    floor = math.sqrt(min(map(float, floors)))
    thresholds = {float(value) for value in possible_values(space, "qam.score_thr")}
    alike = sorted(value for value in thresholds if value <= floor)
    if len(alike) > 1:
        yield (
            f"qam.score_thr from {alike[0]:g} to {alike[-1]:g} trains alike: with "
            f"teacher.cand_score_thr every candidate scores above {floor:.4g}; try one value up to there"
        )


def _varied_in_vain(spec: SweepSpec) -> Iterator[str]:
    """Warn of varied settings of a part that is off in all trials, which then train alike."""
    space = spec.sweep.space
    varied = {name for entry, domain in space.items() for name in names_of(entry, domain)}
    for switch, is_on, groups in (
        ("pc.on", spec.pc.on, ("pc.",)),
        ("teacher.on", spec.teacher.on, ("teacher.", "qam.")),
    ):
        if is_on or varied & {switch, "method", "profile"}:
            continue
        for name in sorted(varied):
            if name.startswith(groups):
                yield f"sweep.space varies {name} without effect: {switch} is false with method {spec.method}"


def _check_address(spec: RunSpec) -> None:
    """Refuse the web address of a dashboard: Ray itself would wait in vain for an answer there."""
    setting = "resources.address" if spec.resources.address else "RAY_ADDRESS"
    address = spec.resources.address or os.environ.get("RAY_ADDRESS") or ""
    if fault := find_address_fault(address, setting):
        raise ConfigError(f"{setting} {address}: {fault}")


def _check_notify(spec: RunSpec) -> None:
    """Check that `notify` will work at the end, which may be days away."""
    spec.notify.address()
    command = spec.notify.command
    if command is not None and shutil.which(command[0]) is None:
        raise ConfigError(
            f"notify.command: {command[0]} is no program on the PATH; give the whole path of one, or leave "
            "notify.command out"
        )


def _check_tracking(spec: RunSpec) -> None:
    """Refuse what MLflow never takes, such as a server without `http://`: it would be asked in vain until the end."""
    uri = spec.tracking.uri or ""
    is_address = "://" in uri and not uri.startswith("file:")
    is_known = is_address or uri.startswith(("databricks", "uc", "arn:"))
    if uri and not is_known and not os.environ.get("MLFLOW_ALLOW_FILE_STORE"):
        raise ConfigError(
            f"tracking.uri: {uri} is no address of a server (http://HOST:5000) or database (sqlite:////PATH/mlflow.db, "
            "postgresql://…), and MLflow keeps no runs in folders; null is a database under storage"
        )


def find_address_fault(address: str, setting: str) -> str | None:
    """What is wrong with the address of a cluster that `setting` names, and the way out; None if nothing is."""
    if not address.startswith(("http://", "https://")):
        return None
    return (
        "is a dashboard's, which takes jobs alone (`boxseg jobs submit`); to use that cluster from here name Ray's own "
        f"address, as in HOST:6379 or ray://HOST:10001, or else unset {setting}"
    )


def uses_cluster(spec: RunSpec) -> bool:
    """Whether settings or environment name a running Ray cluster, so that this machine's size does not count."""
    return (spec.resources.address or os.environ.get("RAY_ADDRESS") or "local") != "local"


def runner_of(spec: RunSpec) -> Literal["inline", "ray_train"]:
    """`resources.runner`, with `auto` resolved: Ray Train only for what one process on CPU cores cannot do."""
    resources = spec.resources
    if resources.runner != "auto":
        return resources.runner
    needs_ray = resources.workers > 1 or resources.gpus_per_worker or uses_cluster(spec)
    return "ray_train" if needs_ray else "inline"


def concurrency(spec: SweepSpec, nodes: Sequence[Mapping[str, float]]) -> int:
    """Trials at the same time: as many as the nodes (resource -> amount) hold, at most `sweep.concurrency`."""
    fit_in = count_places(spec.resources, nodes) // spec.resources.workers
    return max(1, min(fit_in, spec.sweep.concurrency or fit_in))


def count_places(resources: ResourcesConfig, nodes: Sequence[Mapping[str, float]]) -> int:
    """Number of workers that find a place: each needs one node, and if it takes a part of a GPU, one GPU."""

    def on(node: Mapping[str, float]) -> int:
        places = _times(node.get("CPU", 0), resources.cpus_per_worker)
        gpus = resources.gpus_per_worker
        if gpus >= 1:
            places = min(places, _times(node.get("GPU", 0), gpus))
        elif gpus > 0:
            places = min(places, math.floor(node.get("GPU", 0)) * _times(1, gpus))
        return places

    return sum(map(on, nodes))


def _times(have: float, need: float) -> int:
    return math.floor(have / need + 1e-6)  # 0.3 / 0.1 is a little below 3


def free_bytes(storage: Path) -> int:
    """Free space of the disk that holds, or will hold, the storage folder."""
    return shutil.disk_usage(existing_parent(storage)).free


def existing_parent(path: Path) -> Path:
    """The path itself if it exists, else the closest folder above it that does."""
    folder = path.absolute()
    # not Path.exists, which raises in folders that this account may not read
    while not os.access(folder, os.F_OK):
        folder = folder.parent
    return folder


def _check_room(spec: RunSpec) -> None:
    if uses_cluster(spec):
        return
    workers, resources = spec.resources.least_workers, spec.resources
    needs = [("cpus_per_worker", "CPU cores", "lower one of them", count_cpus)]
    if resources.gpus_per_worker:
        way_out = "set gpus_per_worker: 0 to use CPU cores"
        needs.append(("gpus_per_worker", "GPUs", way_out, count_gpus))
    for setting, unit, way_out, count in needs:
        per_worker, available = getattr(resources, setting), count()
        needed = workers * per_worker
        if needed > available:
            raise ResourceError(
                f"resources: workers {workers} x {setting} {per_worker:g} needs {needed:g} {unit}, "
                f"but this machine has {available}; {way_out}, or name a cluster with "
                "resources.address"
            )


def check_storage(storage: Path) -> None:
    """Refuse a storage folder that cannot be written, or whose disk is full, and a store that does not answer.

    Raises:
        ConfigError: it cannot be written.
        StorageError: the store does not answer or refuses the connection.
        ResourceError: the disk is full.
    """
    folder = existing_parent(storage)
    way_out = "name another folder in the file, or with --set storage=DIR"
    try:
        # by writing: rights alone do not show what a network disk allows
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = "a file is in the way" if not folder.is_dir() else error.strerror
        message = f"storage: {storage} cannot be written ({folder}: {reason}); {way_out}"
        raise ConfigError(message) from error
    free = free_bytes(folder)
    if free < MIN_FREE_BYTES:
        has = f"the disk of {folder} has {free / 1e6:.0f} MB free"
        need = f"a run needs {MIN_FREE_BYTES / 1e6:.0f} MB or more"
        raise ResourceError(f"storage: {has}; {need}; {way_out}")
    if address_of(storage) is not None:
        store, prefix = place_of(storage)
        store.folders(prefix.rstrip("/"))


def _check_weights(spec: RunSpec) -> None:
    for weights in _values(spec, "model.weights"):
        if weights not in ("auto", "imagenet", "none") and not Path(weights).is_file():
            way_out = "give a state dict, or one of auto, imagenet, none"
            raise ConfigError(f"model.weights: {weights}: no such file; {way_out}")


def _values(spec: RunSpec, name: str) -> list[Any]:
    """The value of a setting, with those that trials of a sweep may get."""
    space = spec.sweep.space if isinstance(spec, SweepSpec) else {}
    return [*own_values(spec, [name]).values(), *possible_values(space, name)]


def _check_start(spec: RunSpec) -> None:
    """Check that the network can start from the named weights, for which both have to be loaded."""
    for variant in _starts(spec):
        start = resolve_start_from(variant).model.start_from
        if start is None:
            continue
        if not os.path.exists(start):  # noqa: PTH110 - False for any name at all
            reason = "no such run, checkpoint or file; `boxseg runs ls` lists runs"
            raise ConfigError(f"model.start_from: {start}: {reason}")
        # loads torch, so only where there is something to check
        from boxseg.build import check_start

        try:
            check_start(variant, start)
        except (CheckpointError, DataError) as error:
            raise ConfigError(f"model.start_from: {error}") from error


def _starts(spec: RunSpec) -> Iterator[RunSpec]:
    """The settings themselves, and those of a sweep with each of the weights to start from that it may choose."""
    starts = []
    if isinstance(spec, SweepSpec):
        starts = possible_values(spec.sweep.space, "model.start_from")
    if not starts:
        yield spec
    for value in starts:
        yield spec.starting_from(None if value is None else Path(str(value)))


def _check_lengths(spec: RunSpec) -> None:
    """Early stopping compares trials at the same step: of two lengths, the longer run has done a smaller part there."""
    if not isinstance(spec, SweepSpec) or spec.sweep.trial_scheduler == "none":
        return
    steps = possible_values(spec.sweep.space, "train.steps") or [spec.train.steps]
    domain = spec.sweep.space.get("train.steps")
    if domain is not None and domain.when:
        steps.append(spec.train.steps)
    if max(steps) > min(steps):
        raise ConfigError(
            f"sweep.space: train.steps varies from {min(steps)} to {max(steps)}, but "
            f"sweep.trial_scheduler {spec.sweep.trial_scheduler} compares trials at the same step, "
            "of which long ones have done less; set sweep.trial_scheduler: none, or one "
            "train.steps for all"
        )


def _check_timm_name(spec: RunSpec) -> None:
    """Check names of timm, which has to be loaded for that: so this comes after the settings were checked."""
    for name in _values(spec, "model.backbone"):
        if name.startswith("timm/"):
            from boxseg.model.backbone import check_timm_name

            check_timm_name(name)


def _require_usable(source: CocoSource, *, training: bool, use_masks: bool = False) -> list[Fault]:
    """`require_usable`, without images of a store, which were looked for in its listing."""
    is_here = address_of(source.images) is None
    try:
        return require_usable(source, training=training, use_masks=use_masks, open_images=is_here)
    except DataError as error:
        text = str(error)
        for path in (source.images, source.annotations):
            text = text.replace(str(path), named(path))
        raise DataError(text) from error


def _check_train_data(spec: RunSpec) -> None:
    if isinstance(spec.data.train, CocoSource):
        _require_usable(spec.data.train, training=True, use_masks=spec.data.use_masks != "never")


def _check_classes(spec: RunSpec) -> None:
    """Whether training and validation data list the same classes."""
    train, val = spec.data.train, spec.data.val
    if train == val:
        return
    try:
        of_train, of_val = (_list_classes(source, spec) for source in (train, val))
    except DataError:
        return  # it is among the faults
    if isinstance(train, CocoSource) and isinstance(val, CocoSource):
        require_same_classes(train.annotations, of_train, val.annotations, of_val)
    elif sorted(of_train) != sorted(of_val):
        own, drawn = ("train", "val") if val == "toy" else ("val", "train")
        raise ConfigError(
            f"data.{drawn} is toy, the generated set, which is the default, but data.{own} has other classes; "
            f"name images and annotations of yours for data.{drawn} too, if need be those of data.{own}"
        )


def _check_varied_data(spec: RunSpec) -> None:
    """Check the data that trials of a sweep may get in the place of the file's own."""
    if not isinstance(spec, SweepSpec):
        return
    checked = []
    for values in samples(spec.sweep.space):
        varied = {
            name: value
            for name, value in values.items()
            if name.startswith(("data.train", "data.val"))
        }
        if varied and varied not in checked:
            checked.append(varied)
            trial = spec.trial(values, seed=spec.train.seed)
            for look in (fetch_annotations, _check_train_data, _check_val_data, _check_classes):
                look(trial)


def _list_classes(source: Literal["toy"] | CocoSource, spec: RunSpec) -> list[tuple[int, str]]:
    if isinstance(source, CocoSource):
        content = read_well_formed(source.annotations, whole=False)
        return [(each["id"], each["name"]) for each in content["categories"]]
    return list(enumerate(spec.data.toy.shapes, start=1))


def _check_val_data(spec: RunSpec) -> None:
    if not isinstance(spec.data.val, CocoSource):
        return
    decides = (spec.sweep.metric, *spec.sweep.against) if isinstance(spec, SweepSpec) else ()
    needs_masks = [metric for metric in decides if metric not in NEEDS_NO_MASKS]
    if spec.data.val == spec.data.train and not needs_masks:
        return  # checked as training data, which is meant to have no masks
    faults = _require_usable(spec.data.val, training=False)
    missing_masks = [fault for fault in faults if fault.rule == MASK_AP_RULE]
    if missing_masks and needs_masks:
        setting, way_out = "sweep.metric", "set sweep.metric: val/box_ap"
        if needs_masks[0] != decides[0]:
            setting, way_out = "sweep.against", "leave it out"
        raise ConfigError(
            f"{setting}: {needs_masks[0]} needs drawn masks, but {missing_masks[0].file} "
            f"{missing_masks[0].value}; add `segmentation`, or {way_out}"
        )
