"""What `boxseg label` makes of boxes alone, against masks that were drawn by hand and are used for nothing else."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.commands import BOXSEG
from benchmarks.grabcut import from_grabcut
from benchmarks.harness import Table
from benchmarks.results import spread
from boxseg.config.method import CocoSource
from boxseg.data.dataset import CocoBoxes
from boxseg.data.mask_files import MaskFile
from boxseg.evaluation.pseudo_quality import auroc, mask_iou
from boxseg.files.writing import write_atomic
from boxseg.label.expected import expect_mean_iou
from boxseg.label.sources import (
    Source,
    from_boxes,
    from_file,
)
from orchestration.record.files import digest

DATA = Path(__file__).parents[2] / "shared" / "data"
SETS = ("pennfudan", "animals", "nuclei", "coco-mini")
SPLITS = {"coco-mini": ("train_boxes_super12", "val_super12")}
"""Annotation files of the boxes to learn from and of those to label, whose masks are measured with."""
USUAL_SPLITS = ("train_boxes", "val")
"""Of all other sets."""
SIMPLE: dict[str, Source] = {
    "filled box": from_boxes,
    "GrabCut": from_grabcut,
}
"""What needs no training."""


@dataclass(frozen=True)
class Outcome:
    """One call of `boxseg label`, measured."""

    boxes: int
    iou: float
    """Mean over all boxes."""
    bad_auroc: float | None
    """How well the quality tells masks of an IoU below 0.7 from the others; None where there are none of one kind."""
    quality_error: float
    """Mean distance of quality and IoU."""
    expected: float
    low: float
    high: float
    minutes: float | None
    """Of the whole command; None where it went on with an earlier one."""

    @property
    def holds(self) -> bool:
        """Whether the mean IoU lies in the interval that was told."""
        return self.low <= self.iou <= self.high


def outcome(options: argparse.Namespace) -> list[Table]:
    """Label the validation boxes of every data set that is there, with each seed; what was measured before stays."""
    present = {
        name: data
        for name in options.sets
        if (data := val_data(options.data / name, name)) is not None
    }
    if not present:
        raise SystemExit(
            f"{options.data}: none of {', '.join(options.sets)} is there; name their folder with --data"
        )
    rows: list[tuple[Any, ...]] = []
    means: list[tuple[Any, ...]] = []
    for name, data in present.items():
        simple = baselines(data, options.folder / name / "baselines.json")
        found = [_label(options, name, seed) for seed in range(options.seeds)]
        rows.extend(_row(name, seed, each) for seed, each in enumerate(found))
        means.append(_mean_row(name, found, simple))
    note = (
        f"`boxseg label` of the validation boxes, trained on the training boxes with --minutes {options.minutes:g}. "
        "GrabCut and filled box: of the same boxes. AUROC: does quality tell IoU below 0.7; error: mean distance of "
        "quality and IoU."
    )
    return [
        Table(
            "Masks from boxes, mean IoU with drawn masks",
            (
                "set",
                "boxes",
                "boxseg label",
                "filled box",
                "GrabCut",
                "AUROC",
                "error",
                "interval holds",
                "minutes",
            ),
            means,
            note,
        ),
        Table(
            "Each run",
            ("set", "seed", "IoU", "expected", "interval", "holds", "AUROC", "error", "minutes"),
            rows,
        ),
    ]


def val_data(folder: Path, name: str) -> CocoBoxes | None:
    """The validation boxes of a set, with their masks; None where it is not there."""
    path = folder / "annotations" / f"{SPLITS.get(name, USUAL_SPLITS)[1]}.json"
    return (
        CocoBoxes(CocoSource(images=folder / "images", annotations=path), train=False)
        if path.exists()
        else None
    )


def _label(options: argparse.Namespace, name: str, seed: int) -> Outcome:
    """The outcome of one command, run now unless it was measured before."""
    folder, kept = (
        options.folder / name / f"seed{seed}",
        options.folder / name / f"seed{seed}" / "outcome.json",
    )
    request = {"minutes": options.minutes, "threads": options.threads, "settings": options.set}
    if kept.exists():
        content = json.loads(kept.read_text())
        if content["request"] != request:
            raise SystemExit(
                f"{kept}: measured with {content['request']}; name another --folder, or remove it"
            )
        return Outcome(**content["outcome"])
    went_on = folder.exists()
    train, val = (
        options.data / name / "annotations" / f"{split}.json"
        for split in SPLITS.get(name, USUAL_SPLITS)
    )
    settings = [f"train.seed={seed}", f"resources.cpus_per_worker={options.threads}", *options.set]
    command = [
        *BOXSEG,
        "label",
        val,
        "--train-on",
        train,
        "--minutes",
        f"{options.minutes:g}",
        "--output",
        folder,
    ]
    began = time.monotonic()
    subprocess.run(
        [*map(str, command), "--json", *(f"--set={each}" for each in settings)],
        check=True,
        stdout=sys.stderr,
    )
    minutes = None if went_on else (time.monotonic() - began) / 60
    data = val_data(options.data / name, name)
    assert data is not None
    labels = from_file(MaskFile.read(folder / "labels.coco.json"), data)
    found = measure([pair for pairs in _pairs(data, labels) for pair in pairs], minutes=minutes)
    write_atomic(kept, json.dumps({"request": request, "outcome": asdict(found)}, indent=1))
    return found


def measure(pairs: Sequence[tuple[float, float]], *, minutes: float | None) -> Outcome:
    """The outcome of labels, each a pair of quality and IoU with the drawn mask."""
    quality, iou = np.asarray(pairs, dtype=np.float64).T
    expected = expect_mean_iou(quality.tolist())
    assert expected is not None
    return Outcome(
        boxes=len(pairs),
        iou=float(iou.mean()),
        bad_auroc=None if math.isnan(told := auroc(quality, iou >= 0.7)) else told,
        quality_error=float(np.abs(quality - iou).mean()),
        expected=expected.mean,
        low=expected.low,
        high=expected.high,
        minutes=minutes,
    )


def baselines(data: CocoBoxes, kept: Path) -> dict[str, float]:
    """Mean IoU of what needs no training, on all boxes; measured once."""
    key = digest(data.source.annotations)
    if kept.exists() and (content := json.loads(kept.read_text()))["data"] == key:
        return dict(content["iou"])
    found = {}
    for name, source in SIMPLE.items():
        pairs = [pair for of_image in _pairs(data, source) for pair in of_image]
        found[name] = statistics.fmean(iou for _, iou in pairs)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(kept, json.dumps({"data": key, "iou": found}, indent=1))
    return found


def _pairs(data: CocoBoxes, source: Source) -> Iterator[list[tuple[float, float]]]:
    """Of each image with drawn masks quality and IoU of each box."""
    for index in range(len(data)):
        ids, true = data.annotation_ids(index), data.drawn_masks(index)
        if ids and true.present.all():
            found = source([(data[index], ids)])[0]
            ious = mask_iou(found.mask, true.mask).tolist()
            yield list(zip(found.quality.tolist(), ious, strict=True))


def _row(name: str, seed: int, found: Outcome) -> tuple[Any, ...]:
    interval, holds = f"{found.low:.2f} to {found.high:.2f}", "yes" if found.holds else "no"
    told, minutes = ("" if each is None else each for each in (found.bad_auroc, found.minutes))
    return (
        name,
        seed,
        found.iou,
        found.expected,
        interval,
        holds,
        told,
        found.quality_error,
        minutes,
    )


def _mean_row(name: str, found: Sequence[Outcome], simple: dict[str, float]) -> tuple[Any, ...]:
    minutes = [each.minutes for each in found if each.minutes is not None]
    return (
        name,
        found[0].boxes,
        spread([each.iou for each in found], digits=3),
        *simple.values(),
        spread([each.bad_auroc for each in found if each.bad_auroc is not None], digits=3),
        spread([each.quality_error for each in found], digits=3),
        f"{sum(each.holds for each in found)} of {len(found)}",
        statistics.fmean(minutes) if minutes else "",
    )


def last_run(labels: Path) -> Path:
    """Folder of the run that made the labels of an output folder."""
    return sorted(path.parent for path in labels.glob("runs/*/*/status.json"))[-1]
