"""What a GPU must do: give the numbers of the CPU, wait no more than needed, exchange checkpoints with the CPU."""

import math
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.scenario import STEP, Scenario, build
from boxseg.engine.train import Progress, optimise, restore, save
from boxseg.evaluation.validate import validate
from boxseg.label.boxes import label_boxes
from boxseg.predict import Predictor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

SMALL = Scenario(64, boxes=4, batch_size=2, small=True)
FP32 = {"train": {"precision": "fp32"}}
WAIT = "called a synchronizing CUDA operation"
MOST_WAITS = 20
"""A step reads 13 times; some reads, as of `unique` and `bincount`, wait more than once."""


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch):
    """Full fp32: else convolutions round their inputs to ten bits, and no number is that of a CPU."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "ieee")
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee")


def losses(metrics):
    return {name: float(value) for name, value in metrics.items() if "loss" in name}


def steps(folder, device, method, count=3, scenario=SMALL, **over):
    """A trainer after some steps, with a bank that has peers, and the losses of the last one."""
    trainer, batch = build(scenario, method, folder, device, **over)
    for _ in range(count):
        metrics = optimise(trainer, batch, STEP)
    return trainer, batch, losses(metrics)


@pytest.mark.parametrize("method", ["boxinst", "supervised", "qam", "full"])
def test_losses_of_a_step_equal_those_of_the_cpu(tmp_path, method):
    found = {device: steps(tmp_path, device, method, **FP32)[2] for device in ("cuda", "cpu")}
    assert found["cuda"] == pytest.approx(found["cpu"], rel=1e-3, abs=1e-4)


def waits_of_a_step(folder, scenario) -> Counter[str]:
    """How often a step waited for the GPU, by the line that waited."""
    trainer, batch, _ = steps(folder, "cuda", "full", scenario=scenario)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            optimise(trainer, batch, STEP)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    lines = [each for each in found if WAIT in str(each.message)]
    return Counter(f"{Path(each.filename).name}:{each.lineno}" for each in lines)


def test_a_step_waits_as_often_for_many_boxes_and_images_as_for_few(tmp_path):
    few = replace(SMALL, boxes=2, batch_size=1)
    waits = waits_of_a_step(tmp_path, few)
    assert 0 < waits.total() <= MOST_WAITS
    assert waits_of_a_step(tmp_path, replace(few, boxes=20)) == waits
    assert waits_of_a_step(tmp_path, replace(few, batch_size=4)) == waits


@pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "channels_last"])
@pytest.mark.parametrize("method", ["boxinst", "full"])
def test_bf16_is_finite_and_near_fp32(tmp_path, method, channels_last):
    other = {"precision": "bf16", "channels_last": channels_last}
    fp32, bf16 = (
        steps(tmp_path, "cuda", method, train=train)[2] for train in (FP32["train"], other)
    )
    assert all(math.isfinite(value) for value in bf16.values())
    assert bf16["train/loss"] == pytest.approx(fp32["train/loss"], rel=0.1)


@pytest.mark.parametrize("way", [("cuda", "cpu"), ("cpu", "cuda")], ids=["to_cpu", "to_gpu"])
def test_a_checkpoint_can_be_resumed_on_the_other_device(tmp_path, way):
    before, after = way
    settings = {"solver": {"optimizer": "adamw", "lr": 1e-4}, **FP32}
    trainer, batch, _ = steps(tmp_path, before, "full", **settings)
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    saved = save(trainer, checkpoints, Progress(step=3))
    other, other_batch = build(SMALL, "full", tmp_path, after, **settings)
    assert restore(other, saved).step == 3
    for name, value in trainer.student.state_dict().items():
        assert torch.equal(other.student.state_dict()[name].cpu(), value.cpu()), name
    expected = losses(optimise(trainer, batch, STEP))
    assert losses(optimise(other, other_batch, STEP)) == pytest.approx(
        expected, rel=1e-3, abs=1e-4
    )


def test_the_same_seed_gives_the_same_run(tmp_path):
    """Sums of many threads come in any order on a GPU, so the last digits may differ."""
    one, other = (steps(tmp_path, "cuda", "full", count=5, **FP32)[2] for _ in range(2))
    assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_evaluation_prediction_and_labels_equal_those_of_the_cpu(tmp_path):
    trainer, batch, _ = steps(tmp_path, "cuda", "full", fcos={"score_thr": 1e-6}, **FP32)
    assert {"val/mask_ap", "qam/pseudo_iou"} <= set(validate(trainer, folder=tmp_path, step=1)[1])
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    saved = save(trainer, checkpoints, Progress(step=3))
    there, here = (Predictor(saved, device=device) for device in ("cuda", "cpu"))
    image, boxes = batch.weak[0].cpu(), batch.boxes[0].cpu()
    assert len(there([image])[0].scores) == len(here([image])[0].scores) > 0
    masks = [label_boxes(predictor, image, boxes).mask for predictor in (there, here)]
    shared, either = (masks[0] & masks[1]).sum(), (masks[0] | masks[1]).sum()
    assert shared / either > 0.98
