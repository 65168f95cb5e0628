"""How often a step waits for its device: as often for many boxes as for few, and never to send something there."""

import pytest
from far_device import FAR, far_device

from benchmarks.scenario import STEP, Scenario, build
from boxseg.engine.train import optimise
from boxseg.model.postprocess import postprocess

MOST = 13
"""Reads of a step of the full method."""


def waits_of_a_step(folder, method="full", **changes):
    with far_device() as waits:
        trainer, batch = build(
            Scenario(**{"size": 64, "batch_size": 1, "small": True} | changes), method, folder, FAR
        )
        for group in trainer.optimizer.param_groups:
            group["fused"] = False  # known for real devices only
        for _ in range(2):  # until the bank has peers
            optimise(trainer, batch, STEP)
        waits.clear()
        optimise(trainer, batch, STEP)
        return dict(waits)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Waits of a step with one image and two boxes."""
    return waits_of_a_step(tmp_path_factory.mktemp("few"), boxes=2)


@pytest.mark.parametrize(
    "more", [{"boxes": 20}, {"boxes": 2, "batch_size": 4}], ids=["boxes", "images"]
)
def test_waits_of_a_step_do_not_grow_with_boxes_or_images(few, tmp_path, more):
    assert waits_of_a_step(tmp_path, **more) == few


def test_a_step_waits_only_where_it_has_to_read(few):
    assert not [name for name in few if "to the device" in name]
    assert 0 < sum(few.values()) <= MOST


def test_waits_of_an_evaluation_do_not_grow_with_detections(tmp_path):
    counts = []
    with far_device() as waits:
        scenario = Scenario(64, boxes=2, batch_size=1, small=True)
        trainer, batch = build(scenario, "boxinst", tmp_path, FAR)
        seen = trainer.student(batch.weak, batch.valid)
        for most in (2, 20):
            settings = trainer.config.fcos.model_copy(update={"score_thr": 1e-9, "topk": most})
            waits.clear()
            (found,) = postprocess(trainer.student, seen, batch, settings)
            assert len(found.scores) == most
            counts.append(dict(waits))
    assert counts[0] == counts[1] != {}
