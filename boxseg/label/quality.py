"""How good the mask of a known box probably is: measures that need no drawn mask, and the IoU that they predict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from boxseg.label.cut import CLEAN_SEPARATION
from boxseg.ops.pixels import (
    BoolArray,
    FloatArray,
    box_distance,
    box_fit,
    mask_overlap,
    pixels_of_box,
    resize,
)

WEIGHTS_WITH_NETWORK = {
    "always": -0.818,
    "certainty": 0.846,
    "colors": -0.02,
    "fit": 0.295,
    "ragged": -0.058,
    "fill": -0.5,
    "oval": 0.381,
    "whole": 0.769,
    "crowd": 0.375,
    "among": -0.48,
    "beyond": -0.053,
}
WEIGHTS_WITHOUT_NETWORK = {
    "always": 0.012,
    "certainty": 0.324,
    "colors": 0.634,
    "fit": 0.203,
    "ragged": -0.079,
    "fill": -0.668,
    "oval": 0.588,
    "whole": -0.124,
    "crowd": 0.515,
    "among": -0.57,
}
"""Weights of the measures that `measure` gives, and a constant, `always`. They were fitted by least squares (ridge) to
drawn masks of 912 boxes: photographs of animals, pedestrians and COCO, and nuclei, each set with the same weight, with
five networks that had not seen these images. On a set that was left out, the mean absolute error was 0.05 to 0.11, the
mean was off by 0.02 at most, and masks below an IoU of 0.7 were found with an AUROC of 0.77 to 0.97. Without a network,
on 779 boxes: 0.07 to 0.12, 0.03, and 0.76 to 0.93. `python -m benchmarks --only quality` fits them."""
CLEAN_BASE, CLEAN_SLOPE, CLEAN_MOST = 0.86, 1.1, 0.98
"""IoU to expect of a clean cut: the base at the least separation, rising with the slope, up to the most. Clean cuts of
photographs had a mean IoU of 0.86 at a separation of 0.9, of nuclei 0.93 at 0.95, of generated pictures 1 at 0.99."""
RAGGED, GAPPY, DOUBTFUL = 2.2, 0.8, 0.8
"""A mask that is more `ragged` than the first, or whose `fit` is less than the second, is expected to have an IoU of no
more than the third."""
HOLLOW = 0.5
"""So is a clean cut that is more `hollow` than this: of a bottle, or of a figure drawn with lines, colours may see the
rim alone."""


@dataclass(frozen=True)
class Evidence:
    """What is known about each pixel (h, w) of the picture around a box."""

    settled: FloatArray
    """Probability of belonging to the object; 0 outside the box."""
    lone: FloatArray
    """The same without the pull of its neighbours."""
    by_color: BoolArray
    """Whether its colour is more frequent in the object than elsewhere."""


def measure(
    mask: BoolArray,
    evidence: Evidence,
    box: FloatArray,
    *,
    soft: FloatArray | None,
    other_boxes: FloatArray,
) -> dict[str, float]:
    """What a mask and the evidence that it came from look like.

    Args:
        mask: Bool (h', w'), the mask at any resolution.
        evidence: Maps (h, w).
        box: Float (4,), pixels of the maps.
        soft: Float (h, w) in [0, 1], map of the network, or None.
        other_boxes: Float (M, 4), the other known boxes that overlap this one, pixels of the maps.

    Returns:
        `certainty`: how far the lone probabilities in the box are from 0.5 (0 at 0.5, 1 at 0 and 1); `colors`: share of
        the box where colours agree with the mask; `fit`: IoU of the box with the bounding box of the settled map at
        0.5; `ragged`: log of the squared length of the outline over the area, 0 for a square; `fill`: share of the box
        that the mask covers; `oval`: IoU with the ellipse in the box; `whole`: share of the mask in its largest piece;
        `crowd`: share of the box that lies in other boxes; `among`: share of the mask that does, which exceeds `crowd`
        if the mask takes in a neighbouring object; with a network `beyond`: the largest value of its map outside the
        box.
    """
    size = evidence.settled.shape
    inside = pixels_of_box(box, size)
    on_maps = (resize(mask.astype(np.float32), size) > 0.5) & inside
    if not on_maps.any():  # too thin for their resolution
        on_maps = inside
    area = int(on_maps.sum())
    turns_down, turns_across = np.diff(on_maps, axis=0), np.diff(on_maps, axis=1)
    outline = int(turns_down.sum() + turns_across.sum())  # its length [px]
    piece_areas = np.bincount(ndimage.label(on_maps)[0].ravel())[1:]  # without the background
    oval = inside & (box_distance(box, size) <= 1)
    in_others = np.zeros(size, dtype=np.bool_)
    for other in other_boxes:
        in_others |= pixels_of_box(other, size)
    measures = {
        "certainty": float(np.abs(2 * evidence.lone[inside] - 1).mean()),
        "colors": float((evidence.by_color == on_maps)[inside].mean()),
        "fit": box_fit((evidence.settled > 0.5) & inside, inside),
        "ragged": float(np.log(max(outline, 4) ** 2 / (16 * area))),
        "fill": area / int(inside.sum()),
        "oval": mask_overlap(on_maps, oval),
        "whole": float(piece_areas.max() / area),
        "crowd": float(in_others[inside].mean()),
        "among": float(in_others[on_maps].mean()),
    }
    if soft is not None:
        measures["beyond"] = float(soft[~inside].max(initial=0))
    return measures


def expect_iou(measures: dict[str, float], *, with_network: bool) -> float:
    """IoU to expect of a mask with these measures: their weighted sum, kept in [0, 1]."""
    weights = WEIGHTS_WITH_NETWORK if with_network else WEIGHTS_WITHOUT_NETWORK
    expected = weights["always"] + sum(weights[name] * value for name, value in measures.items())
    # In a sum, other measures could make up for these two.
    if measures["ragged"] > RAGGED or measures["fit"] < GAPPY:
        expected = min(expected, DOUBTFUL)
    return float(np.clip(expected, 0, 1))


def expect_iou_of_clean(separation: float, hollow: float) -> float:
    """IoU to expect of a cut that is clean, see `measure_hollow`."""
    expected = min(CLEAN_BASE + CLEAN_SLOPE * (separation - CLEAN_SEPARATION), CLEAN_MOST)
    return min(expected, DOUBTFUL) if hollow > HOLLOW else expected


def measure_hollow(mask: BoolArray, soft: FloatArray | None) -> float:
    """Share of a mask (h, w) without its holes that are holes in which a network, map (h', w'), sees the object."""
    if soft is None:
        return 0.0
    on_maps = resize(mask.astype(np.float32), soft.shape) > 0.5
    filled = ndimage.binary_fill_holes(on_maps)
    return float((filled & ~on_maps & (soft > 0.5)).sum() / max(filled.sum(), 1))
