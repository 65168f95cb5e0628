"""`docs/profiles.md` and `docs/method.md` say what profiles do; and the reference's hyper-parameters are settings."""

import re
from fractions import Fraction
from pathlib import Path

import pytest

from boxseg.config.method import BoxSegConfig
from boxseg.config.presets import PROFILES

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "profiles.md"


def table_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|") and "`" in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


ROWS = table_rows(PAGE.read_text())
SHORT_ROWS = table_rows(
    (DOCS / "method.md").read_text().partition("## Profiles")[2].partition("\n## ")[0]
)
HYPER_PARAMETERS = """
teacher: cand_score_thr pre_topk with_nms resize_short resize_long
qam: k_top adaptive_k k_min k_max area_s area_l iou_thr score_thr class_match mask_thr vote_thr fusion
qam: score_floor agreement min_quality
loss: mask_weight aff_weight aff_thr warmup
boxinst: size dilation color_thr warmup bottom_px
pc: on mode p_start p_end warmup overlap per_image target require_better bank_size bank_q_thr bank_s_thr bank_iou_thr
pc: min_area box_shift_px
ema: momentum interval
fcos: use_vfl alpha gamma radius nms_thr topk score_thr
cond: max_per_image features channels layers
"""


def value(profile: str, switch: str) -> object:
    group, name = switch.split(".")
    return getattr(getattr(BoxSegConfig.model_validate({"profile": profile}), group), name)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1])
def test_the_page_has_the_values_of_every_profile(row):
    _, switch, *shown, effect = row
    check_values(switch, shown)
    assert effect.endswith(".")


@pytest.mark.parametrize("row", SHORT_ROWS, ids=lambda row: row[0])
def test_the_page_of_the_method_has_the_values_of_every_profile(row):
    switch, *shown, _ = row
    check_values(switch, shown)


def test_the_page_of_the_method_has_profiles_to_compare():
    assert len(SHORT_ROWS) >= 15


def check_values(switch: str, shown: list[str]) -> None:
    for profile, text in zip(("official", "paper", "fixed"), shown, strict=True):
        found = value(profile, switch.strip("`"))
        if isinstance(found, bool) or found is None:
            assert text == {True: "true", False: "false", None: "null"}[found]
        elif isinstance(found, str):
            assert text == found
        else:
            assert float(Fraction(text)) == pytest.approx(found)


def test_every_setting_that_profiles_change_is_on_the_page_once():
    named = [row[1].strip("`") for row in ROWS]
    assert len(set(named)) == len(named)
    changed = {
        f"{group}.{name}"
        for preset in PROFILES.values()
        for group in preset
        for name in preset[group]
    }
    assert changed <= set(named)


GROUPS = "|".join(BoxSegConfig.model_fields)
NAMED = re.findall(r"`(\w+\.\w+)`", PAGE.read_text())
NAMED_BY_METHOD = re.findall(rf"`((?:{GROUPS})\.\w+)[`:]", (DOCS / "method.md").read_text())


@pytest.mark.parametrize("name", sorted({*NAMED, *NAMED_BY_METHOD}))
def test_every_switch_of_the_pages_is_a_setting(name):
    group, setting = name.split(".")
    assert setting in type(getattr(BoxSegConfig(), group)).model_fields


def test_every_named_hyper_parameter_is_a_setting():
    config = BoxSegConfig()
    for line in HYPER_PARAMETERS.split("\n"):
        group, _, names = line.partition(":")
        missing = set(names.split()) - set(
            type(getattr(config, group)).model_fields if group else ()
        )
        assert not missing, f"{group}: {missing}"
