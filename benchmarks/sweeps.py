"""What a run and a sweep cost beside their training: fixed costs on Ray and MLflow, and the driver with many trials."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import yaml

from benchmarks.harness import Table, Times, timed
from boxseg.build import run_training
from boxseg.config import BoxSegConfig
from orchestration.config import SweepSpec, dump_resolved
from orchestration.report import write_report
from orchestration.run_folder import RunFolder, RunStatus, own_process
from orchestration.search_space import Trial
from orchestration.sweep import Sweep, SweepPlan
from orchestration.table import read_table
from orchestration.tracking import Tracker

TINY: dict[str, Any] = {
    "data": {"toy": {"train_images": 8, "val_images": 2, "size": 64}},
    "model": {"backbone": "resnet18", "weights": "none", "channels": 32, "tower_convs": 1},
    "cond": {"branch_channels": 32, "branch_convs": 1},
    "train": {"batch_size": 2, "image_size": 64, "report_every": 10, "eval_every": 0.99, "panels": 0},
}
TRIALS = 3
LIMIT_S = 900
"""A command that takes longer has met a machine too busy to measure on."""


def fixed_costs(folder: Path, steps: int) -> Table:
    """Seconds until something trains, and a run with MLflow beside the bare loop; wall time, on a quiet machine."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "orchestration.cli", "--help"], check=True, capture_output=True)
    rows: list[tuple[Any, ...]] = [("boxseg --help", time.perf_counter() - began)]
    experiment = TINY | {"name": "costs", "storage": str(folder), "train": TINY["train"] | {"steps": steps}}
    bare = _bare_pace(folder, experiment)
    for runner in ("inline", "ray_train"):
        started, runs = _start("train", folder, experiment | {"resources": {"runner": runner}})
        pace = _pace(runs[0])
        rows += [(f"run, {runner}: command to first report", _first(runs[0]) - started)]
        rows += [(f"run, {runner}: pace / bare loop", pace / bare)]
    short = {"sweep": {"space": {"solver.lr": {"loguniform": [1e-5, 1e-3]}}, "trials": TRIALS, "concurrency": 1}}
    short |= {"train": TINY["train"] | {"steps": 10, "report_every": 1}}
    started, trials = _start("sweep", folder, experiment | short)
    gaps = [_first(after) - (before.stored().ended or 0) for before, after in pairwise(trials)]
    rows += [("sweep: command to first report", _first(trials[0]) - started)]
    rows += [("sweep: trial end to next trial's first report, median", median(gaps))]
    return Table(f"Fixed costs, {steps} steps of a tiny network", ("what", "s, or ratio"), rows)


def many_trials(folder: Path, trials: int) -> Table:
    """The driver's side of a sweep whose trials take no time, and reading it afterwards."""
    space = {"qam.iou_thr": {"uniform": [0.4, 0.8]}, "qam.k_top": {"choice": [1, 5, 10, 20]}}
    values = {"name": "many", "storage": folder, "train": {"steps": 90}, "sweep": {"space": space, "trials": trials}}
    spec = SweepSpec.model_validate(values)
    root = RunFolder(folder / "many" / "s")
    root.create(RunStatus("s", "many", kind="sweep", steps=trials, **own_process()), dump_resolved(spec))
    sweep = Sweep(SweepPlan(spec, root.path, folder, "inline"), {}, Tracker(folder, "many", logs=root.logs))
    chunks: list[float] = []
    memory = psutil.Process(os.getpid()).memory_info().rss
    for number in range(trials):
        began = time.process_time()
        trial = Trial(number, {"qam.iou_thr": 0.4 + 0.4 * number / trials, "qam.k_top": 10}, seed=0)
        sweep.open_trial(trial)
        own = sweep.plan.trial_folder(trial)
        for step in (30, 60, 90):
            own.report(step, {"val/mask_ap": 0.3 + number / trials / 10, "val/box_ap": 0.5}, is_best=True)
        own.finish("finished")
        sweep.close_trial(number, "finished")
        chunks.append(time.process_time() - began)
    tenth = max(trials // 10, 1)
    rows: list[tuple[Any, ...]] = [
        ("one trial, first tenth [CPU s]", median(chunks[:tenth])),
        ("one trial, last tenth [CPU s]", median(chunks[-tenth:])),
        ("growth of the driver's memory [MB]", (psutil.Process(os.getpid()).memory_info().rss - memory) / 1e6),
    ]
    restore, report = Times(), Times()
    with timed(restore):
        read_table(root.path, spec)
    with timed(report):
        write_report(root.path)
    rows += [("state of all trials from their files [CPU s]", restore.median), ("report [CPU s]", report.median)]
    return Table(f"A sweep of {trials} trials that take no time", ("what", "value"), rows)


def _bare_pace(folder: Path, experiment: dict[str, Any]) -> float:
    """Seconds per step of the loop alone."""

    class Clock:
        def __init__(self) -> None:
            self.times: list[tuple[int, float]] = []

        def on_step(self, report: Any) -> None:
            self.times.append((report.step, time.time()))

        def on_eval(self, report: Any) -> None: ...

        def should_stop(self) -> bool:
            return False

    config = BoxSegConfig.model_validate({key: experiment[key] for key in (*TINY, "train")})
    clock = Clock()
    run_training(config, folder=folder / "bare", data_root=folder / ".data", reporter=clock)
    (first, began), (last, ended) = clock.times[0], clock.times[-2]
    return (ended - began) / (last - first)


def _pace(run: RunFolder) -> float:
    """Seconds per step between the first report and the last before an evaluation."""
    reports = [report for report in run.reports_since(0)[0] if "train/loss" in report.metrics]
    return (reports[-2].time - reports[0].time) / (reports[-2].step - reports[0].step)


def _start(command: str, folder: Path, experiment: dict[str, Any]) -> tuple[float, list[RunFolder]]:
    """Run a command to its end; when it began, and the folders of its trials or of its run, in order."""
    path, before = folder / "costs.yaml", set((folder / "costs").glob("*"))
    path.write_text(yaml.safe_dump(json.loads(json.dumps(experiment))))
    began = time.time()
    line = [sys.executable, "-m", "orchestration.cli", command, str(path)]
    subprocess.run(line, check=True, capture_output=True, timeout=LIMIT_S)
    (made,) = set((folder / "costs").glob("*")) - before
    trials = sorted(made.glob("*/status.json"))
    return began, [RunFolder(each.parent) for each in trials] or [RunFolder(made)]


def _first(run: RunFolder) -> float:
    """When the run told of its first steps."""
    return next(report.time for report in run.reports_since(0)[0] if "train/loss" in report.metrics)
