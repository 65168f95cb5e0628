import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from boxseg.coco.masks import decode_segmentation
from boxseg.coco.segmentations import MaskSummary, find_problem, read_runs


def random_masks():
    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.5, 0.99, 1) * 20:
        yield rng.random(rng.integers(1, 70, 2)) < share


def test_compressed_run_lengths_give_what_pycocotools_gives():
    for mask in random_masks():
        encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        as_text = {"size": list(mask.shape), "counts": encoded["counts"].decode()}
        assert np.array_equal(decode_segmentation(encoded, mask.shape), mask)
        assert np.array_equal(
            decode_segmentation(json.loads(json.dumps(as_text)), mask.shape), mask
        )


def test_a_polygon_may_reach_beyond_its_image():
    assert decode_segmentation([[-3, -3, 20, -3, 20, 20, -3, 20]], (4, 5)).all()


POLYGON = [1, 1, 7, 1, 7, 5]


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        ([[1, 1, 1e308, 1, 1, 5]], "the coordinate 1e+308"),
        ([POLYGON, [1, 1, -(2**63), 1, 1, 5]], "the coordinate -9.22337e+18"),
        ([[1, 1, float("inf"), 1, 1, 5]], "the coordinate inf"),
        ([[1, 1, float("nan"), 1, 1, 5]], "the coordinate nan"),
        ([[1, 1, 10**400, 1, 1, 5]], "malformed segmentation with [1, 1, 1000"),
        ([POLYGON, [1, 1, 2, 2]], "malformed segmentation with [1, 1, 2, 2]"),
        ([[*POLYGON, 3]], "malformed segmentation with"),
        (POLYGON, "malformed segmentation with 1"),
        ([["a"] * 6], "malformed segmentation with ['a'"),
        ([None], "malformed segmentation with None"),
        ([{"size": [8, 12], "counts": "P3"}], "malformed segmentation with {"),
        ("P3", "malformed segmentation 'P3'"),
        ({"counts": "P3"}, "malformed segmentation {'counts'"),
        ({"size": [8, 12]}, "malformed segmentation {'size'"),
        ({"size": [8], "counts": "P3"}, "malformed segmentation {'size'"),
        ({"size": [-8, -12], "counts": "P3"}, "a mask of -12 x -8 px"),
        ({"size": [8.5, 12], "counts": "P3"}, "a mask of 12 x 8.5 px"),
        ({"size": [2**31, 2**31], "counts": "0"}, "a mask of 2147483648 x 2147483648 px"),
        ({"size": [8, 12], "counts": [1000, 5]}, "add up to 1005 for a mask of 12 x 8 px"),
        (
            {"size": [8, 12], "counts": [2**62, 2**62, 2**62, 2**62, 96]},
            "add up to 18446744073709551712",
        ),
        ({"size": [8, 12], "counts": "00000"}, "add up to 0 for"),
        ({"size": [8, 12], "counts": [101, -5]}, "malformed run lengths [101, -5]"),
        ({"size": [8, 12], "counts": [95.5, 0.5]}, "malformed run lengths [95.5"),
        ({"size": [8, 12], "counts": [[96]]}, "malformed run lengths [[96]]"),
        ({"size": [8, 12], "counts": [10**30]}, "malformed run lengths"),
        ({"size": [8, 12], "counts": []}, "malformed run lengths []"),
        ({"size": [8, 12], "counts": ""}, "malformed run lengths ''"),
        ({"size": [8, 12], "counts": "P"}, "malformed run lengths 'P'"),
        ({"size": [8, 12], "counts": "o" * 50 + "0"}, "malformed run lengths 'ooo"),
        ({"size": [8, 12], "counts": "P\n3"}, "malformed run lengths 'P\\n3'"),
        ({"size": [8, 12], "counts": "é"}, "malformed run lengths 'é'"),
    ],
)
def test_masks_that_pycocotools_must_not_see_are_reported(segmentation, expected):
    value, rule = find_problem(segmentation, (8, 12))
    assert expected in value
    assert rule


def test_negative_differences_and_long_runs_survive_compression():
    runs = [3, 100_000, 7, 2, 40, 99_000, 1]
    side = sum(runs)
    encoded = coco_mask.frPyObjects({"size": [side, 1], "counts": runs}, side, 1)
    assert read_runs(encoded["counts"]).tolist() == runs


SQUARE = [0, 0, 20, 0, 20, 20, 0, 20]
ANGLE = [0, 0, 20, 0, 20, 4, 4, 4, 4, 20, 0, 20]


@pytest.mark.parametrize(
    ("polygons", "is_nested"),
    [
        ([SQUARE, [5, 5, 15, 5, 15, 15]], True),
        ([[5, 5, 15, 5, 15, 15], SQUARE], True),
        ([SQUARE, [15, 5, 25, 5, 25, 15]], False),  # they overlap
        ([ANGLE, [8, 8, 18, 8, 18, 18]], False),  # between the arms of the angle
        ([SQUARE], False),
    ],
)
def test_polygons_inside_others_are_found(polygons, is_nested):
    assert MaskSummary.of(polygons).is_nested == is_nested
