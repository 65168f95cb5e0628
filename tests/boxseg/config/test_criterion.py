"""One rule says what is better, for evaluations, networks, trials and settings."""

import math

import pytest

from boxseg.config.criterion import MASK_AP, Criterion

LARGER, SMALLER = Criterion("val/box_ap"), Criterion("health/mask_fill", "min")


def test_the_metric_and_its_direction_decide_and_nothing_else_does():
    assert LARGER.better(
        {"val/box_ap": 0.2, "val/mask_ap": 0.1}, than={"val/box_ap": 0.1, "val/mask_ap": 0.9}
    )
    assert not LARGER.better({"val/box_ap": 0.1}, than={"val/box_ap": 0.2})
    assert SMALLER.better({"health/mask_fill": 0.1}, than={"health/mask_fill": 0.2})
    assert not SMALLER.better({"health/mask_fill": 0.2}, than={"health/mask_fill": 0.1})


def test_the_earlier_of_two_equal_evaluations_stays_the_best():
    assert not LARGER.better({"val/box_ap": 0.2}, than={"val/box_ap": 0.2})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("criterion", [LARGER, SMALLER, MASK_AP])
def test_a_value_that_is_absent_or_not_finite_never_wins(criterion, value):
    without = {} if value is None else {criterion.metric: value}
    assert criterion.value(without) is None
    assert criterion.score(value) == -math.inf
    assert not criterion.better(without, than={})
    assert not criterion.better(without, than={criterion.metric: 0.5})
    assert criterion.better({criterion.metric: 0.5}, than=without)


def test_the_best_of_some_values_and_the_message_where_there_are_none():
    values = [None, 0.2, math.nan, 0.7, math.inf]
    assert (LARGER.best(values), SMALLER.best(values)) == (0.7, 0.2)
    assert LARGER.best([None, math.nan]) is None
    assert LARGER.value_or_worst(None) < LARGER.value_or_worst(0.0)
    assert SMALLER.value_or_worst(None) > SMALLER.value_or_worst(1.0)


def test_box_ap_decides_in_a_single_run_only_where_masks_are_not_drawn():
    assert MASK_AP.better({"val/box_ap": 0.2}, than={"val/box_ap": 0.1})
    assert not MASK_AP.better({"val/box_ap": 0.9}, than={"val/mask_ap": 0.1, "val/box_ap": 0.1})
    assert MASK_AP.better(
        {"val/mask_ap": 0.2, "val/box_ap": 0.1}, than={"val/mask_ap": 0.1, "val/box_ap": 0.9}
    )
    assert MASK_AP.value({"val/box_ap": 0.2}) == 0.2
