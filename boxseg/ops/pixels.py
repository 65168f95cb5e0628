"""Small pictures and masks as numpy arrays (h, w, …): colours, neighbours, sizes."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from boxseg.mask_parts import MaskPart
from boxseg.ops.masks import pixels_inside

FloatArray = NDArray[np.floating]
BoolArray = NDArray[np.bool_]
ColorArray = NDArray[np.int64]

COLORS = 16
"""Colours that the pixels of a picture are sorted into at most."""
PIXELS_PER_COLOR = 20
"""Small pictures have fewer colours."""
COLOR_SAMPLE = 1500
"""Pixels of a picture that its colours are chosen from."""
STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""From a pixel to four of its eight neighbours, (rows, columns)."""


def sort_colors(lab: FloatArray) -> ColorArray:
    """The index (h, w) of each pixel's colour among the main colours of a picture (h, w, 3), which k-means finds."""
    pixels = lab.reshape(-1, 3)
    count = int(np.clip(len(pixels) // PIXELS_PER_COLOR, 2, COLORS))
    sample = pixels[
        np.linspace(0, len(pixels) - 1, min(len(pixels), COLOR_SAMPLE)).astype(np.int64)
    ]
    if len(sample) < count:
        return np.zeros(lab.shape[:2], dtype=np.int64)
    # so that a picture always has the same colours
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 8, 0.1)
    chosen = np.zeros((len(sample), 1), dtype=np.int32)
    centres = cv2.kmeans(sample, count, chosen, stop, 1, cv2.KMEANS_PP_CENTERS)[2]
    # less |pixel|², the same for all centres
    distance = np.square(centres).sum(axis=1) - 2 * pixels @ centres.T
    return distance.argmin(axis=1).reshape(lab.shape[:2])


def color_shares(color: ColorArray, region: BoolArray) -> FloatArray:
    """Share (`COLORS`,) of a region's pixels (h, w) that have each colour; 0 where it is empty."""
    return np.bincount(color[region], minlength=COLORS) / max(region.sum(), 1)


def color_overlap(color: ColorArray, one: BoolArray, other: BoolArray) -> float:
    """Overlap in [0, 1] of the colours of two regions (h, w); 0 where one is empty."""
    return float(np.minimum(color_shares(color, one), color_shares(color, other)).sum())


def pixels_of_box(box: FloatArray, size: tuple[int, int]) -> BoolArray:
    """`pixels_inside`, bool (h, w), of one box (4,)."""
    return pixels_inside(torch.from_numpy(box)[None], size)[0].numpy()


def box_ways(box: FloatArray, size: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """How far each column (1, w) and row (h, 1) is from the middle of a box (4,); 1 at its sides."""
    x, y = np.arange(size[1], dtype=np.float32) + 0.5, np.arange(size[0], dtype=np.float32) + 0.5
    across = np.abs(2 * x - box[0] - box[2]) / max(box[2] - box[0], 1)
    down = np.abs(2 * y - box[1] - box[3]) / max(box[3] - box[1], 1)
    return across[None], down[:, None]


def box_distance(box: FloatArray, size: tuple[int, int]) -> FloatArray:
    """How far each pixel (h, w) is from the middle of a box (4,): 1 on its inscribed ellipse, √2 in its corners."""
    return np.hypot(*box_ways(box, size))


def box_fit(mask: BoolArray, inside: BoolArray) -> float:
    """IoU of the mask's own box with the pixels of the given one; the mask lies inside and may be empty."""
    x1, y1, x2, y2 = MaskPart(mask).bounds()
    return float((x2 - x1) * (y2 - y1) / max(inside.sum(), 1))


def mask_overlap(one: BoolArray, other: BoolArray) -> float:
    """IoU of two masks (h, w); 0 where both are empty."""
    return float((one & other).sum() / max((one | other).sum(), 1))


def pair_neighbours(
    values: NDArray[Any], step: tuple[int, int]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Views of all pixels that have a neighbour one step (rows, columns) away, and of these neighbours."""
    height, width = values.shape[:2]
    down, right = step
    columns = (
        slice(max(-right, 0), width - max(right, 0)),
        slice(max(right, 0), width + min(right, 0)),
    )
    return values[: height - down, columns[0]], values[down:, columns[1]]


def squared_steps(lab: FloatArray, step: tuple[int, int]) -> FloatArray:
    """Squared colour distance of pixels and their neighbours one step away."""
    one, other = pair_neighbours(lab, step)
    return np.square(one - other).sum(axis=-1)


def resize(values: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """A picture or map at another (height, width); pixel centres correspond."""
    if values.shape[:2] == size:
        return values
    shrinks = size[0] < values.shape[0]
    return cv2.resize(
        values, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
