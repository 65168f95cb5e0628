"""Pixels that two clean masks claim."""

from __future__ import annotations

import numpy as np
import torch

from boxseg.label.claims import expect_losses, settle_claims
from boxseg.mask_parts import MaskPart

RED, GREEN, GREY = (200, 30, 30), (30, 200, 30), (120, 120, 120)
SQUARE, INSIDE, CORNER = (10, 10, 50, 50), (20, 20, 40, 40), (40, 40, 60, 60)  # x1 y1 x2 y2


def area_of(box: tuple[int, int, int, int]) -> MaskPart:
    x1, y1, x2, y2 = box
    return MaskPart(np.ones((y2 - y1, x2 - x1), dtype=np.bool_), top=y1, left=x1)


def picture(*painted: tuple[tuple[int, int, int, int], tuple[int, int, int]]) -> np.ndarray:
    image = np.full((3, 70, 70), 120, dtype=np.uint8)
    for (x1, y1, x2, y2), color in painted:
        image[:, y1:y2, x1:x2] = np.array(color)[:, None, None]
    return image


def settle(image: np.ndarray, *boxes: tuple[int, int, int, int]) -> list[int]:
    """The areas of masks that begin as their boxes."""
    parts = {row: area_of(box) for row, box in enumerate(boxes)}
    settled = settle_claims(image, torch.tensor(boxes).float(), parts)
    return [settled[row].area for row in range(len(boxes))]


def test_an_object_lying_on_another_is_cut_out_of_it():
    image = picture((SQUARE, RED), (INSIDE, GREEN))
    assert settle(image, SQUARE, INSIDE) == [40 * 40 - 20 * 20, 20 * 20]
    assert settle(image, INSIDE, SQUARE) == [20 * 20, 40 * 40 - 20 * 20]


def test_an_object_lying_on_another_with_a_blurred_outline_is_cut_out_of_it():
    poking_out = (20, 9, 40, 29)
    image = picture((SQUARE, RED), (poking_out, GREEN), ((20, 9, 40, 10), GREY))
    assert settle(image, SQUARE, poking_out) == [40 * 40 - 19 * 20, 20 * 20]


def test_an_object_lying_half_on_another_keeps_the_pixels_of_its_colour():
    in_front = picture((SQUARE, RED), (CORNER, GREEN))
    assert settle(in_front, SQUARE, CORNER) == [40 * 40 - 10 * 10, 20 * 20]
    behind = picture((CORNER, GREEN), (SQUARE, RED))
    assert settle(behind, SQUARE, CORNER) == [40 * 40, 20 * 20 - 10 * 10]


def test_pixels_that_could_be_of_either_stay_with_both():
    assert settle(picture((SQUARE, RED), (CORNER, RED)), SQUARE, CORNER) == [1600, 400]
    # neither the one nor the other has grey
    third = picture((SQUARE, RED), (CORNER, GREEN), ((40, 40, 50, 50), GREY))
    assert settle(third, SQUARE, CORNER) == [1600, 400]


def test_a_mask_keeps_what_it_needs_to_reach_the_sides_of_its_box():
    strip = (30, 10, 50, 50)  # all of the right half
    image = picture((SQUARE, RED), (strip, GREEN))
    assert settle(image, SQUARE, strip) == [1600, 800]


def test_masks_that_only_touch_are_left_alone():
    below = (10, 49, 50, 70)  # one row of 40 pixels in common, of 840: under a twentieth
    image = picture((SQUARE, RED), (below, GREEN))
    assert settle(image, SQUARE, below) == [1600, 840]


def test_masks_that_hold_each_other_are_expected_to_be_half_wrong():
    losses = expect_losses({0: area_of(SQUARE), 1: area_of(SQUARE), 2: area_of((60, 60, 66, 66))})
    assert losses == {0: 0.5, 1: 0.5, 2: 0.0}


def test_a_small_mask_inside_a_large_one_is_hardly_in_doubt():
    losses = expect_losses({0: area_of(SQUARE), 1: area_of((20, 20, 28, 28))})
    assert losses == {0: 0.02, 1: 0.02}
