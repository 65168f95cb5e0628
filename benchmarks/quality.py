"""Whether the quality of labels tells their IoU, and which weights would tell it best, on sets with drawn masks."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Table
from benchmarks.outcome import last_run, val_data
from boxseg.coco.classes import find_labels
from boxseg.data.dataset import CocoBoxes
from boxseg.evaluation.pseudo_quality import GOOD_IOU, auroc, mask_iou
from boxseg.label.boxes import outline_in
from boxseg.label.maps import find_soft_masks, take_close_up
from boxseg.mask_parts import MaskPart, place_masks
from boxseg.predict import Predictor
from boxseg.structures import Sample

BOXES = 300
"""Of each set, about; all boxes of random images."""
RIDGE = 1.0
"""Pull of the weights towards 0, of measures scaled to a standard deviation of 1, for each set."""
COLUMNS = ("set", "network", "boxes", "clean cuts", "IoU", "told", "error", "AUROC")


@dataclass(frozen=True)
class Case:
    """One box with and without a network, and what its drawn mask says."""

    measures: dict[str, float]
    told: float
    iou: float
    is_clean: bool


def quality(options: argparse.Namespace) -> list[Table]:
    """The quality against the IoU on sets that `outcome` has labelled; weights fitted to all, and without each set."""
    tables = []
    for with_network in (True, False):
        sets: dict[str, list[Case]] = {}
        for name in options.sets:
            data = val_data(options.data / name, name)
            if data is not None and (options.folder / name / "seed0").exists():
                predictor = Predictor(last_run(options.folder / name / "seed0"))
                sets[name] = _cases(
                    data, predictor, 20 if options.quick else BOXES, with_network=with_network
                )
        if not sets:
            raise SystemExit(
                f"{options.folder}: no set was labelled; `--only outcome` does that first"
            )
        network = "yes" if with_network else "no"
        told = [
            _row(name, network, cases, [case.told for case in cases])
            for name, cases in sets.items()
        ]
        tables.append(Table("Quality of labels", COLUMNS, told))
        if len(sets) > 1:
            without = []
            for name, cases in sets.items():
                weights = _fit([others for other, others in sets.items() if other != name])
                without.append(
                    _row(name, network, cases, [_tell(weights, case) for case in cases])
                )
            tables.append(Table("With weights fitted to the other sets", COLUMNS, without))
        weights = _fit(list(sets.values()))
        title = f"Weights fitted to all of these sets, {'with' if with_network else 'without'} a network"
        tables.append(Table(title, ("measure", "weight"), list(weights.items())))
    return tables


def _cases(data: CocoBoxes, predictor: Predictor, boxes: int, *, with_network: bool) -> list[Case]:
    """What is found for all boxes of random images, until there are enough."""
    labels = torch.tensor(find_labels(data.class_names, predictor.class_names), dtype=torch.int64)
    found: list[Case] = []
    for index in map(int, np.random.default_rng(0).permutation(len(data))):
        sample, drawn = data[index], data.drawn_masks(index)
        if drawn.present.all() and len(found) < boxes:
            sample = replace(sample, labels=labels[sample.labels])
            found += _cases_of_image(sample, drawn.mask, predictor, with_network=with_network)
    return found


def _cases_of_image(
    sample: Sample, drawn: Tensor, predictor: Predictor, *, with_network: bool
) -> list[Case]:
    parts, outlines = [], []
    for row in range(len(sample.boxes)):
        close_up = take_close_up(predictor, sample, row)
        seen = find_soft_masks(predictor, [close_up])[0] if with_network else None
        outline = outline_in(sample, row, close_up, seen)
        parts.append(MaskPart(outline.mask, close_up.window.top, close_up.window.left))
        outlines.append(outline)
    found = torch.from_numpy(place_masks(parts, sample.original_size))
    ious = mask_iou(found, drawn).tolist()
    return [
        Case(outline.measures, outline.quality, iou, outline.is_clean)
        for outline, iou in zip(outlines, ious, strict=True)
    ]


def _row(name: str, network: str, cases: Sequence[Case], told: Sequence[float]) -> tuple[Any, ...]:
    true = np.array([case.iou for case in cases])
    clean = sum(case.is_clean for case in cases) / len(cases)
    tells = auroc(told, true >= GOOD_IOU)
    error = float(np.abs(np.asarray(told) - true).mean())
    return (
        name, network, len(cases), f"{clean:.0%}", float(true.mean()), float(np.mean(told)), error,
        "" if math.isnan(tells) else tells,
    )  # fmt: skip


def _tell(weights: dict[str, float], case: Case) -> float:
    """Clean cuts have a line of their own, which is not fitted here."""
    if case.is_clean:
        return case.told
    told = weights["always"] + sum(weights[name] * value for name, value in case.measures.items())
    return float(np.clip(told, 0, 1))


def _fit(sets: Sequence[Sequence[Case]]) -> dict[str, float]:
    """Weights of the measures that tell the IoU of masks which are no clean cuts; each set counts alike."""
    fitted = [[case for case in cases if not case.is_clean] for cases in sets]
    cases = [case for of_set in fitted for case in of_set]
    names = list(cases[0].measures)
    measures = np.array([[case.measures[name] for name in names] for case in cases])
    iou = np.array([case.iou for case in cases])
    share = np.concatenate([np.full(len(of_set), 1 / len(of_set)) for of_set in fitted if of_set])
    centre, middle = np.average(measures, axis=0, weights=share), np.average(iou, weights=share)
    spread = np.sqrt(np.average(np.square(measures - centre), axis=0, weights=share)) + 1e-9
    scaled = (measures - centre) / spread
    pull = RIDGE * len(fitted) / len(cases) * np.eye(len(names))
    found = (
        np.linalg.solve(
            scaled.T @ (share[:, None] * scaled) + pull, scaled.T @ (share * (iou - middle))
        )
        / spread
    )
    weights = {name: round(float(weight), 3) for name, weight in zip(names, found, strict=True)}
    return {"always": round(float(middle - centre @ found), 3)} | weights
