"""How often a step waits for the device: as often for many boxes as for few."""

from collections import Counter

import pytest
import torch

from benchmarks.scenario import STEP, Scenario, build
from boxseg.engine.train import optimise

READS = ("aten::_local_scalar_dense", "aten::nonzero")
"""Operations that bring a value, or a number of values, from the device to the host."""


def reads_of_a_step(folder, method="full", **changes):
    trainer, batch = build(
        Scenario(**{"size": 64, "batch_size": 1, "small": True} | changes), method, folder
    )
    for _ in range(2):  # until the bank has peers
        optimise(trainer, batch, STEP)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimise(trainer, batch, STEP)
    counts = Counter(
        {event.key: event.count for event in profile.key_averages() if event.key in READS}
    )
    return [counts[name] for name in READS]


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Reads of a step with one image and two boxes."""
    return reads_of_a_step(tmp_path_factory.mktemp("few"), boxes=2)


@pytest.mark.parametrize(
    "more", [{"boxes": 20}, {"boxes": 2, "batch_size": 4}], ids=["boxes", "images"]
)
def test_reads_of_a_step_do_not_grow_with_boxes_or_images(few, tmp_path, more):
    assert reads_of_a_step(tmp_path, **more) == few


@pytest.mark.gpu
def test_more_boxes_and_images_add_no_wait_on_a_gpu(tmp_path, recwarn):
    """CUDA's own count: each wait is a warning; more boxes or images must not add any."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    counts = []
    for boxes, images in ((2, 1), (20, 1), (2, 4)):
        scenario = Scenario(size=64, boxes=boxes, batch_size=images, small=True)
        trainer, batch = build(scenario, "full", tmp_path, device="cuda")
        for _ in range(2):  # until the bank has peers
            optimise(trainer, batch, STEP)
        recwarn.clear()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            optimise(trainer, batch, STEP)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchroniz" in str(warning.message) for warning in recwarn))
    assert counts[0] == counts[1] == counts[2]
