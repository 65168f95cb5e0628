"""Final detections from predictions made by hand."""

import numpy as np
import torch

from boxseg.config.method import FcosConfig
from boxseg.mask_parts import MaskPart
from boxseg.model.postprocess import postprocess, with_mask_boxes
from boxseg.ops.detections import decode_detections
from boxseg.structures import Batch, Detections, Predictions

SIZE = (64, 64)


class HalfNetwork:
    """Masks of one given probability in the left half of the image, and of another in the right half."""

    def __init__(self, left, right):
        self.left, self.right = left, right

    def detect(self, predictions, *, score_thr, pre_topk):
        return decode_detections(predictions, score_thr=score_thr, pre_topk=pre_topk)

    def mask_logits(self, predictions, image_index, handle):
        probs = torch.full((len(handle), 16, 16), self.right)
        probs[:, :, :8] = self.left
        return probs.logit()


def predictions(boxes, class_probs, centerness, num_images=1):
    """One location (32, 32) of stride 8 for each box, in one level."""
    boxes = torch.tensor(boxes, dtype=torch.float32)
    count = len(boxes)
    locations = torch.full((count, 2), 32.0)
    distances = torch.cat([locations - boxes[:, :2], boxes[:, 2:] - locations], dim=1) / 8
    return Predictions(
        class_logits=torch.tensor(class_probs).logit().expand(num_images, -1, -1),
        distances=distances.expand(num_images, -1, -1),
        centerness_logits=torch.tensor(centerness).logit().expand(num_images, -1),
        controller_maps=torch.zeros(num_images, count, 1),
        patches=torch.zeros(count, 9, dtype=torch.int64),
        mask_features=torch.zeros(num_images, 1, 8, 8),
        locations=locations,
        strides=torch.full((count,), 8.0),
        levels=torch.zeros(count, dtype=torch.int64),
    )


def run(
    found,
    *,
    left=0.9,
    right=1e-6,
    size=SIZE,
    original_size=SIZE,
    score_thr=0.05,
    pre_topk=100,
    topk=100,
):
    count = len(found.class_logits)
    pixels = torch.zeros(count, 3, *SIZE, dtype=torch.uint8)
    batch = Batch(
        weak=pixels,
        strong=pixels,
        valid=torch.ones(count, *SIZE, dtype=torch.bool),
        boxes=[torch.zeros(0, 4)] * count,
        labels=[torch.zeros(0, dtype=torch.int64)] * count,
        sizes=[size] * count,
        original_sizes=[original_size] * count,
        image_ids=list(range(7, 7 + count)),
    )
    settings = FcosConfig(score_thr=score_thr, pre_topk=pre_topk, nms_thr=0.6, topk=topk)
    return postprocess(HalfNetwork(left, right), found, batch, settings)


def test_score_of_the_worked_example():
    # class .81, centre-ness .49, mean probability inside the mask .9
    (result,) = run(predictions([[10, 10, 50, 50]], [[0.81]], [0.49]), right=0.9)
    torch.testing.assert_close(result.scores, torch.tensor([0.752994]))
    assert result.masks.all()


def test_masks_are_probabilities_above_one_half():
    (result,) = run(predictions([[10, 10, 50, 50]], [[0.81]], [0.49]))
    torch.testing.assert_close(result.boxes, torch.tensor([[10.0, 10.0, 50.0, 50.0]]))
    assert result.masks.shape == (1, 64, 64)
    assert result.masks[0, :, :30].all()
    assert not result.masks[0, :, 36:].any()
    assert result.image_id == 7


def test_the_product_of_class_and_centerness_is_thresholded():
    found = predictions([[10, 10, 50, 50], [0, 0, 20, 20]], [[0.2], [0.2]], [0.2, 0.3])
    (result,) = run(found)
    assert result.boxes.tolist() == [[0.0, 0.0, 20.0, 20.0]]


def test_nms_drops_the_weaker_of_one_class_and_keeps_other_classes():
    boxes = [[10, 10, 50, 50], [11, 10, 50, 50], [10, 10, 50, 51]]
    (result,) = run(predictions(boxes, [[0.9, 1e-4], [0.8, 1e-4], [1e-4, 0.7]], [0.9, 0.9, 0.9]))
    assert result.labels.tolist() == [0, 1]
    torch.testing.assert_close(
        result.boxes, torch.tensor([boxes[0], boxes[2]], dtype=torch.float32)
    )


def test_only_the_best_detections_are_kept():
    boxes = [[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 60, 60]]
    found = predictions(boxes, [[0.5], [0.9], [0.7]], [0.9, 0.9, 0.9])
    assert run(found, topk=2)[0].boxes[:, 0].tolist() == [20.0, 40.0]
    assert run(found, pre_topk=1)[0].boxes[:, 0].tolist() == [20.0]


def test_boxes_and_masks_have_the_size_of_the_file_and_are_clipped():
    (result,) = run(
        predictions([[10, 10, 80, 50]], [[0.9]], [0.9]), size=(60, 60), original_size=(120, 180)
    )
    torch.testing.assert_close(result.boxes, torch.tensor([[30.0, 20.0, 180.0, 100.0]]))
    assert result.masks.shape == (1, 120, 180)


def test_a_box_outside_the_image_is_dropped():
    (result,) = run(
        predictions([[62, 10, 80, 50]], [[0.9]], [0.9]), size=(60, 60), original_size=(60, 60)
    )
    assert len(result.scores) == 0


def test_no_detection_gives_empty_tensors():
    (result,) = run(predictions([[10, 10, 50, 50]], [[0.01]], [0.5]), original_size=(100, 90))
    assert result.boxes.shape == (0, 4)
    assert result.masks.shape == (0, 100, 90)
    assert result.masks.dtype == torch.bool


def test_an_empty_mask_gets_score_zero():
    (result,) = run(predictions([[10, 10, 50, 50]], [[0.9]], [0.9]), left=0.4)
    assert result.scores.tolist() == [0.0]


def test_detections_are_sorted_by_score_with_their_masks():
    found = predictions(
        [[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 60, 60]], [[0.5], [0.9], [0.7]], [0.9] * 3
    )
    (result,) = run(found)
    assert result.masks.sum(dim=(1, 2)).unique().numel() == 1
    assert result.boxes[:, 0].tolist() == [20.0, 40.0, 0.0]


def test_images_of_a_batch_are_treated_alike():
    results = run(predictions([[10, 10, 50, 50]], [[0.81]], [0.49], num_images=2))
    assert [result.image_id for result in results] == [7, 8]
    assert torch.equal(results[0].masks, results[1].masks)


def test_boxes_can_be_the_bounds_of_masks_of_which_the_weaker_is_dropped():
    masks = np.zeros((4, 8, 8), dtype=bool)
    masks[0, 1:5, 2:7] = True
    masks[1, 1:5, 2:8] = True
    masks[2, 1:5, 2:7] = True
    found = Detections(
        boxes=torch.tensor([[0.0, 0, 8, 8], [0, 4, 8, 8], [3, 0, 8, 4], [1, 1, 3, 3]]),
        scores=torch.tensor([0.9, 0.8, 0.7, 0.6]),
        labels=torch.tensor([0, 0, 1, 0]),
        parts=[MaskPart(mask) for mask in masks],
        size=(8, 8),
    )
    kept = with_mask_boxes(found, nms_thr=0.6)
    # Row 1 is row 0 again, row 2 is of another class, row 3 has no mask.
    assert kept.boxes.tolist() == [[2, 1, 7, 5], [2, 1, 7, 5], [1, 1, 3, 3]]
    torch.testing.assert_close(kept.scores, found.scores[[0, 2, 3]])
    assert [part.area for part in kept.parts] == [20, 20, 0]
