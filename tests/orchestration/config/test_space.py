"""Conditions and settings that move together: which settings a space has, and what stands for them."""

from __future__ import annotations

from typing import Any

import pytest

from orchestration.config.space import (
    count_settings,
    drawn_setting,
    is_setting_of,
    misfit,
    names_in,
    possible_values,
    samples,
    settings_of,
)
from orchestration.config.spec import SweepConfig

METHODS = {
    "method": {"choice": ["boxinst", "qam", "full"]},
    "qam.k_top": {"choice": [5, 10], "when": {"method": ["qam", "full"]}},
    "qam.iou_thr": {"choice": [0.3, 0.5, 0.7], "when": {"method": "full"}},
}
LENGTHS = {
    "length": {
        "together": [
            {"train.steps": 100, "boxinst.warmup": 50},
            {"train.steps": 200, "boxinst.warmup": 100},
        ]
    },
    "qam.k_top": {"choice": [1, 5], "when": {"train.steps": 200}},
}


def make_space(space: dict[str, Any]) -> Any:
    return SweepConfig.model_validate({"space": space}).space


def test_settings_that_do_not_apply_are_left_out_and_not_counted():
    space = make_space(METHODS)
    settings = list(settings_of(space))
    # boxinst alone; qam with two; full with two times three
    assert count_settings(space) == len(settings) == 1 + 2 + 6
    assert settings[:4] == [
        {"method": "boxinst"},
        {"method": "qam", "qam.k_top": 5},
        {"method": "qam", "qam.k_top": 10},
        {"method": "full", "qam.k_top": 5, "qam.iou_thr": 0.3},
    ]
    assert names_in(space) == ["method", "qam.k_top", "qam.iou_thr"]
    assert all(is_setting_of(space, setting) for setting in settings)


def test_settings_move_together_and_carry_conditions():
    space = make_space(LENGTHS)
    short, long = LENGTHS["length"]["together"]
    assert list(settings_of(space)) == [
        short,
        long | {"qam.k_top": 1},
        long | {"qam.k_top": 5},
    ]
    assert count_settings(space) == 3
    assert names_in(space) == ["train.steps", "boxinst.warmup", "qam.k_top"]
    assert possible_values(space, "boxinst.warmup") == [50, 100]
    # 100.0 is the 100 of the list
    assert drawn_setting(space, short | {"train.steps": 100.0}) == short


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"method": "qam"}, "qam.k_top has no value"),
        ({"method": "qam", "qam.k_top": 7}, "qam.k_top is 7, which its domain in sweep.space"),
        ({"method": "boxinst", "qam.k_top": 5}, "qam.k_top does not apply with the other values"),
        ({"method": "boxinst", "pc.p_end": 1}, "pc.p_end is not in sweep.space"),
        ({}, "method has no value"),
    ],
)
def test_values_that_a_space_cannot_give_are_named(values: dict[str, Any], reason: str):
    assert misfit(make_space(METHODS), values).startswith(reason)


def test_a_mixture_of_two_groups_does_not_belong_to_the_space():
    mixed = {"train.steps": 100, "boxinst.warmup": 100}
    assert misfit(make_space(LENGTHS), mixed).startswith("length is {'train.steps': 100")


def test_a_space_with_an_infinite_branch_is_infinite():
    space = make_space(METHODS | {"qam.iou_thr": {"uniform": [0, 1], "when": {"method": "full"}}})
    assert count_settings(space) is None


def test_every_corner_of_a_conditional_setting_is_looked_at_in_a_large_space():
    many = {f"loss.{name}": {"choice": list(range(40))} for name in "abc"}
    rare = {"qam.k_top": {"choice": list(range(40)), "when": {"loss.a": 39, "loss.b": 38}}}
    space = make_space(many | rare)
    found = [each["qam.k_top"] for each in samples(space) if "qam.k_top" in each]
    assert set(found) == set(range(40))


def test_conditions_are_written_as_they_were_and_nothing_else_is():
    space = make_space(METHODS)
    assert space["method"].model_dump() == METHODS["method"]
    assert space["qam.iou_thr"].model_dump()["when"] == {"method": ["full"]}
