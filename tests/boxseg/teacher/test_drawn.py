"""Drawn masks take the place of pseudo masks, box by box."""

from dataclasses import replace
from typing import Any

import torch

from boxseg.config.method import PcConfig
from boxseg.config.presets import RELEASED
from boxseg.copy_paste.bank import BANKS
from boxseg.copy_paste.paste import paste_peers
from boxseg.ops.masks import box_masks
from boxseg.structures import Batch, DrawnMasks, PseudoMasks
from boxseg.teacher.drawn import prefer_drawn


def released(**changes: Any) -> PcConfig:
    """Settings of the released code, which the worked numbers are of."""
    return PcConfig(**RELEASED["pc"] | changes)


def left_half(count):
    mask = torch.zeros(count, 4, 4, dtype=torch.bool)
    mask[:, :, :2] = True
    return mask


def teacher_says(count, quality=0.3):
    mask, number = ~left_half(count), torch.full((count,), quality)
    return PseudoMasks(mask, mask * 0.7, number, number, torch.full((count,), 5))


def test_a_drawn_mask_replaces_the_teachers_mask_of_its_box_alone():
    drawn = DrawnMasks(
        left_half(2) & torch.tensor([True, False])[:, None, None], torch.tensor([True, False])
    )
    before = teacher_says(2)
    (after,) = prefer_drawn([drawn], [before])
    assert torch.equal(after.mask, torch.stack([left_half(1)[0], before.mask[1]]))
    assert torch.equal(after.soft[0], left_half(1)[0].float())
    assert torch.equal(after.soft[1], before.soft[1])
    torch.testing.assert_close(after.quality, torch.tensor([1.0, 0.3]))
    torch.testing.assert_close(after.score, torch.tensor([1.0, 0.3]))
    assert torch.equal(before.quality, torch.tensor([0.3, 0.3]))


def test_masks_known_on_every_pixel_are_replaced_there_too():
    drawn = DrawnMasks(left_half(2), torch.tensor([True, False]))
    full = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5
    (after,) = prefer_drawn([drawn], [replace(teacher_says(2), full=full)])
    assert torch.equal(after.full[0, 2::4, 2::4], drawn.mask[0])
    assert torch.equal(after.full[1], full[1])


def test_without_a_teacher_only_drawn_masks_count():
    drawn = DrawnMasks(
        left_half(2) & torch.tensor([True, False])[:, None, None], torch.tensor([True, False])
    )
    (after,) = prefer_drawn([drawn], None)
    assert after.quality.tolist() == [1, 0]
    assert after.mask.flatten(1).sum(dim=1).tolist() == [8, 0]


def test_a_drawn_mask_between_the_cell_centres_counts_as_none():
    empty = DrawnMasks(torch.zeros(1, 4, 4, dtype=torch.bool), torch.tensor([True]))
    assert prefer_drawn([empty], None)[0].quality.tolist() == [0]
    assert torch.equal(prefer_drawn([empty], [teacher_says(1)])[0].mask, ~left_half(1))


def test_an_image_without_boxes_stays_empty():
    none = DrawnMasks(torch.zeros(0, 4, 4, dtype=torch.bool), torch.zeros(0, dtype=torch.bool))
    assert (
        len(prefer_drawn([none], None)[0].mask)
        == len(prefer_drawn([none], [teacher_says(0)])[0].mask)
        == 0
    )


def test_a_peer_pasted_over_a_drawn_mask_covers_it_and_good_drawn_masks_enter_the_bank():
    drawn = DrawnMasks(
        box_masks(torch.tensor([[8.0, 8, 40, 40]]), 64, 64, stride=4), torch.tensor([True])
    )
    pixels = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    batch = Batch(
        weak=pixels,
        strong=pixels,
        valid=torch.ones(1, 64, 64, dtype=torch.bool),
        boxes=[torch.tensor([[8.0, 8, 40, 40]])],
        labels=[torch.tensor([0])],
        sizes=[(64, 64)],
        original_sizes=[(64, 64)],
        image_ids=[0],
    )
    bank = BANKS["classes"](8)
    settings = released(min_area=20, warmup=0, p_end=1.0)
    labels = prefer_drawn([drawn], None)
    paste_peers(
        batch, labels, bank, step=0, settings=settings, generator=torch.Generator().manual_seed(0)
    )
    assert len(bank) == 1
    changed, after, _ = paste_peers(
        batch, labels, bank, step=0, settings=settings, generator=torch.Generator().manual_seed(0)
    )
    own, pasted = after[0].mask
    assert torch.equal(own, drawn.mask[0] & ~pasted)
    assert not torch.equal(own, drawn.mask[0])
    assert after[0].quality.tolist() == [1, 1]
    assert changed.drawn is None
