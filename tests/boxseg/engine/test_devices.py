"""Nothing mixes tensors of the host with those of a device; tried on a device that only pretends."""

import pytest
import torch
from far_device import FAR, FarTensor, far_device

from benchmarks.scenario import STEP, Scenario, build
from boxseg.engine.train import optimise
from boxseg.evaluation.validate import validate
from boxseg.label.boxes import label_boxes
from boxseg.predict import Predictor

SMALL = Scenario(64, boxes=3, batch_size=2, small=True)
TINY = {"backbone": "timm/test_resnet"}
VARIANTS = {
    "full": ("full", {}),
    "boxinst": ("boxinst", {}),
    "supervised": ("supervised", {}),
    "released code": ("full", {"profile": "official"}),
    "one detection per box": ("full", {"teacher": {"with_nms": True}}),
    "teacher sees another size": ("full", {"teacher": {"resize_short": 96, "resize_long": 128}}),
    "masks on every pixel": ("full", {"qam": {"full_resolution": True, "color_weight": 0.0}}),
    "a bank of images": ("full", {"pc": {"bank": "images"}}),
    "in parts": (
        "full",
        {"train": {"accumulate": 2, "clip_norm": 1.0}, "solver": {"optimizer": "adamw"}},
    ),
}


@pytest.fixture
def device():
    with far_device():
        yield FAR


def trained(folder, device, method="full", **over):
    trainer, batch = build(SMALL, method, folder, device, model=TINY, **over)
    for group in trainer.optimizer.param_groups:
        group["fused"] = False  # known for real devices only
    for _ in range(2):  # with peers in the bank at the second
        metrics = optimise(trainer, batch, STEP)
    return trainer, batch, metrics


def test_the_device_notices_what_a_gpu_would(device):
    there, here = torch.arange(3, device=device), torch.arange(3)
    assert isinstance(there * 2, FarTensor)
    for mixed in (lambda: there + here, lambda: here[there], lambda: torch.cat([there, here])):
        with pytest.raises(RuntimeError, match=r"both devices|of the host was indexed"):
            mixed()
    assert (there[here] + torch.tensor(1)).tolist() == [1, 2, 3]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_stays_on_its_device(tmp_path, device, name):
    method, over = VARIANTS[name]
    trainer, _, metrics = trained(tmp_path, device, method, **over)
    assert torch.isfinite(metrics["train/loss"])
    assert all(isinstance(each, FarTensor) for each in trainer.student.state_dict().values())


def test_the_same_numbers_come_out_on_either_device(tmp_path, device):
    far, near = (trained(tmp_path, where, "supervised")[2] for where in (device, "cpu"))
    assert {name: float(value) for name, value in far.items()} == pytest.approx(
        {name: float(value) for name, value in near.items()}, rel=1e-4
    )


@pytest.mark.parametrize("tile", [None, 64], ids=["whole", "in tiles"])
def test_an_evaluation_mixes_no_devices(tmp_path, device, tile):
    size = {"eval_tile": tile, "eval_size": 96}
    few = {"score_thr": 1e-6, "topk": 20}
    trainer, _, _ = trained(tmp_path, device, train=size, fcos=few, data={"max_val_images": 1})
    _, metrics = validate(trainer, folder=tmp_path, step=trainer.steps)
    assert {"val/teacher_mask_ap", "val/student_mask_ap", "qam/pseudo_iou"} <= set(metrics)


def test_prediction_and_labels_mix_no_devices(trained_run, device):
    predictor = Predictor(trained_run.checkpoint, device=str(device))
    image, boxes = (
        torch.randint(256, (3, 64, 64), dtype=torch.uint8),
        torch.tensor([[8.0, 8, 40, 40], [20, 4, 60, 50]]),
    )
    predictor([image, image])
    found = label_boxes(predictor, image, boxes)
    again = label_boxes(predictor, image, boxes, others=found)
    assert found.mask.flatten(1).any(dim=1).all()
    assert again.mask.device.type == found.mask.device.type == "cpu"
