"""Runs that are killed on purpose, and whether what comes out equals an undisturbed run to the last digit."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import forked
import torch
import yaml
from safetensors.torch import load_file

from boxseg.config.method import ToyConfig
from boxseg.data.toy import ensure_toy
from boxseg.files.writing import write_atomic
from orchestration.record.find_runs import list_runs
from orchestration.record.run_folder import RunFolder, RunStatus

NAME = "drill"
STEPS, PERIOD = 6, 2
"""Updates of a run, and those between two evaluations."""
SETTINGS: dict[str, Any] = {
    "name": NAME,
    "model": {"backbone": "timm/test_resnet", "weights": "none", "channels": 16, "tower_convs": 1},
    "cond": {"branch_channels": 16, "branch_convs": 1, "max_per_image": 8},
    "train": {
        "steps": STEPS,
        "eval_every": PERIOD,
        "report_every": 1,
        "batch_size": 2,
        "image_size": 64,
        "panels": 1,
        "collapse_fill": None,
    },
    "solver": {"optimizer": "adamw", "lr": 1e-2, "warmup": 0},
    "fcos": {"score_thr": 1e-5},
    "ema": {"momentum": 0.5},
    "teacher": {"cand_score_thr": 1e-12},
    "qam": {"color_weight": 0.0, "iou_thr": 0.0, "score_thr": 0.0, "class_match": False},
    "pc": {
        "p_start": 1.0,
        "p_end": 1.0,
        "bank_q_thr": 0.0,
        "bank_s_thr": 0.0,
        "bank_iou_thr": 1.0,
        "min_area": 0,
        "require_better": False,
    },
    "resources": {"runner": "inline"},
}
"""The smallest run in which every part of the state counts: candidates, pasted peers, averaged teacher, a best that
moves."""

Phase = Literal["start", "step", "evaluation", "writing", "last evaluation", "end"]
PHASES: tuple[Phase, ...] = get_args(Phase)
POLL_S = 0.002
"""Time between two looks at the files of a run that is about to be killed [s]."""
LIMIT_S = 300.0
"""A command that takes longer hangs; alone on a machine it takes a few seconds."""
SWEEP_LIMIT_S = 400.0
"""The same of a sweep, for which Ray has to start."""
CHANGING = ("train/images_per_s", "train/step_s", "train/data_wait_s", "system/")
"""Metrics that are no function of the settings."""


def make_experiment(folder: Path, **changes: Any) -> Path:
    """An experiment file, and its data beside it: few pictures, boxes without masks, so that box AP decides."""
    toy = ToyConfig(train_images=4, val_images=3, size=64, seed=3, shapes=("disc",))
    train, val = ensure_toy(folder / "data", toy)
    content = json.loads(val.annotations.read_text())
    for annotation in content["annotations"]:
        annotation.pop("segmentation", None)
    boxes = folder / "boxes.json"
    boxes.write_text(json.dumps(content))
    sources = {"train": train, "val": val.model_copy(update={"annotations": boxes})}
    data = {name: source.model_dump(mode="json") for name, source in sources.items()}
    path = folder / "experiment.yaml"
    write_atomic(path, yaml.safe_dump({**SETTINGS, "data": data, **changes}))
    return path


@dataclass(frozen=True)
class Moment:
    """When to kill a process: some time after it has reached a phase for the first time."""

    phase: Phase
    delay_s: float
    is_lost: bool = False
    """Whether its machine goes with it, and with all that it had on its disk."""


def draw_moments(
    chance: random.Random, count: int, *, length_s: float, lost: float = 0.0
) -> list[Moment]:
    """Moments for the processes of one run, one after the other.

    Half of them are anywhere in a run of `length_s` [s], half where files change and an end is near: at once, or a bit
    later. `lost` is the share of those in which the machine goes too.
    """
    moments = []
    for _ in range(count):
        phase, longest_s = chance.choice(PHASES[2:]), chance.choice((0.0, 0.1, 0.5))
        if chance.random() < 0.5:
            phase, longest_s = "start", length_s
        moments.append(Moment(phase, chance.uniform(0, longest_s), chance.random() < lost))
    return moments


@dataclass
class Place:
    """Where runs are kept: what commands call it, and where it is on the machine that they run on."""

    storage: str
    folder: Path
    output: Path
    """Gets what commands print."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Of that machine."""

    def runs(self) -> set[str]:
        """Names of the runs and sweeps that are there."""
        return {path.parent.name for path in self.folder.glob(f"{NAME}/*/status.json")}

    def replace_machine(self) -> None:
        """Go on with another one, which has nothing of it yet."""
        raise NotImplementedError("a folder goes with its machine")

    def has(self, run: str) -> bool:
        """Whether somebody who has lost the machine can go on with a run."""
        raise NotImplementedError("a folder goes with its machine")


@dataclass
class Story:
    """What happened to one run."""

    run: RunFolder | None = None
    """None until it has a status: what is killed before can only be started anew."""
    kills: list[Phase] = field(default_factory=list)
    """Where it was when it was killed, one for each kill."""
    codes: list[int] = field(default_factory=list)
    """Exit codes of the processes that ended by themselves."""
    longest_s: float = 0.0
    """Longest time of a process that ended by itself."""

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        assert self.run is not None
        return self.run.path


def run_with_kills(
    experiment: Path,
    place: Place,
    moments: Sequence[Moment] = (),
    *,
    on_kill: Callable[[Phase, Moment], object] = lambda *_: None,
) -> Story:
    """Train, kill the process at each of some moments and go on with `--resume`, to the end.

    Args:
        experiment: The file with its settings.
        place: Where the run is kept.
        moments: Of the processes, one after the other; the last process ends by itself.
        on_kill: Is told of each kill at once: where the process was, and the moment.

    Raises:
        TimeoutError: a process hung.
    """
    story = Story()
    known = place.runs()
    reported = 0  # how many reports earlier processes wrote
    for moment in (*moments, None):
        resume = ["--resume", story.folder.name] if story.run else []
        watch = Watch(story.run, reported)
        began = time.monotonic()
        command = forked.start(
            ["train", experiment, f"--set=storage={place.storage}", *resume],
            place.output,
            place.environment,
        )
        # Until the moment has come; the last process, and one that is faster, ends by itself.
        while moment is not None and not command.ended:
            watch.run = story.run = story.run or find_new(place, known)
            if watch.has_begun and moment.phase in ("start", watch.phase()):
                command.process.join(moment.delay_s)
                break
            time.sleep(POLL_S)
        if moment is not None and not command.ended:
            watch.run = story.run = story.run or find_new(place, known)
            story.kills.append(watch.phase())
            command.kill()
            reported = len(story.run.reports_since(0)[0]) if story.run else 0
            on_kill(story.kills[-1], moment)
            if moment.is_lost:
                place.replace_machine()
                name = story.run.path.name if story.run else ""
                story.run = RunFolder(place.folder / NAME / name) if place.has(name) else None
        else:
            story.codes.append(command.wait(LIMIT_S))
            story.run = story.run or find_new(place, known)
            story.longest_s = max(story.longest_s, time.monotonic() - began)
    return story


def find_new(place: Place, known: set[str]) -> RunFolder | None:
    """The run or sweep of a place that is not among those known before; None if there is none."""
    here = {path.parent.name for path in place.folder.glob(f"{NAME}/*/status.json")}
    found = here - known
    return RunFolder(place.folder / NAME / found.pop()) if found else None


class Watch:
    """Tells by a run's files where its present process is."""

    def __init__(self, run: RunFolder | None, reported: int = 0) -> None:
        """`reported`: how many reports earlier processes wrote."""
        self.run, self._reported = run, reported

    @property
    def has_begun(self) -> bool:
        """False while a machine does not have the run that it is to go on with."""
        return self.run is None or self.run.status_path.exists()

    def phase(self) -> Phase:
        """Where the process is in its work."""
        if self.run is None or not self.has_begun:
            return "start"
        if self.run.stored().status == "finished":
            return "end"
        if list(self.run.path.glob("checkpoints/.*")):
            return "writing"
        reports = [
            each
            for each in self.run.reports_since(0)[0][self._reported :]
            if not _is_of_machine(each.metrics)
        ]
        if not reports:
            return "start"
        step = reports[-1].step
        evaluated = any(name.startswith("val/") for name in reports[-1].metrics)
        if evaluated or step % PERIOD:
            return "step"
        return "last evaluation" if step == STEPS else "evaluation"


def _is_of_machine(metrics: dict[str, float]) -> bool:
    return any(name.startswith("system/") for name in metrics)


def differences(folder: Path, other: Path) -> list[str]:
    """In what two finished runs of the same settings differ, a line each; times and pace do not count."""
    found = []
    told, expected = told_by(folder), told_by(other)
    for name in sorted(told.keys() | expected.keys()):
        if told.get(name) != expected.get(name):
            found.append(f"{name}: {told.get(name)!r:.300}, not {expected.get(name)!r:.300}")
    for pointer in ("last", "best"):
        if not same_weights(*(each / "checkpoints" / pointer for each in (folder, other))):
            found.append(f"weights of {pointer}")
    return found


def same_weights(checkpoint: Path, other: Path) -> bool:
    """Whether a checkpoint has both networks, and they are those of the other one."""
    paths = [
        [each / f"{network}.safetensors" for each in (checkpoint, other)]
        for network in ("student", "teacher")
    ]
    return all(path.exists() and _same(load_file(path), load_file(its)) for path, its in paths)


def told_by(folder: Path) -> dict[str, Any]:
    """What a run's files say of it, without times and pace."""
    run = RunFolder(folder)
    status = run.stored()
    names = {
        name
        for report in run.reports_since(0)[0]
        for name in report.metrics
        if not name.startswith(CHANGING)
    }
    about = {each: _about(folder / "checkpoints" / each) for each in ("last", "best")}
    drawn = [
        path
        for place in ("samples", "evaluation")
        for path in sorted((folder / place).glob("[!.]*"))
    ]
    return {
        "status": (status.status, status.step, status.steps, status.failure),
        "metrics": {
            name: value for name, value in status.metrics.items() if not name.startswith(CHANGING)
        },
        "best": (status.best, status.best_step),
        "checkpoints": about,
        "folders of checkpoints": sorted(
            path.name for path in (folder / "checkpoints").glob("step-*")
        ),
        "half written": [str(path) for path in (folder / "checkpoints").glob(".*")],
        "drawn": [str(path.relative_to(folder)) for path in drawn],
        **{f"history of {name}": run.history(name) for name in names},
    }


def _about(checkpoint: Path) -> dict[str, Any]:
    if not (checkpoint / "about.json").exists():
        return {}
    about = json.loads((checkpoint / "about.json").read_text())
    return {name: about[name] for name in ("step", "metrics", "best")}


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) for name, value in one.items()
    )


def tracking_faults(storage: Path, uri: str | None = None) -> list[str]:
    """In what MLflow, asked by its own client, differs from the runs under a storage, a line each.

    Every run has to be there once, at the same end, with the same latest metrics and the same best steps.

    Args:
        storage: Where the runs are.
        uri: Of MLflow; null: a file in the storage.
    """
    import mlflow  # takes seconds to load

    client = mlflow.MlflowClient(tracking_uri=uri or f"sqlite:///{storage / 'mlflow.db'}")
    experiments = client.search_experiments()
    tracked = client.search_runs([each.experiment_id for each in experiments], max_results=5000)
    by_id: dict[str, list[Any]] = {}
    for each in tracked:
        by_id.setdefault(each.data.tags.get("boxseg.run", ""), []).append(each)
    runs = list_runs(storage)
    found = [
        f"{name or each.info.run_id}: no folder"
        for name in by_id.keys() - {run.id for run in runs}
        for each in by_id[name]
    ]
    for run in runs:
        of_run = by_id.get(run.id, [])
        if len(of_run) != 1:
            found.append(f"{run.id}: {len(of_run)} times")
            continue
        found += [f"{run.id}: {fault}" for fault in _faults_of(client, run, of_run[0])]
    return found


def _faults_of(client: Any, run: RunStatus, tracked: Any) -> Iterator[str]:
    status = "FINISHED" if run.status == "finished" else "another"
    if tracked.info.status != status:
        yield f"{tracked.info.status}, but the folder says {run.status}"
    for name, value in run.metrics.items():
        if tracked.data.metrics.get(name) != value:
            yield f"{name} is {tracked.data.metrics.get(name)}, not {value}"
    for name in ("val/box_ap", "train/loss"):
        history = dict(RunFolder(run.folder).history(name))
        points = {
            point.step: point.value
            for point in client.get_metric_history(tracked.info.run_id, name)
        }
        if points != history:
            yield f"{name} has the points {points}, not {history}"
