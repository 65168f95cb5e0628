"""How far labels fall where boxes are drawn less well than they could be, on sets with drawn masks."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from benchmarks.harness import Table
from benchmarks.outcome import SIMPLE, last_run, val_data
from boxseg.data.dataset import CocoBoxes
from boxseg.evaluation.pseudo_quality import mask_iou
from boxseg.label.sources import Source, from_run
from boxseg.predict import Predictor

SHARES = (0.0, 0.02, 0.05, 0.1)
"""How far each side of a box is moved at most, as a share of the box's width or height."""
BOXES = 100
"""Of each set, about; all boxes of random images."""


def jitter(options: argparse.Namespace) -> list[Table]:
    """Mean IoU with drawn masks by how far boxes were moved, with the run of seed 0 that `outcome` left."""
    rows: list[tuple[Any, ...]] = []
    for name in options.sets:
        data = val_data(options.data / name, name)
        folder = options.folder / name / "seed0"
        if data is None or not folder.exists():
            continue
        sources = {"boxseg label": from_run(Predictor(last_run(folder)), data)} | SIMPLE
        indices = _some_images(data, 20 if options.quick else BOXES)
        count = sum(len(data.annotation_ids(index)) for index in indices)
        for what, source in sources.items():
            means = []
            for share in SHARES:
                means.append(statistics.fmean(_ious(data, indices, source, share)))
            rows.append((name, count, what, *means))
    if not rows:
        raise SystemExit(
            f"{options.folder}: no set was labelled; `--only outcome` does that first"
        )
    columns = ("set", "boxes", "masks", *(f"moved by {share:.0%}" for share in SHARES))
    note = (
        "Each side is moved by up to that share of the box's width or height, at random; mean IoU."
    )
    return [Table("Boxes that are not tight", columns, rows, note)]


def _some_images(data: CocoBoxes, boxes: int) -> list[int]:
    """Random images with drawn masks that have so many boxes together, or all."""
    chosen: list[int] = []
    count = 0
    for index in map(int, np.random.default_rng(0).permutation(len(data))):
        ids = data.annotation_ids(index)
        if count < boxes and ids and data.drawn_masks(index).present.all():
            chosen.append(index)
            count += len(ids)
    return chosen


def _ious(data: CocoBoxes, indices: list[int], source: Source, share: float) -> Iterator[float]:
    """IoU of each box of some images; what is measured with are the drawn masks, which stay where they are."""
    for index in indices:
        sample, true = data[index], data.drawn_masks(index).mask
        moved = move_sides(sample.boxes, share, seed=index)
        sample = replace(sample, boxes=clip_boxes_to_image(moved, sample.original_size))
        found = source([(sample, data.annotation_ids(index))])[0]
        yield from mask_iou(found.mask, true).tolist()


def move_sides(boxes: Tensor, share: float, *, seed: int) -> Tensor:
    """Move each side of boxes (N, 4) by up to a share of their width or height, the same way for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return boxes + share * sides * (2 * torch.rand(boxes.shape, generator=generator) - 1)
