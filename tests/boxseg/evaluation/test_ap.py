"""COCO metrics of hand-made detections."""

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from boxseg.evaluation.ap import area_ratios, coco_scores, encode_detections
from boxseg.mask_parts import MaskPart
from boxseg.structures import Detections


def disc(size=40, radius=14):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return (x - 20) ** 2 + (y - 20) ** 2 <= radius**2


@pytest.fixture
def ground_truth():
    mask = disc()
    rle = mask_utils.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    coco = COCO()
    coco.dataset = {
        "images": [{"id": 5, "width": 40, "height": 40}],
        "categories": [{"id": 3, "name": "disc"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 3, "bbox": [6, 6, 29, 29], "iscrowd": 0, "segmentation": rle,
             "area": float(mask.sum())}
        ],
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def detections(mask):
    return Detections(
        boxes=torch.tensor([[6.0, 6, 35, 35]]),
        scores=torch.tensor([0.9]),
        labels=torch.tensor([0]),
        parts=[MaskPart(mask.numpy())],
        size=(40, 40),
        image_id=5,
    )


def score(found, ground_truth):
    return coco_scores(
        ground_truth, [encode_detections(found)], image_ids=[5], category_ids=[3]
    ).metrics


def test_a_perfect_mask_scores_one(ground_truth):
    metrics = score(detections(disc()), ground_truth)
    assert metrics["mask_ap"] == pytest.approx(1.0)
    assert metrics["box_ap"] == pytest.approx(1.0)
    assert "mask_ap_large" not in metrics


def test_a_filled_box_scores_less_than_its_box(ground_truth):
    filled = torch.zeros(40, 40, dtype=torch.bool)
    filled[6:35, 6:35] = True
    metrics = score(detections(filled), ground_truth)
    assert metrics["box_ap"] == pytest.approx(1.0)
    assert metrics["mask_ap50"] == pytest.approx(1.0)
    assert metrics["mask_ap75"] == 0
    assert area_ratios(encode_detections(detections(filled))).tolist() == [1.0]


def test_no_detection_at_all_scores_zero(ground_truth):
    metrics = coco_scores(ground_truth, [], image_ids=[5], category_ids=[3]).metrics
    assert metrics["mask_ap"] == 0
    assert metrics["box_ap"] == 0


@pytest.mark.parametrize(
    ("boxes", "scores", "best"),
    [
        # a hit, then three others, of which a least score of 0.8 or less would keep some
        ([(6, 35), (0, 5), (0, 5), (0, 5)], [0.857, 0.8, 0.6, 0.3], 0.85),
        # the second one is right
        ([(0, 5), (6, 35), (0, 5)], [0.9, 0.4, 0.35], 0.4),
        ([(0, 5)], [0.9], None),
        ([], [], None),
    ],
)
def test_the_best_score_keeps_what_is_right_and_leaves_out_what_is_not(
    ground_truth, boxes, scores, best
):
    corners = [[start, start, end, end] for start, end in boxes]
    found = Detections(
        boxes=torch.tensor(corners, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(scores),
        labels=torch.zeros(len(boxes), dtype=torch.int64),
        parts=[MaskPart(np.ones((40, 40), dtype=bool)) for _ in boxes],
        size=(40, 40),
        image_id=5,
    )
    assert score(found, ground_truth).get("best_score") == best


def test_unsure_detections_do_not_count_for_the_fill():
    unsure = Detections(
        torch.zeros(1, 4),
        torch.tensor([0.1]),
        torch.zeros(1, dtype=torch.int64),
        [MaskPart(disc().numpy())],
        (40, 40),
    )
    assert area_ratios(encode_detections(unsure)).tolist() == []


def test_without_a_drawn_mask_only_boxes_are_scored(ground_truth):
    del ground_truth.dataset["annotations"][0]["segmentation"]
    metrics = score(detections(disc()), ground_truth)
    assert metrics["box_ap"] == pytest.approx(1.0)
    assert not any(name.startswith("mask") for name in metrics)


def test_images_without_ground_truth_have_no_metrics(ground_truth):
    metrics = coco_scores(ground_truth, [], image_ids=[99], category_ids=[3]).metrics
    assert metrics == {}
