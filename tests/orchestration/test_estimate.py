"""Estimates for GPUs, against the published run that they are scaled from."""

import pytest

from boxseg.config import merge
from orchestration.config import RunSpec
from orchestration.estimate import estimate

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


def test_nothing_is_estimated_without_gpus_or_for_an_unknown_backbone():
    assert guess(resources={"gpus_per_worker": 0}) is None
    assert guess(model={"backbone": "timm/regnety_004"}) is None
