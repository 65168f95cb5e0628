"""What methods learn in minutes: mask AP with its spread over seeds, on generated pictures and photographs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from benchmarks.gpu.place import Place, attempt
from benchmarks.harness import Table
from benchmarks.results import spread
from benchmarks.scenario import SMALL
from boxseg.build import run_training
from boxseg.config.method import BoxSegConfig
from boxseg.config.presets import merge
from boxseg.engine.events import EvalReport, StartReport, StepReport

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
METHODS = ("boxinst", "full", "supervised")
SEEDS = (0, 1, 2)
AP = "val/mask_ap"
TINY_RUN: dict[str, Any] = {
    "data": {"toy": {"train_images": 4, "val_images": 2, "size": 64}},
    "model": {"weights": "none"},
    "train": {"steps": 2, "batch_size": 2, "image_size": 64, "eval_every": 2, "panels": 0},
}
TINY = merge(SMALL, TINY_RUN)
"""For a CPU: the machinery, not the numbers."""
LARGE: dict[str, Any] = {
    "train": {"steps": 600, "batch_size": 8, "image_size": 480, "max_size": 512, "eval_every": 600}
}
"""Photographs at the size that they have."""
WORKERS = {"data": {"loader_workers": 4}, "train": {"panels": 0}}


class Silent:
    """A reporter that keeps nothing."""

    def on_start(self, report: StartReport) -> None: ...

    def on_best(self, step: int, metrics: dict[str, float]) -> None: ...

    def on_update(self, step: int, metrics: dict[str, Any]) -> None: ...

    def on_step(self, report: StepReport) -> None: ...

    def on_eval(self, report: EvalReport) -> None: ...

    def should_stop(self) -> bool:
        return False


def learning(place: Place) -> Iterator[Table]:
    """The generated set with every seed, then photographs of animals where they are there."""
    if not place.has_gpu:
        yield from _learn(place, "generated pictures, tiny", _toy(), TINY, SEEDS[:1])
        return
    yield from _learn(place, "generated pictures", _toy(), WORKERS, SEEDS)
    animals = _animals(place.data / "animals")
    if animals is None:
        missing = f"not run: {place.data / 'animals'} is not there"
        yield Table("Learning: animals, 480 px", ("what", "why"), [("all", missing)])
    else:
        yield from _learn(place, "animals, 480 px", animals, merge(WORKERS, LARGE), SEEDS)


def _toy() -> dict[str, Any]:
    return _settings(EXPERIMENTS / "ablation.yaml")


def _animals(folder: Path) -> dict[str, Any] | None:
    train, val = (folder / "annotations" / f"{name}.json" for name in ("train_masks", "val"))
    if not (train.exists() and val.exists()):
        return None
    sources = {
        name: {"images": str(folder / "images"), "annotations": str(path)}
        for name, path in (("train", train), ("val", val))
    }
    return merge(_settings(EXPERIMENTS / "ablation_animals.yaml"), {"data": sources})


def _settings(path: Path) -> dict[str, Any]:
    """What an experiment says of the method."""
    content = yaml.safe_load(path.read_text())
    return {name: value for name, value in content.items() if name in BoxSegConfig.model_fields}


def _learn(
    place: Place, name: str, settings: dict[str, Any], over: dict[str, Any], seeds: tuple[int, ...]
) -> Iterator[Table]:
    """All methods with the first seed, then with the next; the table grows."""
    found: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
    faults: dict[str, str] = {}
    longest = 0.0
    for seed in seeds:
        for method in METHODS:
            config = merge(merge(settings, over), {"method": method, "train": {"seed": seed}})
            result = attempt(place, partial(_run, place, config), needs_s=longest)
            if isinstance(result, str):
                faults[method] = f"seed {seed}: {result}"
            else:
                found[method].append(result)
                longest = max(longest, 60 * result[1])
            yield _table(name, found, faults)


def _table(
    name: str, found: dict[str, list[tuple[float, float]]], faults: dict[str, str]
) -> Table:
    rows = []
    for method, runs in found.items():
        ap = spread([100 * each for each, _ in runs], digits=1) if runs else ""
        minutes = fmean(each for _, each in runs) if runs else ""
        rows.append((method, len(runs), ap, minutes, faults.get(method, "")))
    columns = ("method", "seeds", "mask AP", "minutes each", "missing")
    return Table(f"Learning: {name}", columns, rows)


def _run(place: Place, settings: dict[str, Any]) -> tuple[float, float]:
    """Mask AP at the end, and minutes."""
    config = BoxSegConfig.model_validate(settings)
    began = time.monotonic()
    folder = place.folder / f"run-{time.time_ns()}"
    folder.mkdir()
    ended = run_training(
        config,
        folder=folder,
        data_root=place.folder,
        reporter=Silent(),
        device=place.device,
        threads=1,
    )
    return ended.metrics[AP], (time.monotonic() - began) / 60
