"""Masks to polygons and run lengths, exactly."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from boxseg.coco.masks import decode_segmentation, encode_rle
from boxseg.coco.outlines import find_polygons, join_polygons
from boxseg.mask_parts import MaskPart


def mask_of(*rows: str) -> np.ndarray:
    return np.array([[cell == "#" for cell in row] for row in rows])


def filled(polygons, size) -> np.ndarray:
    return decode_segmentation([polygon.ravel().tolist() for polygon in polygons], size)


def test_a_square_has_four_corners():
    (polygon,) = find_polygons(MaskPart(mask_of("....", ".##.", ".##.", "....")))
    assert sorted(map(tuple, polygon.tolist())) == [(1, 1), (1, 3), (3, 1), (3, 3)]


@pytest.mark.parametrize("rows", [("##.", "##.", "..#"), ("..#", "##.", "##.")])
def test_pieces_that_touch_at_a_corner_are_apart(rows):
    assert len(find_polygons(MaskPart(mask_of(*rows)))) == 2


@pytest.mark.parametrize(
    "rows",
    [
        ("#####", "#...#", "#.#.#", "#...#", "#####"),
        ("####", "#.##", "##.#", "####"),
        (".#.#", "#.#.", ".#.#", "#.#."),
        ("#",),
    ],
)
def test_small_shapes_come_back_exactly(rows):
    mask = mask_of(*rows)
    assert np.array_equal(filled(find_polygons(MaskPart(mask)), mask.shape), mask)


def test_random_shapes_with_holes_and_pieces_come_back_exactly():
    rng = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.7, 0.9):
        mask = np.kron(rng.random((9, 13)) < share, np.ones((4, 3), dtype=bool))
        assert np.array_equal(filled(find_polygons(MaskPart(mask)), mask.shape), mask)
        one = join_polygons(find_polygons(MaskPart(mask)))
        assert np.array_equal(filled([one], mask.shape), mask)


def test_an_empty_mask_has_no_polygons():
    assert find_polygons(MaskPart(np.zeros((4, 5), dtype=bool))) == []


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (6, 8)])
def test_run_lengths_are_those_of_pycocotools(size, share):
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random(size) < share
        encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        assert encode_rle(mask) == {
            "size": list(size),
            "counts": encoded["counts"].decode("ascii"),
        }
