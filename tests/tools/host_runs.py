"""Sweeps that train for real on a cluster of machines, and what came out, as the laptop sees it."""

from __future__ import annotations

import json
from typing import Any

from drills import SETTINGS
from host_cluster import HostCluster

FIRST_IMAGE = """
from pathlib import Path
from boxseg.config.method import ToyConfig
from boxseg.data.toy import ensure_toy
train, _ = ensure_toy(Path("drawn"), ToyConfig(train_images=1, val_images=1, size=64))
next(train.images.glob("*.png")).rename("image.png")
"""
"""Draws `image.png`."""


def tiny_sweep(*rates: float, workers: int = 1, steps: int = 4, period: int = 2) -> dict[str, Any]:
    """Settings of a sweep that trains for real with each of some learning rates, one after the other."""
    return {
        **SETTINGS,
        "data": {"toy": {"train_images": 4, "val_images": 3, "size": 64, "seed": 3}},
        "train": SETTINGS["train"] | {"steps": steps, "eval_every": period, "panels": 0},
        "resources": {"runner": "ray_train", "workers": workers},
        "sweep": {
            "search": "grid",
            "trial_scheduler": "none",
            "concurrency": 1,
            "space": {"solver.lr": {"choice": list(rates)}},
        },
    }


def tracked_runs(cluster: HostCluster) -> dict[str, dict[str, Any]]:
    """What MLflow has, asked over the network: id of the run -> its info and latest metrics."""
    script = """
import json, sys, urllib.request
def ask(path, body):
    request = urllib.request.Request(f"{sys.argv[1]}/api/2.0/mlflow/{path}", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    return json.load(urllib.request.urlopen(request))
places = ask("experiments/search", {"max_results": 100})["experiments"]
found = ask("runs/search", {"experiment_ids": [each["experiment_id"] for each in places], "max_results": 1000})
print(json.dumps(found.get("runs", [])))
"""
    told = cluster.laptop.run(["python", "-c", script, cluster.tracking_uri])
    runs = {}
    for run in json.loads(told.stdout):
        tags = {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}
        metrics = {each["key"]: each["value"] for each in run["data"].get("metrics", [])}
        assert tags["boxseg.run"] not in runs, "MLflow has it twice"
        runs[tags["boxseg.run"]] = run["info"] | {"metrics": metrics}
    return runs
