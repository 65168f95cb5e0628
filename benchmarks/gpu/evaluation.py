"""How many images a second are evaluated, and boxes labelled, by the number that is looked at together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu.place import Place, attempt, memory
from benchmarks.harness import Table
from benchmarks.scenario import STEP, Scenario, build
from boxseg.engine.train import Progress, optimise, save
from boxseg.label import maps
from boxseg.label.boxes import label_together
from boxseg.predict import Predictor, predictor
from boxseg.structures import Batch, Sample

TOGETHER = (1, 4, 16, 32)
CLOSE_UPS = (8, 64, 256)


def evaluation(place: Place) -> Iterator[Table]:
    """Prediction with up to 100 detections for each image, then labels for known boxes."""
    small = not place.has_gpu
    scenario = Scenario(64 if small else 800, boxes=7, batch_size=2 if small else 32, small=small)
    trainer, batch = build(scenario, "full", place.folder, place.device, fcos={"score_thr": 1e-6})
    optimise(trainer, batch.split(max(len(batch) // 8, 1))[0], STEP)
    checkpoints = place.folder / "checkpoints"
    checkpoints.mkdir()
    saved = save(trainer, checkpoints, Progress(step=1))
    del trainer
    images = [image.cpu() for image in batch.weak]
    columns = ("at once", "a second", "peak MB")
    note = f"Images of {scenario.size}², random weights; reading files and AP are not counted."
    rows: list[tuple[Any, ...]] = []
    for together in TOGETHER[:1] if small else TOGETHER:
        found = attempt(place, partial(_predict, place, saved, images, together))
        rows.append((together, found, "") if isinstance(found, str) else (together, *found))
        yield Table("Prediction, images", columns, rows, note)
    samples = _samples(batch, images, 2 if small else 8)
    rows = []
    for together in CLOSE_UPS[:1] if small else CLOSE_UPS:
        found = attempt(place, partial(_label, place, saved, samples, together))
        rows.append((together, found, "") if isinstance(found, str) else (together, *found))
        yield Table("Labels, boxes", columns, rows, "The outline of each box is made on the CPU.")


def _predict(
    place: Place, saved: Path, images: list[Tensor], together: int
) -> tuple[float, float | str]:
    many = patch.object(predictor, "BATCH_PIXELS", together * images[0][0].numel())
    with many, patch.dict(predictor.BATCH_SIZE, {place.device: together}):
        found = Predictor(saved, device=place.device)
        return _rate(place, lambda: found(images), len(images))


def _label(
    place: Place, saved: Path, samples: list[Sample], together: int
) -> tuple[float, float | str]:
    with patch.dict(maps.CLOSE_UPS_AT_ONCE, {place.device: together}):
        found = Predictor(saved, device=place.device)
        boxes = sum(len(each.boxes) for each in samples)
        return _rate(place, lambda: label_together(found, samples), boxes)


def _rate(place: Place, action: Callable[[], object], count: int) -> tuple[float, float | str]:
    """How many a second, and the peak memory, of the second of two calls."""
    action()
    with memory(place) as peak:
        began = time.perf_counter()
        action()
        seconds = time.perf_counter() - began
    return count / seconds, peak[0] or ""


def _samples(batch: Batch, images: list[Tensor], count: int) -> list[Sample]:
    size = (int(images[0].shape[1]), int(images[0].shape[2]))
    return [
        Sample(image, boxes.cpu(), torch.full((len(boxes),), maps.UNKNOWN), -1, size)
        for image, boxes in zip(images[:count], batch.boxes, strict=False)
    ]
