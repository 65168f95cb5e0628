"""Box functions against values worked by hand."""

import torch

from boxseg.ops.boxes import box_area, box_iou, decode_boxes, scale_boxes


def test_iou_of_half_overlapping_boxes_is_one_third():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    others = torch.tensor(
        [[5.0, 0.0, 15.0, 10.0], [20.0, 20.0, 30.0, 30.0], [0.0, 0.0, 10.0, 10.0]]
    )
    torch.testing.assert_close(box_iou(boxes, others), torch.tensor([[1 / 3, 0.0, 1.0]]))


def test_iou_of_boxes_without_area_is_zero_and_finite():
    empty = torch.tensor([[5.0, 5.0, 5.0, 5.0], [9.0, 9.0, 3.0, 3.0]])
    assert torch.equal(box_iou(empty, empty), torch.zeros(2, 2))


def test_iou_with_no_boxes_is_empty():
    assert box_iou(torch.zeros(0, 4), torch.zeros(3, 4)).shape == (0, 3)


def test_iou_works_on_batches():
    boxes, others = torch.rand(2, 3, 4).cumsum(-1), torch.rand(2, 5, 4).cumsum(-1)
    torch.testing.assert_close(box_iou(boxes, others)[1], box_iou(boxes[1], others[1]))


def test_area_of_an_inverted_box_is_zero():
    boxes = torch.tensor([[0.0, 0.0, 3.0, 4.0], [3.0, 4.0, 0.0, 0.0]])
    assert box_area(boxes).tolist() == [12.0, 0.0]


def test_decoding_scales_distances_with_the_stride():
    locations = torch.tensor([[20.0, 20.0], [40.0, 8.0]])
    distances = torch.tensor([[1.25, 1.25, 3.75, 2.5], [1.0, 0.0, 0.5, 2.0]])
    boxes = decode_boxes(locations, distances, torch.tensor([8.0, 16.0]))
    assert boxes.tolist() == [[10.0, 10.0, 50.0, 40.0], [24.0, 8.0, 48.0, 40.0]]


def test_scaling_and_scaling_back_changes_nothing():
    boxes = torch.tensor([[1.0, 2.0, 30.0, 40.0]])
    scaled = scale_boxes(boxes, (100, 50), (200, 25))
    assert scaled.tolist() == [[0.5, 4.0, 15.0, 80.0]]
    torch.testing.assert_close(scale_boxes(scaled, (200, 25), (100, 50)), boxes)
