"""Mask R-CNN behind the common interface, on small images."""

import pytest
import torch

from boxseg.build import build_trainer
from boxseg.config.method import BoxSegConfig
from boxseg.engine import checkpoint
from boxseg.engine.train import Progress, optimise, save
from boxseg.evaluation.validate import validate
from boxseg.model.backbone import build_backbone
from boxseg.model.mask_rcnn import OUTSIDE, MaskRcnn, paste_logits
from boxseg.ops.boxes import box_iou
from boxseg.predict import Predictor

BOXES = [torch.tensor([[4.0, 4, 40, 60], [50, 10, 90, 50]]), torch.zeros(0, 4)]
LABELS = [torch.tensor([1, 2]), torch.zeros(0, dtype=torch.int64)]
SMALL = {
    "data": {"toy": {"train_images": 8, "val_images": 2, "size": 64}},
    "model": {"kind": "mask_rcnn", "backbone": "resnet18", "weights": "none", "channels": 16},
    "rcnn": {
        "anchor_sizes": [8, 16, 32, 48, 64],
        "representation": 16,
        "mask_channels": 8,
        "regions": 20,
    },
    "cond": {"max_per_image": 8},
    "train": {"steps": 100, "batch_size": 2, "image_size": 64, "panels": 0},
    "solver": {"optimizer": "adamw", "lr": 1e-3, "warmup": 0},
    "teacher": {"cand_score_thr": 0.01},
    "qam": {"score_thr": 0.0},
    "loss": {"warmup": 0},
}


@pytest.fixture
def network():
    torch.manual_seed(0)
    backbone = build_backbone(name="resnet18", weights="none", frozen_stages=None, norm="auto")
    return MaskRcnn(
        num_classes=3,
        backbone=backbone,
        channels=16,
        anchor_sizes=(16, 32, 64, 96, 128),
        representation=32,
        mask_channels=16,
        mask_convs=1,
        regions=30,
        sampled=32,
        max_per_image=6,
    )


@pytest.fixture
def images():
    return torch.randint(
        0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.fixture
def valid():
    valid = torch.ones(2, 64, 96, dtype=torch.bool)
    valid[1, 50:], valid[1, :, 70:] = False, False
    return valid


def same(value):
    return value


def test_detections_are_the_best_pairs_inside_the_image(network, images, valid):
    predictions = network.eval()(images, valid)
    assert predictions.sizes == [(64, 96), (50, 70)]
    everything = network.detect(predictions, score_thr=0.0, pre_topk=1000)
    for found, regions, (height, width) in zip(
        everything, predictions.regions, predictions.sizes, strict=True
    ):
        assert len(found.scores) == 3 * len(regions)
        assert bool((found.scores.diff() <= 0).all())
        assert bool((found.boxes >= 0).all())
        assert bool((found.boxes <= torch.tensor([width, height, width, height])).all())
        assert torch.equal(
            found.handle, torch.cat([found.boxes, found.labels[:, None].float()], dim=1)
        )
    floor = float(everything[0].scores[4:6].mean())
    few = network.detect(predictions, score_thr=floor**2, pre_topk=1000)[0]
    assert torch.equal(few.scores, everything[0].scores[everything[0].scores > floor])
    assert 0 < len(few.scores) < len(everything[0].scores)
    assert len(network.detect(predictions, score_thr=0.0, pre_topk=5)[1].scores) == 5


def test_masks_follow_their_image_in_any_order_and_end_with_their_window(network, images, valid):
    predictions = network.eval()(images, valid)
    handle = torch.tensor([[8.0, 8, 40, 56, 0], [16.0, 20, 60, 40, 2], [8.0, 8, 40, 56, 0]])
    image_index = torch.tensor([1, 0, 0])
    masks = network.mask_logits(predictions, image_index, handle)
    assert masks.shape == (3, 16, 24)
    for row in range(3):
        alone = network.mask_logits(predictions, image_index[row : row + 1], handle[row : row + 1])
        torch.testing.assert_close(masks[row : row + 1], alone)
    assert not torch.equal(masks[0], masks[2])
    inside = masks[1] != OUTSIDE
    # pixels 18 and 6 are the first in the window 5, 15, 71, 45
    assert inside.nonzero().amin(dim=0).tolist() == [4, 1]
    assert inside.nonzero().amax(dim=0).tolist() == [10, 17]  # pixels 42 and 70 the last
    assert network.mask_logits(predictions, image_index[:0], handle[:0]).shape == (0, 16, 24)


def test_pasted_logits_are_stretched_over_the_box():
    halves = torch.tensor([[[-2.0, 4.0], [-2.0, 4.0]]], requires_grad=True)
    drawn = paste_logits(halves, torch.tensor([[8.0, 0, 40, 32]]), 64, 64)
    columns = drawn[0, 3].detach()
    assert columns[:2].tolist() == [OUTSIDE] * 2
    assert columns[2:4].tolist() == [-2.0, -2.0]
    assert columns[4:8].tolist() == pytest.approx(
        [-2 + 6 * (x - 16) / 16 for x in (18.5, 22.5, 26.5, 30.5)]
    )
    assert columns[8:10].tolist() == [4.0, 4.0]
    assert bool((drawn[0, 9:] == OUTSIDE).all())
    drawn[0, 3, 2].backward()
    assert halves.grad is not None
    assert halves.grad.nonzero().tolist() == [[0, 0, 0], [0, 1, 0]]


def test_proposals_are_regions_that_fit_a_box_and_carry_its_class(network, images, valid):
    terms, proposals = network.detection_losses(
        network(images, valid), BOXES, LABELS, mean_over_ranks=same
    )
    assert set(terms) == {"objectness", "region", "cls", "loc"}
    assert proposals.image_index.unique().tolist() == [0]
    assert proposals.box_index.unique().tolist() == [0, 1]
    assert 2 <= len(proposals) <= 6
    own = BOXES[0][proposals.box_index]
    assert bool((box_iou(proposals.handle[:, :4], own).diagonal() >= 0.5).all())
    assert torch.equal(proposals.handle[:, 4].long(), LABELS[0][proposals.box_index])
    first = proposals.box_index.diff(prepend=torch.tensor([-1])) != 0
    torch.testing.assert_close(proposals.handle[first, :4], BOXES[0])  # the box itself fits best


@pytest.mark.parametrize("boxes", [BOXES, BOXES[1:] * 2])
def test_every_parameter_gets_a_gradient_with_and_without_boxes(network, images, valid, boxes):
    labels = LABELS if boxes is BOXES else LABELS[1:] * 2
    predictions = network(images, valid)
    terms, proposals = network.detection_losses(predictions, boxes, labels, mean_over_ranks=same)
    masks = network.mask_logits(predictions, proposals.image_index, proposals.handle)
    torch.stack([*terms.values(), masks.sigmoid().sum()]).sum().backward()
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in network.parameters())
    if boxes is BOXES:
        assert all(bool(parameter.grad.any()) for parameter in network.mask_head.parameters())


def test_boxes_without_area_are_left_out(network, images, valid):
    flat = [
        torch.cat([torch.tensor([[20.0, 20, 20, 40]]), BOXES[0]]),
        torch.tensor([[0.0, 0, 0, 0]]),
    ]
    labels = [torch.tensor([0, 1, 2]), torch.tensor([0])]
    terms, proposals = network.detection_losses(
        network(images, valid), flat, labels, mean_over_ranks=same
    )
    assert bool(torch.isfinite(torch.stack(list(terms.values()))).all())
    assert set(zip(proposals.image_index.tolist(), proposals.box_index.tolist(), strict=True)) == {
        (0, 1),
        (0, 2),
    }


def test_predictions_stay_float32_under_autocast(network, images, valid):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predictions = network(images, valid)
        terms, proposals = network.detection_losses(
            predictions, BOXES, LABELS, mean_over_ranks=same
        )
        masks = network.mask_logits(predictions, proposals.image_index, proposals.handle)
    tensors = [
        *terms.values(),
        masks,
        proposals.handle,
        predictions.objectness,
        *predictions.anchors,
    ]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


def test_the_full_method_trains_evaluates_and_predicts(tmp_path):
    trainer = build_trainer(BoxSegConfig.model_validate(SMALL), data_root=tmp_path / "data")
    seen = [
        optimise(trainer, batch, step) for step, batch in enumerate(trainer.loader.batches(0, 6))
    ]
    assert {
        "train/loss_objectness",
        "train/loss_region",
        "train/loss_pairwise",
        "qam/coverage",
    } <= set(seen[0])
    assert sum(float(metrics["qam/coverage"]) for metrics in seen) > 0
    metrics = validate(trainer, folder=tmp_path, step=6).metrics
    assert 0 <= metrics["val/mask_ap"] <= 1
    (tmp_path / "checkpoints").mkdir()
    folder = save(trainer, tmp_path / "checkpoints", Progress(step=6))
    found = Predictor(folder, network="student")([trainer.val_data[0].image])[0]
    assert found.masks.shape[1:] == (64, 64)
    kept = checkpoint.load_network(folder, "student")
    assert {name.split(".")[0] for name in kept} >= {
        "backbone",
        "pyramid",
        "rpn",
        "roi_heads",
        "mask_head",
    }
