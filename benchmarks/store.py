"""What a store that answers late takes from a run: its images are fetched before the first step."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Table
from benchmarks.scenario import Scenario, write_pictures
from boxseg.build import run_training
from boxseg.config.method import BoxSegConfig
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import RunSpec
from orchestration.execute.payload import Payload
from orchestration.execute.worker import train_here
from orchestration.record.run_folder import RunFolder, RunStatus, new_id, own_process
from orchestration.store.client import Store
from orchestration.store.data import fetch_data

sys.path.append(str(Path(__file__).parents[1] / "tests" / "tools"))
from object_store import ObjectStore, object_store, using

DELAY_S = 0.03
"""How late the store answers a request [s]."""
PICTURE = (480, 640)
"""Height and width of the files [px]: what most of COCO has."""


def late_store(folder: Path, *, images: int, steps: int, small: bool) -> list[Table]:
    """Steps with images from a folder and from a late store, and the fetching of so many images.

    The server is moto's, behind a pause before every answer.
    """
    source = write_pictures(folder / "files", images, PICTURE, 7)
    with object_store() as server, using(server, folder / "cache"):
        stored = _upload(source)
        server.delay_s = DELAY_S
        return [
            _steps(folder, source, stored, server, steps=steps, small=small),
            _fetching(folder, stored, server, images),
        ]


def _upload(source: dict[str, Path]) -> dict[str, str]:
    """Put a data set into the bucket; gives its addresses."""
    bucket = Store("s3://bucket")
    for path in source["images"].iterdir():
        bucket.upload(f"data/images/{path.name}", path)
    bucket.upload("data/boxes.json", source["annotations"])
    return {"images": "s3://bucket/data/images", "annotations": "s3://bucket/data/boxes.json"}


@dataclass
class _Trained:
    """What was seen of one run."""

    asked_before: int
    """Requests before its first step."""
    asked_later: int
    step_s: float
    """Median of its steps, the first apart; without the wait."""
    wait_s: float
    """Median of what these steps waited for their images."""


def _steps(
    folder: Path,
    source: dict[str, Path],
    stored: dict[str, str],
    server: ObjectStore,
    *,
    steps: int,
    small: bool,
) -> Table:
    """The wait in each step; `loader_workers` is 0, so that reading and decoding count as waiting."""
    scenario = Scenario(64 if small else 512, small=small)
    places: dict[str, dict[str, Any]] = {
        "a folder": source,
        "a store": stored,
        "a store, fetched before": stored,
    }
    rows = []
    for name, data in places.items():
        seen = _train(folder, scenario, data, server, steps)
        share = 100 * seen.wait_s / (seen.step_s + seen.wait_s)
        rows.append((name, seen.asked_before, seen.asked_later, seen.step_s, seen.wait_s, share))
    columns = (
        "images in",
        "requests before the first step",
        "requests later",
        "step [s]",
        "wait for images in it [s]",
        "wait [%]",
    )
    network = "a small network" if small else "R-50"
    title = f"A run of {network} at {scenario.size} px, a store that answers after {1000 * DELAY_S:.0f} ms"
    return Table(title, columns, rows)


def _train(
    folder: Path, scenario: Scenario, data: dict[str, Any], server: ObjectStore, steps: int
) -> _Trained:
    values = scenario.values(
        "full",
        data={"train": data, "val": data, "max_val_images": 1},
        train={"steps": steps, "eval_every": steps, "report_every": 1, "panels": 0},
    )
    spec = RunSpec.model_validate({"name": "late", "storage": folder / "runs", **values})
    run = RunFolder(spec.storage / spec.name / new_id())
    status = RunStatus(run.path.name, spec.name, steps=steps, **own_process())
    run.create(status, dump_resolved(spec))
    before: list[int] = []

    def train(config: BoxSegConfig, **options: Any) -> Any:
        before.append(len(server.requests))
        return run_training(config, **options)

    server.requests.clear()
    train_here(Payload(spec, run.path, folder, train_fn=train), device="cpu")
    seen = [report.metrics for report in run.reports() if "train/step_s" in report.metrics][1:]
    return _Trained(
        asked_before=before[0],
        asked_later=len(server.requests) - before[0],
        step_s=statistics.median(each["train/step_s"] for each in seen),
        wait_s=statistics.median(each["train/data_wait_s"] for each in seen),
    )


def _fetching(folder: Path, stored: dict[str, str], server: ObjectStore, images: int) -> Table:
    """Wall seconds of all that a run fetches, with and without the delay, each into an empty cache."""
    rows = []
    for number, delay_s in enumerate((0.0, DELAY_S, 0.0, DELAY_S)):
        server.delay_s = delay_s
        with using(server, folder / f"cache-{number}"):
            spec = RunSpec.model_validate({"name": "late", "data": {"train": stored}})
            began = time.monotonic()
            fetch_data(spec)
            seconds = time.monotonic() - began
        alone = images * delay_s
        rows.append((1000 * delay_s, seconds, images / seconds, alone))
    columns = ("answers after [ms]", "seconds", "images per s", "delays one after the other [s]")
    return Table(f"Fetching {images} images", columns, rows)
