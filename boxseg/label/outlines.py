"""Joins what a network says about a known box with colours and edges to one mask, and the IoU to expect of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from boxseg.coco.segmentations import Size
from boxseg.config.method import MAX_ENLARGEMENT
from boxseg.errors import ShapeError
from boxseg.files.pixels import cielab
from boxseg.label.cut import Cut, add_left_out, cut_by_colors, longer_side, scaled
from boxseg.label.quality import Evidence, expect_iou, expect_iou_of_clean, measure, measure_hollow
from boxseg.ops.pixels import (
    STEPS,
    BoolArray,
    ColorArray,
    FloatArray,
    box_distance,
    box_ways,
    pair_neighbours,
    pixels_of_box,
    resize,
    sort_colors,
    squared_steps,
)

WORK_SIDE = 96
"""The longer side of a box is scaled to this [px], but enlarged by no more than `MAX_ENLARGEMENT`."""
ROUNDS = 6
"""How often colours and probabilities are computed in turn."""
COLOR = 0.8
"""Factor of the log ratio of a colour."""
RARE = 0.02
"""Added to the shares of each colour, so that a colour that was seen once or never says little."""
SMOOTHING = 0.7
"""Logits by which a neighbour of the same colour, one pixel away, pulls at most; others pull less."""
MIDDLE = 2.5
"""Slope of the prior of place: logits for all the way from the inscribed ellipse of a box to its middle."""
PLATEAU = 0.3
"""The prior stops rising after this share of that way, because holes are in the middle."""
CORNER = 5.0
"""Slope at which the prior falls over the last fifth of the way from middle to side, in logits for all the way."""
NETWORK = 1.0
"""Factor of the network's logits."""
CUT = 3.0
"""Logit of GrabCut's mask where it can be trusted fully."""
CUT_SEPARATION = (0.45, 0.8)
CUT_FIT = (0.8, 0.95)
"""GrabCut's mask is not trusted below the first value of either, and fully above the second of both; see `Cut`."""
SEEN = 0.7
"""Least probability of a pixel for which the network says that a clean cut lacks it."""
NO_BOXES = np.zeros((0, 4), dtype=np.float32)
"""Other boxes where there are none."""
REACHED = 0.85
"""Every row and column of a box gets a pixel of at least this probability, as boxes are tight."""


@dataclass(frozen=True)
class Outline:
    """The mask of one known box."""

    mask: BoolArray
    """(h, w), pixels of the picture whose middle lies in the box; empty only for a box without area."""
    quality: float
    """Expected IoU with a mask drawn by hand, in [0, 1]; 0 for a box without area, and where no mask was found and the
    box takes its place."""
    is_clean: bool
    """Whether colours alone made the mask, see `boxseg.label.cut`."""
    measures: dict[str, float]
    """What the quality was computed from, see `boxseg.label.quality`."""


def find_outline(
    image: NDArray[np.uint8],
    box: FloatArray,
    soft: FloatArray | None = None,
    other_boxes: FloatArray = NO_BOXES,
) -> Outline:
    """The best mask of a known box, at the resolution of the image.

    ```python
    window = image[:, 30:220, 10:150]  # the box and about a third of its sides around it
    outline = find_outline(window, np.array([30.0, 40.0, 110.0, 150.0], dtype=np.float32))
    ```

    Args:
        image: uint8 (3, h, w), RGB; a window of the image with the box and what is around it.
        box: Float (4,), x1 y1 x2 y2 in pixels of the window.
        soft: Float (h', w') in [0, 1], the map of a network over the same window at any resolution; None: no network.
        other_boxes: Float (M, 4), other known boxes in pixels of the window, whether inside it or not.

    Raises:
        ShapeError: an argument has another shape or type.
    """
    _check(image, box, soft, other_boxes)
    size = (image.shape[1], image.shape[2])
    inside = pixels_of_box(box, size)
    if not inside.any():
        return Outline(inside, 0.0, False, {})
    # Most of the thousands of boxes that a picture may have are somewhere else.
    begin_before, end_behind = other_boxes[:, :2] < box[2:], other_boxes[:, 2:] > box[:2]
    other_boxes = other_boxes[(begin_before & end_behind).all(axis=1)]
    picture = np.ascontiguousarray(image.transpose(1, 2, 0))  # as OpenCV wants it
    cut = cut_by_colors(picture, box)

    # Everything else is computed with the box at one size, so that time and weights do not depend on the resolution.
    scale = min(WORK_SIDE / longer_side(box), MAX_ENLARGEMENT)
    work_picture, boxes = scaled(picture, np.concatenate([box[None], other_boxes]), scale)
    work_box, work_others = boxes[0], boxes[1:]
    work_size = work_picture.shape[:2]
    network = None if soft is None else resize(soft.astype(np.float32), work_size)
    lab = cielab(work_picture)
    color = sort_colors(lab)
    if cut.is_clean:
        seen = _see_object(network, work_box, work_others, work_size)
        cut = replace(cut, mask=add_left_out(cut.mask, color, seen, scale) & inside)
    evidence = _weigh(lab, color, work_box, network, cut)
    probs = _reach_the_sides(evidence.settled, pixels_of_box(work_box, work_size))
    mask = cut.mask if cut.is_clean else (resize(probs, size) > 0.5) & inside
    if not mask.any():  # nothing was found, so the box is the mask, with quality 0
        return Outline(inside, 0.0, False, {})
    measures = measure(mask, evidence, work_box, soft=network, other_boxes=work_others)
    quality = expect_iou(measures, with_network=soft is not None)
    if cut.is_clean:
        quality = expect_iou_of_clean(cut.separation, measure_hollow(mask, network))
    return Outline(mask, quality, cut.is_clean, measures)


def _check(
    image: NDArray[np.uint8],
    box: FloatArray,
    soft: FloatArray | None,
    other_boxes: FloatArray,
) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ShapeError(
            f"image has dtype {image.dtype} and shape {image.shape}; uint8 RGB (3, h, w) is needed"
        )
    if box.shape != (4,):
        raise ShapeError(f"box has shape {box.shape}; x1 y1 x2 y2 are needed")
    if soft is not None and (soft.ndim != 2 or 0 in soft.shape):
        raise ShapeError(f"soft has shape {soft.shape}; a map (h, w) is needed")
    if other_boxes.ndim != 2 or other_boxes.shape[1] != 4:
        raise ShapeError(f"other_boxes has shape {other_boxes.shape}; boxes (M, 4) are needed")


def _see_object(
    soft: FloatArray | None, box: FloatArray, other_boxes: FloatArray, size: Size
) -> BoolArray:
    """The pixels (h, w) of a box, and of no other known box, that the network takes for the object."""
    if soft is None:
        return np.zeros(size, dtype=np.bool_)
    seen = (soft > SEEN) & pixels_of_box(box, size)
    for other in other_boxes:
        seen &= ~pixels_of_box(other, size)
    return seen


def _weigh(
    lab: FloatArray, color: ColorArray, box: FloatArray, soft: FloatArray | None, cut: Cut
) -> Evidence:
    """Weigh place in the box, GrabCut's mask, network, colours and edges against each other."""
    inside = pixels_of_box(box, color.shape)
    # Evidence that does not depend on the result is added up once, in logits.
    prior = _prior_of_place(box, color.shape)
    cut_mask = resize(cut.mask.astype(np.float32), color.shape)
    prior += CUT * _trust(cut) * (2 * cut_mask - 1)
    if soft is not None:
        prior += NETWORK * _logit(_reach_the_sides(soft, inside))
    weights = _neighbour_weights(lab)
    # Colours and neighbours are weighed by the mask that they help to find, so they are computed in turn with it.
    probs = _sigmoid(prior) * inside
    for _ in range(ROUNDS):
        ratio = _color_ratio(color, probs)
        pull = SMOOTHING * _sum_of_neighbours(2 * probs - 1, weights)
        probs = _sigmoid(prior + COLOR * ratio[color] + pull) * inside
    final_ratio = _color_ratio(color, probs)[color]
    lone = _sigmoid(prior + COLOR * final_ratio) * inside
    return Evidence(settled=probs, lone=lone, by_color=final_ratio > 0)


def _neighbour_weights(lab: FloatArray) -> list[FloatArray]:
    """For each of `STEPS`, how strongly two neighbours pull at each other: more where their colours are alike."""
    squares = [squared_steps(lab, step) for step in STEPS]
    total = sum(square.sum() for square in squares)
    count = sum(square.size for square in squares)
    # What counts as alike depends on how busy the picture is.
    scale = 2 * total / max(count, 1) + 1e-6
    weights = []
    for square, step in zip(squares, STEPS, strict=True):
        weights.append(np.exp(-square / scale) / np.hypot(*step))
    return weights


def _trust(cut: Cut) -> float:
    """How far GrabCut's mask can be trusted, in [0, 1]."""
    trust = 1.0
    for value, (low, high) in ((cut.separation, CUT_SEPARATION), (cut.fit, CUT_FIT)):
        trust *= float(np.clip((value - low) / (high - low), 0, 1))
    return trust


def _prior_of_place(box: FloatArray, size: Size) -> FloatArray:
    """Logit (h, w) of each place in a box: objects are in the middle and seldom in the corners."""
    # below 0 outside the ellipse
    hill = MIDDLE * np.minimum(1 - box_distance(box, size), PLATEAU)
    across, down = box_ways(box, size)
    return hill - CORNER * np.maximum(np.maximum(across, down) - 0.8, 0)


def _reach_the_sides(probs: FloatArray, inside: BoolArray) -> FloatArray:
    """Raise probabilities until each row and column of the box has a pixel of probability `REACHED`."""
    logits = np.where(inside, _logit(probs), -np.inf)
    goal = np.log(REACHED / (1 - REACHED))
    of_rows = np.maximum(goal - logits.max(axis=1), 0)
    of_columns = np.maximum(goal - logits.max(axis=0), 0)
    gains = np.maximum(of_rows[:, None], of_columns[None])
    return _sigmoid(_logit(probs) + np.where(inside, gains, 0)) * inside


def _color_ratio(color: ColorArray, probs: FloatArray) -> FloatArray:
    """Log ratio (colours,) of how much of the object, and of everything else in the window, has each colour."""
    of_object = np.bincount(color.ravel(), probs.ravel())
    of_rest = np.bincount(color.ravel(), 1 - probs.ravel())
    object_share = of_object / max(of_object.sum(), 1e-6)
    rest_share = of_rest / max(of_rest.sum(), 1e-6)
    return np.log((object_share + RARE) / (rest_share + RARE)).astype(np.float32)


def _sum_of_neighbours(values: FloatArray, weights: list[FloatArray]) -> FloatArray:
    """Weighted sum (h, w) of the eight neighbours of each pixel."""
    total = np.zeros_like(values)
    for step, weight in zip(STEPS, weights, strict=True):
        one, other = pair_neighbours(values, step)
        to_one, to_other = pair_neighbours(total, step)
        # Views of the total: the two neighbours of each pair add to each other's sum.
        to_one += weight * other
        to_other += weight * one
    return total


def _logit(probs: FloatArray) -> FloatArray:
    clipped = probs.clip(0.001, 0.999)  # so that no single piece of evidence decides
    return np.log(clipped / (1 - clipped))


def _sigmoid(logits: FloatArray) -> FloatArray:
    return 1 / (1 + np.exp(-logits.clip(-20, 20)))
