"""Estimates for GPUs, against the published run that they are scaled from."""

from pathlib import Path

import pytest

from boxseg.config.presets import merge
from orchestration.config.spec import RunSpec, load_run
from orchestration.planning.estimate import MEASURED, MeasuredRun, estimate, estimate_on_cpu

PUBLISHED = {
    "profile": "official",
    "train": {"image_size": list(range(480, 801, 32)), "precision": "fp32", "batch_size": 16},
    "resources": {"workers": 4, "gpus_per_worker": 1},
}


def spec(**changes):
    return RunSpec.model_validate(merge(PUBLISHED, changes))


def guess(**changes):
    return estimate(spec(**changes), aspect=None)


def test_the_published_run_comes_out_as_published():
    found = guess()
    assert found.step_s == pytest.approx(0.81)
    assert found.gpu_bytes == pytest.approx(10.95e9)
    assert "x1.00 in multiply-adds" in found.basis
    assert "memory may be off by 40%" in found.basis


def test_more_work_takes_longer_and_more_memory():
    base = guess()
    for changes in (
        {"model": {"backbone": "resnet101"}},
        {"train": {"image_size": 1024, "max_size": 2048}},
        {"resources": {"workers": 2}},
    ):
        assert guess(**changes).step_s > 1.1 * base.step_s
        assert guess(**changes).gpu_bytes > 1.1 * base.gpu_bytes
    assert guess(train={"precision": "bf16"}).gpu_bytes < 0.8 * base.gpu_bytes
    boxinst = guess(method="boxinst")
    assert boxinst.step_s < base.step_s


def test_a_card_that_was_measured_is_scaled_from_itself_at_the_same_precision(monkeypatch):
    bf16 = {"train": {"precision": "bf16"}}
    run = MeasuredRun("a run on an X-9", spec(**bf16), gpu_s=0.02, gpu_bytes=3e9, gpu_images=2)
    monkeypatch.setitem(MEASURED, ("X-9", "bf16"), run)
    found = estimate(spec(**bf16), aspect=None, card="X-9")
    assert found.step_s == pytest.approx(0.02 * 4)
    assert found.gpu_bytes == pytest.approx(6e9)
    assert "a run on an X-9" in found.basis
    assert "newer GPUs" not in found.basis
    for other in (estimate(spec(), aspect=None, card="X-9"), guess(**bf16)):
        assert "the released VOC run" in other.basis


def test_nothing_is_estimated_without_gpus_or_for_an_unknown_backbone():
    assert guess(resources={"gpus_per_worker": 0}) is None
    assert guess(model={"backbone": "timm/regnety_004"}) is None


@pytest.mark.parametrize(
    ("name", "measured"),
    [("ablation", 3.8 * 60 / 300), ("ablation_animals", 5.5 * 60 / 900), ("pennfudan", 2.0)],
)
def test_updates_on_a_core_take_about_as_long_as_those_that_were_measured(name, measured):
    found = estimate_on_cpu(
        load_run(Path(__file__).parents[3] / f"experiments/{name}.yaml"), aspect=None
    )
    assert measured / 2 < found[0] < measured * 2
    assert "may be off by a factor of two" in found[1]


def test_nothing_is_counted_for_a_core_that_a_gpu_does_or_that_is_not_on_record():
    assert estimate_on_cpu(spec(), aspect=None) is None
    cpu = {"resources": {"gpus_per_worker": 0}}
    assert (
        estimate_on_cpu(spec(**cpu, model={"backbone": "timm/regnety_004"}), aspect=None) is None
    )
    more = estimate_on_cpu(
        spec(resources={"gpus_per_worker": 0, "cpus_per_worker": 4}), aspect=None
    )
    assert more[0] < estimate_on_cpu(spec(**cpu), aspect=None)[0]
