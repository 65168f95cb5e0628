"""Small pictures whose colours show what the network missed."""

import torch
import torch.nn.functional as F

from boxseg.ops.neighbours import rgb_to_lab
from boxseg.teacher.refine import refine_by_color, refined_quality

BOX = torch.tensor([[16.0, 16.0, 48.0, 48.0]])


def picture(ring):
    """Lab (3, 16, 16): a red square of 8 x 8 cells with a hole, on green."""
    rgb = torch.tensor([40.0, 160.0, 60.0])[:, None, None].repeat(1, 16, 16)
    rgb[:, ring] = torch.tensor([200.0, 40.0, 40.0])[:, None]
    return rgb_to_lab(rgb)


def square_with_hole():
    ring = torch.zeros(16, 16, dtype=torch.bool)
    ring[4:12, 4:12] = True
    ring[6:9, 6:9] = False
    return ring


def test_a_filled_hole_is_opened_and_a_missing_part_added():
    ring = square_with_hole()
    soft = torch.full((16, 16), 0.05)
    soft[4:12, 4:12] = 0.8
    soft[4:12, 10:12] = 0.4
    refined = refine_by_color(soft[None], picture(ring), BOX, weight=1.0)[0]
    assert torch.equal((refined > 0.5)[4:12, 4:12], ring[4:12, 4:12])


def test_colours_of_a_dark_grey_picture_help_as_much_and_padding_changes_nothing():
    ring = square_with_hole()
    rgb = torch.full((3, 16, 16), 9.0)
    rgb[:, ring] = 30.0
    soft = torch.full((16, 16), 0.05)
    soft[4:12, 4:12] = 0.8
    refined = refine_by_color(soft[None], rgb_to_lab(rgb), BOX, weight=1.0)[0]
    assert torch.equal((refined > 0.5)[4:12, 4:12], ring[4:12, 4:12])
    padded = refine_by_color(
        F.pad(soft, (0, 16))[None], F.pad(rgb_to_lab(rgb), (0, 16)), BOX, weight=1.0
    )[0]
    torch.testing.assert_close(padded[:, :16], refined)


def test_without_weight_or_boxes_nothing_changes():
    soft = torch.rand(1, 16, 16)
    assert refine_by_color(soft, picture(square_with_hole()), BOX, weight=0.0) is soft
    assert refine_by_color(soft[:0], picture(square_with_hole()), BOX[:0], weight=1.0).shape == (
        0,
        16,
        16,
    )


def test_a_picture_of_one_colour_keeps_the_mask():
    soft = torch.rand(1, 16, 16).clamp(0.01, 0.99)
    refined = refine_by_color(soft, torch.zeros(3, 16, 16), BOX, weight=1.0)
    torch.testing.assert_close(refined, soft)


def test_boxes_do_not_disturb_one_another():
    soft, lab = torch.rand(2, 16, 16), picture(square_with_hole())
    boxes = torch.cat([BOX, BOX + 4])
    together = refine_by_color(soft, lab, boxes, weight=1.0)
    torch.testing.assert_close(together[:1], refine_by_color(soft[:1], lab, boxes[:1], weight=1.0))
    assert together.min() >= 0
    assert together.max() <= 1


def test_quality_is_certainty():
    inside = torch.zeros(1, 4, 4, dtype=torch.bool)
    inside[:, :2] = True
    mask = torch.zeros_like(inside)
    mask[:, 0] = True
    soft = torch.where(mask, 0.9, torch.where(inside, 0.3, 0.0))
    # inside the mask 0.9; |2p - 1| is 0.8 on it and 0.4 on the other half of the box; cells outside do not count
    torch.testing.assert_close(
        refined_quality(soft, mask, inside), torch.tensor([(0.9 * 0.6) ** 0.5])
    )
    assert refined_quality(mask.float(), mask, inside) == 1
    assert refined_quality(soft, torch.zeros_like(mask), inside) == 0
