"""What a sweep costs its driver: trials that take no time, reading them, and going on after a stop."""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.harness import Table, Times, timed
from orchestration.config import SweepSpec, dump_resolved
from orchestration.journal import read_past
from orchestration.report import write_report
from orchestration.run_folder import RunFolder, RunStatus, own_process
from orchestration.search_space import Trial, TrialQueue
from orchestration.sweep import Sweep, SweepPlan, find_sweep
from orchestration.table import read_table
from orchestration.tracking import Tracker


def many_trials(folder: Path, trials: int) -> Table:
    """The driver's side of a sweep whose trials take no time, and reading it afterwards."""
    space = {"qam.iou_thr": {"uniform": [0.4, 0.8]}, "qam.k_top": {"choice": [1, 5, 10, 20]}}
    values = {"name": "many", "storage": folder, "train": {"steps": 90}, "sweep": {"space": space, "trials": trials}}
    spec = SweepSpec.model_validate(values)
    root = RunFolder(folder / "many" / "s")
    root.create(RunStatus("s", "many", kind="sweep", steps=trials, **own_process()), dump_resolved(spec))
    tracker = Tracker(folder, "many", logs=root.logs)
    sweep = Sweep(SweepPlan(spec, root.path, folder, "inline"), {}, tracker)
    chunks: list[float] = []
    memory = psutil.Process(os.getpid()).memory_info().rss
    for number in range(trials):
        began = time.process_time()
        trial = Trial(number, {"qam.iou_thr": 0.4 + 0.4 * number / trials, "qam.k_top": 10}, seed=0)
        sweep.note_drawn(trial)
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
    table, report, resume = Times(), Times(), Times()
    with timed(table):
        read_table(root.path, spec)
    with timed(report):
        write_report(root.path)
    root.finish("interrupted")
    with timed(resume):
        found = find_sweep(spec, "resume")
        assert found is not None
        past = read_past(found, spec.sweep.metric)
        Sweep(sweep.plan, {}, tracker, past)
        TrialQueue(spec.sweep, spec.train.seed, past)
    rows += [("state of all trials from their files [CPU s]", table.median), ("report [CPU s]", report.median)]
    rows += [("what `sweep --resume` does before the next trial [CPU s]", resume.median)]
    return Table(f"A sweep of {trials} trials that take no time", ("what", "value"), rows)
