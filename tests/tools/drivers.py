"""Sweeps with the fake training that another process drives, so that a test can kill it; and what came out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestration.record.find_runs import list_runs
from orchestration.record.run_folder import RunFolder

SCRIPT = f'''
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from fake_training import make_training
import orchestration.connect.cluster
import orchestration.store.lease as lease
from orchestration.config.spec import SweepSpec
from orchestration.execute.sweep import run_sweep
orchestration.connect.cluster.PENDING_S, orchestration.connect.cluster.LOOK_S = 3.0, 0.5
lease.RENEW_S, lease.PATIENCE_S, lease.POLL_S = 1.0, 5.0, 0.5
values, start, step_s = map(json.loads, sys.argv[1:])

class Impatient:
    """A training that makes the process of an elastic trial, which unpickles it, look for workers more often."""

    def __init__(self, train):
        self.train = train

    def __call__(self, *arguments, **named):
        return self.train(*arguments, **named)

    def __setstate__(self, state):
        import orchestration.execute.fit
        orchestration.execute.fit.RESIZE_S = 5.0
        self.train = state["train"]

training = Impatient(make_training(step_s=step_s))
run_sweep(SweepSpec.model_validate(values), start=start, train_fn=training)
'''


def drive(
    values: dict[str, Any],
    *,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    start: str | None = None,
    step_s: float = 0.2,
) -> subprocess.Popen[bytes]:
    """Drive a sweep from another process; a step lasts `step_s` [s]. Shortages are told after 3 s.

    Of a store, a driver that is silent for 5 s has gone. An elastic trial looks for more workers every 5 s.
    """
    command = [sys.executable, "-c", SCRIPT, *map(json.dumps, (values, start, step_s))]
    return subprocess.Popen(
        command, env=environment, stderr=None if log is None else log.open("wb")
    )


def make_values(storage: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a sweep of eight short trials, one at a time."""
    values = {
        "name": "chaos",
        "storage": str(storage),
        "data": {"toy": {"train_images": 4, "val_images": 2, "size": 64}},
        "train": {"steps": 40, "batch_size": 4, "report_every": 5},
        "sweep": {
            "search": "tpe",
            "trials": 8,
            "concurrency": 1,
            "reduction": 2,
            "space": {
                "qam.iou_thr": {"uniform": [0.2, 0.8]},
                "solver.lr": {"loguniform": [1e-5, 1e-2]},
            },
        },
    }
    return values | changes


def trial_step(storage: Path, number: int) -> int:
    """Step of a trial of the only sweep; -1 before it began."""
    trials = [run for run in list_runs(storage) if run.tags.get("trial") == str(number)]
    return trials[0].step if trials else -1


def undisturbed(*thresholds: float) -> list[tuple[Any, ...]]:
    """The story of a grid over `qam.iou_thr` to which nothing happens; its trials have 40 steps."""
    losses = [(step, 1 / step) for step in range(5, 41, 5)]
    return [
        (
            f"{number:02}",
            {"qam.iou_thr": threshold},
            "finished",
            [losses, [(step, step / 40 * threshold) for step in (10, 20, 30, 40)]],
        )
        for number, threshold in enumerate(thresholds)
    ]


def story(folder: Path) -> list[tuple[Any, ...]]:
    """Values, end, losses and scores of every trial of a sweep."""
    told = []
    for path in sorted(folder.glob("*/status.json")):
        run = RunFolder(path.parent)
        status = run.stored()
        history = [run.history(name) for name in ("train/loss", "val/mask_ap")]
        told.append((status.id[-2:], status.values, status.status, history))
    return told
