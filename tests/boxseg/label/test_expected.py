import math

import pytest

from boxseg.label.expected import BOX_SPREAD, SET_SPREAD, expect_mean_iou


def test_the_expected_mean_is_that_of_the_qualities_and_within_its_interval():
    found = expect_mean_iou([0.6, 0.8])
    reach = 1.645 * math.hypot(SET_SPREAD, BOX_SPREAD / math.sqrt(2))
    assert (found.mean, found.low) == (pytest.approx(0.7), pytest.approx(0.7 - reach, abs=1e-4))
    assert str(found).startswith("0.70 (")


def test_more_masks_narrow_the_interval_as_far_as_data_sets_differ():
    few, many, most = (expect_mean_iou([0.8] * count) for count in (3, 300, 10**6))
    assert few.high - few.low > many.high - many.low > most.high - most.low > 3 * SET_SPREAD


def test_an_iou_is_a_share():
    assert expect_mean_iou([1.0]).high == 1.0
    assert expect_mean_iou([0.0]).low == 0.0


def test_without_masks_nothing_is_expected():
    assert expect_mean_iou([]) is None
