"""Estimates for GPUs, against the published run that they are scaled from."""

import pytest

from boxseg.config import merge
from orchestration.config import RunSpec
from orchestration.estimate import BACKBONE_COSTS, REFERENCE, REFERENCE_BYTES, _parameters, _step_bytes, estimate

PUBLISHED = {
    "profile": "official",
    "train": {"image_size": list(range(480, 801, 32)), "precision": "fp32", "batch_size": 16},
    "resources": {"workers": 4, "gpus_per_worker": 1},
}


def spec(**changes):
    return RunSpec.model_validate(merge(PUBLISHED, changes))


def guess(**changes):
    return estimate(spec(**changes), aspect=None, num_classes=80)


def test_the_published_run_comes_out_as_published():
    found = guess()
    assert found.step_s == pytest.approx(0.81)
    assert found.gpu_bytes == pytest.approx(10.95e9)
    assert "x1.00 in multiply-adds" in found.basis
    assert "memory may be off by 40%" in found.basis


def test_the_bytes_counted_for_the_published_run_are_near_those_it_took():
    assert _step_bytes(REFERENCE, 80, 4 / 3, 4, bf16=False) == pytest.approx(REFERENCE_BYTES, rel=0.1)


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
    assert boxinst.gpu_bytes < base.gpu_bytes


def test_nothing_is_estimated_without_gpus_or_for_an_unknown_backbone():
    assert guess(resources={"gpus_per_worker": 0}) is None
    assert guess(model={"backbone": "timm/regnety_004"}) is None


@pytest.mark.parametrize("backbone", BACKBONE_COSTS)
def test_counted_parameters_are_those_of_the_network(backbone):
    from boxseg.build import build_network

    config = spec(model={"backbone": backbone, "weights": "none"})
    network = build_network(config, num_classes=80)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert _parameters(config, 80) == pytest.approx(count, rel=0.03)
