"""Every experiment file loads, and every dict of choices offers what its setting allows."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import get_args

import pytest
import yaml

from boxseg.config.backbones import BACKBONE_NAMES
from boxseg.config.method import BoxSegConfig, Config
from boxseg.config.presets import Method, Profile
from orchestration.config.explain import find_field
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import SweepSpec, load_run, load_sweep
from orchestration.planning.plan import make_plan

EXPERIMENTS = sorted((Path(__file__).parents[1] / "experiments").glob("*.yaml"))
CHOICES = [
    ("boxseg.data.colors", "COLOR_CHANGES", "data.strong"),
    ("boxseg.teacher.fusion", "FUSIONS", "qam.fusion"),
    ("boxseg.copy_paste.bank", "BANKS", "pc.bank"),
    ("orchestration.execute.search", "SEARCHERS", "sweep.search"),
    ("orchestration.execute.schedulers", "TRIAL_SCHEDULERS", "sweep.trial_scheduler"),
    ("boxseg.config.presets", "PROFILES", "profile"),
    ("boxseg.config.presets", "METHODS", "method"),
]


def test_there_are_experiments():
    assert {"qam.yaml", "pc.yaml"} <= {path.name for path in EXPERIMENTS}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_loads_and_says_what_it_is_for(path: Path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert f"experiments/{path.name}" in text
    assert load_run(path).name == path.stem
    if "sweep" in yaml.safe_load(text):
        assert load_sweep(path).sweep.space


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_resolved_settings_of_every_experiment_load_again_unchanged(path: Path, tmp_path: Path):
    spec = load_run(path)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(dump_resolved(spec), encoding="utf-8")
    assert load_run(resolved) == spec


def test_the_coco_schedule_is_the_released_one():
    spec = load_run(next(path for path in EXPERIMENTS if path.stem == "coco_r50_1x"))
    assert (spec.train.steps, spec.train.batch_size, spec.solver.lr, spec.solver.warmup) == (
        90_000,
        16,
        0.01,
        1000,
    )
    assert [round(share * spec.train.steps) for share in spec.solver.milestones] == [
        60_000,
        80_000,
    ]
    assert (spec.qam.fusion, spec.pc.target, spec.boxinst.bottom_px) == ("vote", "random", 10)


@pytest.mark.parametrize(
    "path", [path for path in EXPERIMENTS if path.stem[-3:] in ("_1x", "_3x")]
)
def test_long_schedules_change_colors_as_the_released_ones_do(path: Path):
    assert load_run(path).data.strong == "strong"


@pytest.mark.parametrize(
    ("name", "steps", "drops", "backbone"),
    [
        ("coco_r50_3x", 270_000, [210_000, 250_000], "resnet50"),
        ("coco_r101_3x", 270_000, [210_000, 250_000], "resnet101"),
        ("coco_convnext_3x", 270_000, [210_000, 250_000], "timm/convnext_tiny"),
        ("voc_r50_1x", 18_000, [12_000, 16_000], "resnet50"),
        ("voc_r50_3x", 54_000, [36_000, 48_000], "resnet50"),
        ("voc_r101_3x", 54_000, [36_000, 48_000], "resnet101"),
        ("voc_convnext_3x", 54_000, [36_000, 48_000], "timm/convnext_tiny"),
    ],
)
def test_large_data_sets_have_their_published_schedules_and_a_plan(
    name: str, steps: int, drops: list[int], backbone: str
):
    spec = load_run(next(path for path in EXPERIMENTS if path.stem == name))
    assert (spec.train.steps, spec.train.batch_size, spec.model.backbone) == (steps, 16, backbone)
    assert [round(share * steps) for share in spec.solver.milestones] == drops
    plan = make_plan(spec)
    # the data are not here, which is a fault
    assert (plan.steps, plan.train.images) == (steps, None)
    assert plan.faults
    assert plan.seconds is not None


@pytest.mark.parametrize(("module", "name", "setting"), CHOICES)
def test_every_dict_of_choices_offers_exactly_what_its_setting_allows(
    module: str, name: str, setting: str
):
    field = find_field(SweepSpec, setting.split("."))
    assert field is not None
    assert set(getattr(importlib.import_module(module), name)) == set(get_args(field.annotation))


def test_every_backbone_name_can_be_built():
    from boxseg.model.backbone import BACKBONES

    assert set(BACKBONE_NAMES) <= set(BACKBONES)


@pytest.mark.parametrize("profile", get_args(Profile))
@pytest.mark.parametrize("method", get_args(Method))
def test_every_profile_goes_with_every_method(profile: str, method: str):
    config = BoxSegConfig.model_validate({"profile": profile, "method": method})
    assert config.teacher.on == (method not in ("boxinst", "supervised"))
    assert config.pc.on == (method in ("pc", "full"))


def test_every_setting_is_described():
    def undescribed(model: type[Config]) -> list[str]:
        return [
            f"{model.__name__}.{name}"
            for name, field in model.model_fields.items()
            if not field.description
        ]

    groups = {type(getattr(SweepSpec(), name)) for name in SweepSpec.model_fields}
    missing = [
        name for group in groups if issubclass(group, Config) for name in undescribed(group)
    ]
    assert not missing
