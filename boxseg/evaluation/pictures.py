"""Files of the last evaluation for people: precision and recall, a table of classes, the worst images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as mask_utils
from torch import Tensor

from boxseg.coco.masks import Rle, decode_part
from boxseg.data.dataset import CocoBoxes
from boxseg.drawing import drawing, figure_label, save_figure, visible
from boxseg.evaluation.ap import CONFIDENT, CocoScores, ImageResult
from boxseg.evaluation.panels import TILE, PanelRow, draw_panels, scale_picture
from boxseg.files.writing import csv_text, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORST = 10
"""Images in the picture of the worst."""
WORST_COLUMNS = ("image", "boxes", "drawn (best IoU found)", "found (score)")
MOST_DRAWN = 1000
"""Masks of an image in the picture of the worst."""
TITLES = {"mask": "masks", "box": "boxes", "boundary": "boundaries of masks"}
"""Kind of AP -> what is measured."""
MAX_CURVES = 10
"""Most classes with a curve each; with more, only the mean is drawn."""


def draw_evaluation(
    data: CocoBoxes, results: Sequence[ImageResult], scores: CocoScores, folder: Path
) -> None:
    """Write tables and pictures of an evaluation; one that fails is logged and left out.

    Args:
        data: What was evaluated on.
        results: Detections of all its images.
        scores: How good they are.
        folder: Gets `precision_recall.png`, `classes.csv` and `worst.png`.
    """
    with drawing(folder / "classes.csv") as path:
        folder.mkdir(exist_ok=True)
        write_atomic(path, visible(class_table(scores, data.class_names)))
    if scores.precision:
        with drawing(folder / "precision_recall.png") as path:
            save_figure(draw_precision_recall(scores, data.class_names), path)
    if scores.image_ap:
        with drawing(folder / "worst.png") as path:
            draw_worst(data, results, scores, path)


def class_table(scores: CocoScores, class_names: Sequence[str]) -> str:
    """CSV with a line for each class: AP over all IoUs, at 0.5 and at 0.75, of masks and boxes; empty if undefined."""
    # All lines have the same columns, whatever is defined for their class.
    columns = [f"{kind}_{name}" for kind in scores.precision for name in ("ap", "ap50", "ap75")]
    lines = []
    for label, class_name in enumerate(class_names):
        defined = {key: f"{value:.4f}" for key, value in scores.of_class(label).items()}
        lines.append({"class": class_name} | dict.fromkeys(columns, "") | defined)
    return csv_text(lines)


def draw_precision_recall(scores: CocoScores, class_names: Sequence[str]) -> Figure:
    """Precision over recall at IoU 0.5, the mean over classes and each class of few; masks left, boxes right."""
    # takes a while to load, and the last evaluation alone needs it
    from matplotlib.figure import Figure

    kinds = list(scores.precision)
    figure = Figure(figsize=(4.8 * len(kinds), 4.2), dpi=100, layout="constrained")
    all_axes = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(all_axes, kinds, strict=True):
        precision = scores.precision[kind]
        recalls = np.linspace(0, 1, precision.shape[1])
        is_defined = (precision[0] > -1).all(axis=0)  # (recalls, classes) -> (classes,)
        defined = np.flatnonzero(is_defined).tolist()
        if 1 < len(defined) <= MAX_CURVES:
            for label in defined:
                name = figure_label(class_names[label])
                axes.plot(recalls, precision[0, :, label], linewidth=1, alpha=0.8, label=name)
        for row, name in ((0, "0.5"), (5, "0.75")):
            mean = precision[row][:, defined].mean(axis=1) if defined else np.zeros_like(recalls)
            style = "k" if row == 0 else "k--"
            axes.plot(recalls, mean, style, linewidth=2, label=f"all classes, IoU {name}")
        axes.set(title=TITLES.get(kind, kind), xlabel="recall", ylabel="precision")
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(
            fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False
        )
    return figure


def draw_worst(
    data: CocoBoxes,
    results: Sequence[ImageResult],
    scores: CocoScores,
    path: Path,
    *,
    count: int = WORST,
) -> Path:
    """Draw panels of the images of lowest AP, the lowest first."""
    by_image = {result.image_id: result for result in results}
    ranked = sorted((ap, image_id) for image_id, ap in scores.image_ap.items())
    rows = []
    for _, image_id in ranked[:count]:
        index = data.index_of(image_id)
        rows.append(panel_row(data, index, by_image[image_id]))
    return draw_panels(rows, path, columns=WORST_COLUMNS)


def panel_row(data: CocoBoxes, index: int, result: ImageResult) -> PanelRow:
    """An image, its boxes, its drawn masks with the IoU of what was found there, and the confident detections.

    All at the size of a panel's tile: at full size, the masks of a hundred objects would be a hundred frames. Of
    thousands of objects the first `MOST_DRAWN` are drawn, as a tile shows no more.
    """
    sample, drawn = data[index], data.drawn_rles(index)
    true = [rle for rle in drawn if rle is not None][:MOST_DRAWN]
    confident = np.flatnonzero(result.scores >= CONFIDENT).tolist()
    detected = [result.rles[row] for row in confident]
    shown = confident[:MOST_DRAWN]
    picture = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
    scale = min(TILE / max(picture.size), 1.0)
    small = scale_picture(picture, scale)
    is_drawn = len(true) == len(drawn)
    return PanelRow(
        image=torch.from_numpy(np.array(small)).permute(2, 0, 1),
        boxes=sample.boxes * scale,
        teacher_masks=_small_masks(true, small) if is_drawn else None,
        quality=torch.tensor(_best_ious(true, detected)) if is_drawn else None,
        student_masks=_small_masks(detected[:MOST_DRAWN], small),
        scores=torch.from_numpy(result.scores[shown]),
    )


def _small_masks(rles: Sequence[Rle], picture: Image.Image) -> Tensor:
    """Masks bool (n, h, w) at the size of a picture."""
    masks = torch.zeros(len(rles), picture.height, picture.width, dtype=torch.bool)
    for mask, rle in zip(masks, rles, strict=True):
        height, width = rle["size"]
        part = decode_part(rle, (height, width))
        small = part.resized((height, width), (picture.height, picture.width))
        mask.copy_(torch.from_numpy(small))  # a view of `masks`
    return masks


def _best_ious(masks: Sequence[Rle], detected: Sequence[Rle]) -> list[float]:
    """For each mask the IoU with the most similar of those found; 0 if there is none."""
    if not masks or not detected:
        return [0.0] * len(masks)
    no_crowds = [0] * len(masks)
    ious = np.asarray(mask_utils.iou(list(detected), list(masks), no_crowds))  # (detected, masks)
    return ious.max(axis=0).tolist()
