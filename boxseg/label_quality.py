"""How good the mask of a known box probably is: measures that need no drawn mask, and the IoU to expect by them."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from boxseg.label_cut import CLEAN_SEPARATION, Cut
from boxseg.ops.pixels import BoolArray, FloatArray, box_distance, box_fit, mask_overlap, pixels_of_box, resize

SMALL_SIDE = 20.0
"""Boxes with a longer side below this [px] count as small."""
WITH_NETWORK = {
    "always": -1.353,
    "certainty": 1.597,
    "fit": 0.19,
    "ragged": -0.062,
    "fill": -0.875,
    "oval": 0.644,
    "whole": 0.636,
    "small": 0.105,
}
WITHOUT_NETWORK = {
    "always": -0.092,
    "certainty": 1.019,
    "fit": 0.231,
    "ragged": -0.062,
    "fill": -0.795,
    "oval": 0.693,
    "whole": -0.175,
    "small": 0.08,
}
"""Weights of `measure`'s measures, `always` added: least squares (ridge) over drawn masks of 935 boxes, photographs of
animals, pedestrians and COCO, and nuclei, each set with the same weight, networks that were not trained on these
images. On a set that was left out, the mean absolute error was 0.07 to 0.13, and masks below an IoU of 0.7 were told
with an AUROC of 0.70 to 0.90; without a network 0.09 to 0.13 and 0.76 to 0.85."""
CLEAN_BASE, CLEAN_SLOPE, CLEAN_MOST = 0.86, 1.1, 0.98
"""IoU to expect of a clean cut: the first, and so much more for each separation above the least. Clean cuts of
photographs had a mean IoU of 0.86 at a separation of 0.9, of nuclei 0.93 at 0.95, of generated pictures 1 at 0.99."""
RAGGED, GAPPY, DOUBTFUL = 2.2, 0.8, 0.8
"""Masks with a longer outline, or with a worse fit to their box, are never expected to be better than the last."""


def measure(mask: BoolArray, settled: FloatArray, box: FloatArray, side: float) -> dict[str, float]:
    """What a mask and the map that it came from look like.

    Args:
        mask: Bool (h', w'), the mask at any resolution.
        settled: Float (h, w), probability of each pixel to be of the object before it is made to fill its box.
        box: Float (4,), pixels of the map.
        side: Longer side of the box in pixels of the image.

    Returns:
        `certainty`: how far the probabilities in the box are from a half; `fit`: IoU of the box and that of the map at
        a half; `ragged`: log of the squared length of the outline over the area, 0 for a square; `fill`: share of the
        box; `oval`: IoU with the ellipse in the box; `whole`: share of the largest piece; `small`: log of how far the
        box is below `SMALL_SIDE`, 0 above.
    """
    inside = pixels_of_box(box, settled.shape)
    there = (resize(mask.astype(np.float32), settled.shape) > 0.5) & inside
    if not there.any():
        there = inside
    area = int(there.sum())
    outline = sum(int(np.diff(there, axis=axis).sum()) for axis in (0, 1))
    pieces = np.bincount(ndimage.label(there)[0].ravel())[1:]
    oval = inside & (box_distance(box, settled.shape) <= 1)
    return {
        "certainty": float(np.abs(2 * settled[inside] - 1).mean()),
        "fit": box_fit((settled > 0.5) & inside, inside),
        "ragged": float(np.log(max(outline, 4) ** 2 / (16 * area))),
        "fill": area / int(inside.sum()),
        "oval": mask_overlap(there, oval),
        "whole": float(pieces.max() / area),
        "small": float(np.log(max(SMALL_SIDE / side, 1))),
    }


def expect_iou(measures: dict[str, float], *, with_network: bool) -> float:
    """IoU to expect of a mask with these measures: a straight line through what is known of drawn masks."""
    line = WITH_NETWORK if with_network else WITHOUT_NETWORK
    told = line["always"] + sum(line[name] * value for name, value in measures.items())
    if measures["ragged"] > RAGGED or measures["fit"] < GAPPY:
        told = min(told, DOUBTFUL)
    return float(np.clip(told, 0, 1))


def expect_iou_of_clean(cut: Cut) -> float:
    """IoU to expect of a cut that is clean."""
    return min(CLEAN_BASE + CLEAN_SLOPE * (cut.separation - CLEAN_SEPARATION), CLEAN_MOST)
