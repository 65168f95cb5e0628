"""Settings of the method: presets under explicit values, and rules across settings."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from boxseg.config.method import BoxSegConfig, Config, as_steps
from boxseg.config.presets import METHODS, PROFILES, RELEASED, apply_presets, merge


def refused(values: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        BoxSegConfig.model_validate(values)
    return str(caught.value)


def test_the_default_of_every_field_is_what_runs():
    for name, group in BoxSegConfig():
        if isinstance(group, Config):
            assert group == type(group)(), name


def test_presets_list_only_what_they_change():
    for preset in (RELEASED, *METHODS.values()):
        for group, values in preset.items():
            default = getattr(BoxSegConfig(), group)
            assert {name: getattr(default, name) for name in values}.items().isdisjoint(
                values.items()
            ), group


def test_profile_official_is_the_released_code():
    official = BoxSegConfig(profile="official")
    assert (official.qam.fusion, official.pc.p_start, official.boxinst.bottom_px) == (
        "vote",
        1.0,
        10,
    )
    assert (BoxSegConfig().qam.fusion, BoxSegConfig().boxinst.bottom_px) == ("weighted", 0)
    assert (official.data.strong, BoxSegConfig().data.strong) == ("strong", "weak")


def test_explicit_settings_win_over_method_and_profile():
    config = BoxSegConfig.model_validate(
        {"method": "boxteacher", "pc": {"on": True}, "qam": {"fusion": "vote"}}
    )
    assert config.pc.on
    assert config.teacher.with_nms
    assert config.qam.fusion == "vote"


def test_presets_leave_the_given_values_unchanged():
    values: dict[str, Any] = {"profile": "paper", "method": "qam", "pc": {"p_end": 0.5}}
    assert apply_presets(values)["pc"] == {**PROFILES["paper"]["pc"], "on": False, "p_end": 0.5}
    assert values == {"profile": "paper", "method": "qam", "pc": {"p_end": 0.5}}


def test_merging_gives_a_new_dict_with_both():
    under = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(under, {"a": {"b": 9}, "d": {"e": 4}}) == {"a": {"b": 9, "c": 2}, "d": {"e": 4}}
    assert under == {"a": {"b": 1, "c": 2}, "d": 3}


@pytest.mark.parametrize(("value", "steps"), [(0, 0), (0.25, 75), (1, 1), (1000, 1000)])
def test_a_warmup_below_one_is_a_share_of_the_steps(value: float, steps: int):
    assert as_steps(value, 300) == steps


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"model": {"backbone": "resnet5"}},
            ("resnet5", "did you mean resnet50", "efficientnet_lite0", "timm/NAME"),
        ),
        ({"model": {"backbone": "timm/"}}, ("timm/NAME",)),
        ({"model": {"channels": 20}}, ("20 is not a multiple of 8",)),
        (
            {"profile": "official", "model": {"channels": 48}},
            ("channels 48", "norm_groups 32", "null"),
        ),
        ({"train": {"image_size": 16}}, ("image_size 16", "32 px")),
        ({"train": {"image_size": [640, 1400]}}, ("1400", "max_size 1333")),
        ({"train": {"image_size": []}}, ("image_size",)),
        ({"train": {"closer": 1.5}}, ("closer 1.5", "window is null", "to 1")),
        ({"train": {"eval_size": 2000}}, ("eval_size 2000", "max_size 1333")),
        ({"train": {"eval_every": 10.5}}, ("eval_every 10.5", "whole number")),
        ({"solver": {"milestones": [0.9, 0.5]}}, ("0.9, 0.5", "rising")),
        ({"solver": {"milestones": [60_000]}}, ("60000", "below 1")),
        ({"solver": {"lr": float("inf")}}, ("finite",)),
        ({"qam": {"k_min": 30}}, ("k_min 30", "k_max 20")),
        ({"qam": {"area_s": 1e5}}, ("area_s", "area_l")),
        ({"boxinst": {"size": 4}}, ("size 4", "odd")),
        ({"fcos": {"sizes": [64, 128, 128, 512]}}, ("fcos.sizes", "64, 128, 128, 512", "rising")),
        ({"fcos": {"sizes": [0, 128, 256, 512]}}, ("0, 128, 256, 512", "above 0")),
        ({"teacher": {"on": False}}, ("teacher.on", "pc.on")),
        (
            {"method": "boxinst", "train": {"evaluate": "teacher"}},
            ("train.evaluate", "teacher.on"),
        ),
        ({"data": {"strong": "none"}}, ("pc.on", "data.strong")),
        (
            {"method": "supervised", "data": {"use_masks": "never"}},
            ("loss.mask_weight", "data.use_masks"),
        ),
        (
            {"method": "boxinst", "data": {"use_masks": "where_present"}},
            ("data.use_masks", "loss.mask_weight"),
        ),
        ({"profile": ["paper"]}, ("profile",)),
    ],
)
def test_impossible_settings_are_refused_with_their_names(
    values: dict[str, Any], words: tuple[str, ...]
):
    message = refused(values)
    for word in words:
        assert word in message


def test_timm_backbones_are_taken_by_name():
    assert (
        BoxSegConfig.model_validate({"model": {"backbone": "timm/resnet26"}}).model.backbone
        == "timm/resnet26"
    )
