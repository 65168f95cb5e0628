"""Sweep folders as a sweep of many trials leaves them, made in no time."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import SweepSpec
from orchestration.record.run_folder import Failure, RunFolder, RunStatus
from orchestration.record.table import describe
from orchestration.record.trial import Trial

SPACE: dict[str, Any] = {
    "qam.iou_thr": {"uniform": [0.4, 0.8]},
    "solver.lr": {"loguniform": [1e-4, 1e-2]},
    "qam.k_top": {"choice": [1, 5, 10, 20]},
    "method": {"choice": ["qam", "full"]},
}
STEPS = 240
NOISE = 0.004


def value_of(values: dict[str, Any]) -> float:
    """What the metric of a trial would be without noise: `qam.iou_thr` decides, `qam.k_top` helps, the rest is idle."""
    return 0.2 + 0.5 * (values["qam.iou_thr"] - 0.4) + 0.02 * math.log10(values["qam.k_top"])


def write_sweep(
    storage: Path, *, settings: int, seeds: int = 1, asha: bool = True, sweep_id: str = "s"
) -> Path:
    """A finished sweep: with `asha` two thirds of the trials stopped at step 80; every 50th failed."""
    sweep = {"space": SPACE, "trials": settings, "seeds": list(range(seeds)), "burn_in": 1 / 3}
    sweep |= {"trial_scheduler": "asha" if asha else "none"}
    spec = SweepSpec.model_validate(
        {
            "name": "many",
            "storage": storage,
            "train": {"steps": STEPS, "eval_every": 80},
            "sweep": sweep,
        }
    )
    folder = RunFolder(storage / "many" / sweep_id)
    status = RunStatus(
        sweep_id, "many", kind="sweep", steps=settings * seeds, created=1000.0, started=1000.0
    )
    folder.create(status, dump_resolved(spec))
    folder.update(status="finished", ended=5000.0, tags={"git_commit": "0" * 40, "seed": "0"})
    draw = random.Random(0)
    for number, (_, seed) in enumerate(itertools.product(range(settings), range(seeds))):
        if seed == 0:
            values = {
                "qam.iou_thr": draw.uniform(0.4, 0.8),
                "solver.lr": 10 ** draw.uniform(-4, -2),
            }
            values |= {
                "qam.k_top": draw.choice([1, 5, 10, 20]),
                "method": draw.choice(["qam", "full"]),
            }
        noisy = value_of(values) + draw.gauss(0, NOISE)
        steps = 80 if asha and number % 3 else STEPS
        write_trial(folder, Trial(number, values, seed), noisy, steps, failed=number % 50 == 49)
    return folder.path


def write_trial(sweep: RunFolder, trial: Trial, value: float, steps: int, *, failed: bool) -> None:
    """The folder of one trial; its files are written directly, because a thousand of them take long otherwise."""
    folder = RunFolder(sweep.path / f"{sweep.path.name}-{trial.number:02d}")
    folder.path.mkdir()
    status = "failed" if failed else "finished" if steps == STEPS else "stopped"
    curve = (
        []
        if failed
        else [(step, value * (step / STEPS) ** 0.3) for step in range(80, steps + 1, 80)]
    )
    metrics = {"val/mask_ap": curve[-1][1], "val/box_ap": 0.5} if curve else {}
    about = RunStatus(
        folder.path.name,
        "many",
        status=status,  # type: ignore[arg-type]
        created=1000.0 + trial.number,
        started=1001.0 + trial.number,
        ended=1061.0 + trial.number,
        step=steps,
        steps=STEPS,
        metrics=metrics,
        best=metrics,
        best_step=steps if curve else None,
        failure=Failure("NonFiniteLossError", "step 12: the loss is nan <&>") if failed else None,
        description=describe(trial.values),
        values=trial.values,
        parent="..",
        tags={"seed": str(trial.seed), "trial": str(trial.number)},
    )
    folder.status_path.write_text(json.dumps(asdict(about)))
    lines = [
        {"time": 1.0, "step": step, "metrics": {"train/loss": 1 / step}}
        for step in range(10, steps + 1, 10)
    ]
    lines += [
        {"time": 1.0, "step": step, "metrics": {"val/mask_ap": each}} for step, each in curve
    ]
    lines.sort(key=lambda line: line["step"])  # type: ignore[arg-type,return-value]
    folder.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
