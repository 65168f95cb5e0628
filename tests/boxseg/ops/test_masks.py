"""Mask functions against values worked by hand."""

import pytest
import torch
import torch.nn.functional as F

from boxseg.errors import ShapeError
from boxseg.ops.masks import (
    aligned_bilinear,
    box_masks,
    dice_loss,
    resize_bool,
    resize_mask_part,
    resize_masks,
    tight_boxes,
    visible_boxes,
)

SMALL = torch.tensor([[0.0, 1.0], [2.0, 3.0]])


def test_aligned_bilinear_by_two_gives_the_worked_rows():
    expected = torch.tensor([[0, 0, 0.5, 1], [0, 0, 0.5, 1], [1, 1, 1.5, 2], [2, 2, 2.5, 3]])
    torch.testing.assert_close(aligned_bilinear(SMALL, 2), expected)


def test_aligned_bilinear_by_four_gives_the_worked_rows():
    rows = aligned_bilinear(SMALL, 4)[[0, 4, 7]]
    expected = [
        [0, 0, 0, 0.25, 0.5, 0.75, 1, 1],
        [1, 1, 1, 1.25, 1.5, 1.75, 2, 2],
        [2, 2, 2, 2.25, 2.5, 2.75, 3, 3],
    ]
    torch.testing.assert_close(rows, torch.tensor(expected))


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_aligned_bilinear_keeps_its_input_at_the_middle_of_each_cell(factor):
    maps = torch.randn(2, 3, 5, 7)
    large = aligned_bilinear(maps, factor)
    assert large.shape == (2, 3, 5 * factor, 7 * factor)
    torch.testing.assert_close(
        large[..., factor // 2 :: factor, factor // 2 :: factor], maps, atol=1e-5, rtol=0
    )


def test_aligned_bilinear_of_no_maps_is_empty():
    assert aligned_bilinear(torch.zeros(0, 5, 7), 4).shape == (0, 20, 28)


def test_dice_of_the_worked_maps():
    probs = torch.tensor(
        [[0.1, 0.2, 0.1, 0], [0.2, 0.9, 0.8, 0.1], [0.1, 0.7, 0.6, 0.3], [0, 0.1, 0.2, 0.1]]
    )
    box = torch.zeros(4, 4, dtype=torch.bool)
    box[1:3, 1:3] = True
    whole = dice_loss(probs[None], box[None])
    columns = dice_loss(probs.amax(0)[None], box.any(0)[None])
    rows = dice_loss(probs.amax(1)[None], box.any(1)[None])
    torch.testing.assert_close(
        torch.cat([whole, columns, rows]), torch.tensor([0.086759, 0.050282, 0.053257])
    )


def test_dice_of_two_empty_maps_is_one():
    assert dice_loss(torch.zeros(2, 3, 3), torch.zeros(2, 3, 3)).tolist() == [1.0, 1.0]


def test_dice_of_no_maps_is_empty():
    assert dice_loss(torch.zeros(0, 3, 3), torch.zeros(0, 3, 3)).shape == (0,)


def test_dice_refuses_maps_of_different_shape():
    with pytest.raises(ShapeError, match=r"probs \(2, 3\), target \(2, 4\)"):
        dice_loss(torch.zeros(2, 3), torch.zeros(2, 4))


def test_box_mask_covers_whole_pixels():
    mask = box_masks(torch.tensor([[1.5, 2.0, 4.2, 5.9]]), 8, 8)[0]
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:6, 1:5] = True
    assert torch.equal(mask, expected)


def test_coarse_box_masks_are_sampled_from_the_fine_ones():
    boxes = torch.rand(50, 4) * 40
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
    fine = box_masks(boxes, 64, 96)
    assert torch.equal(box_masks(boxes, 64, 96, stride=4), fine[:, 2::4, 2::4])


def test_box_masks_refuse_a_single_box():
    with pytest.raises(ShapeError, match=r"\(4,\)"):
        box_masks(torch.zeros(4), 8, 8)


def test_tight_boxes_end_after_the_last_cell_and_are_zero_for_empty_masks():
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, 2, 3] = True
    masks[1, 1:4, 0] = True
    masks[1, 5, 7] = True
    assert tight_boxes(masks).tolist() == [[3, 2, 4, 3], [0, 1, 8, 6], [0, 0, 0, 0]]
    assert tight_boxes(masks[:0]).shape == (0, 4)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_visible_boxes_are_the_tight_ones_of_the_free_pixels_in_each_box(share):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(200, 2, generator=generator) * 40 - 8  # some begin or end outside
    boxes = torch.cat([corner, corner + torch.rand(200, 2, generator=generator) * 24], dim=1)
    free = torch.rand(32, 30, generator=generator) < share
    expected = tight_boxes(box_masks(boxes, 32, 30) & free)
    torch.testing.assert_close(visible_boxes(boxes, free), expected, atol=0, rtol=0)


def test_resizing_to_the_same_size_only_cuts_the_padding():
    probs = torch.rand(2, 8, 8)
    resized = resize_masks(probs, size=(20, 30), original_size=(20, 30))
    torch.testing.assert_close(resized, aligned_bilinear(probs, 4)[:, :20, :30])


@pytest.mark.parametrize("original_size", [(20, 30), (61, 97), (13, 11)])
def test_resizing_equals_enlarging_cutting_and_interpolating(original_size):
    probs = torch.rand(2, 8, 8)
    enlarged = aligned_bilinear(probs, 4)[:, None, :20, :30]
    expected = F.interpolate(enlarged, size=original_size, mode="bilinear", align_corners=False)[
        :, 0
    ]
    torch.testing.assert_close(
        resize_masks(probs, size=(20, 30), original_size=original_size), expected
    )


@pytest.mark.parametrize("original_size", [(20, 30), (61, 97), (13, 11)])
def test_a_part_of_a_resized_mask_holds_every_pixel_that_its_cells_touch(original_size):
    probs = torch.rand(8, 8)
    whole = resize_masks(probs[None], size=(20, 30), original_size=original_size)[0]
    part, pixels = resize_mask_part(
        probs, (slice(2, 4), slice(3, 6)), size=(20, 30), original_size=original_size
    )
    torch.testing.assert_close(part, whole[pixels])
    touched = torch.zeros(8, 8)
    touched[2:4, 3:6] = 1.0
    outside = resize_masks(touched[None], size=(20, 30), original_size=original_size)[0]
    outside[pixels] = 0
    assert not outside.any()


def test_resized_masks_have_the_size_of_the_file():
    assert resize_masks(torch.rand(2, 8, 8), size=(20, 30), original_size=(41, 59)).shape == (
        2,
        41,
        59,
    )
    assert resize_masks(torch.rand(0, 8, 8), size=(20, 30), original_size=(41, 59)).shape == (
        0,
        41,
        59,
    )


@pytest.mark.parametrize("size", [(3, 4), (7, 5), (16, 20), (8, 10)])
def test_bool_masks_are_resized_to_the_nearest_pixel(size):
    masks = torch.rand(3, 8, 10, generator=torch.Generator().manual_seed(0)) > 0.5
    expected = torch.nn.functional.interpolate(
        masks[None].float(), size=size, mode="nearest-exact"
    )[0].bool()
    assert torch.equal(resize_bool(masks, size), expected)
    assert resize_bool(masks[:0], size).shape == (0, *size)
