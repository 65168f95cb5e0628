"""Fusion on every pixel, against a plain loop over `docs/method.md#fusion`, and against fusion on cells."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from boxseg.config.method import QamConfig
from boxseg.config.presets import RELEASED
from boxseg.ops.masks import aligned_bilinear, box_masks
from boxseg.structures import Candidates, MaskFrame
from boxseg.teacher import enlarge
from boxseg.teacher.qam import make_pseudo_masks


def released(**changes: Any) -> QamConfig:
    """Settings of the released code, which the worked numbers are of."""
    return QamConfig(**RELEASED["qam"] | changes)


FRAME = MaskFrame(view=(86, 70), image=(55, 44), padded=(64, 64))
SAME = MaskFrame(view=(55, 44), image=(55, 44), padded=(64, 64))
BOXES = torch.tensor(
    [[4.2, 6.5, 30.7, 50.1], [10.0, 0, 43.5, 20.2], [0, 30.4, 20.0, 54.9], [5, 5, 9, 9]]
)
LABELS = torch.tensor([0, 1, 0, 2])


def make_candidates(frame, seed=0):
    """Candidates of three boxes; the last box has none."""
    random = torch.Generator().manual_seed(seed)
    padded = [-(-side // 32) * 32 for side in frame.view]
    coarse = torch.rand(7, 1, 5, 5, generator=random)
    probs = F.interpolate(coarse, [side // 4 for side in padded], mode="bicubic").clamp(0, 1)[:, 0]
    score, iou = torch.rand(2, 7, generator=random).unbind()
    return Candidates(probs, score, iou, torch.tensor([0, 0, 0, 1, 1, 2, 2]), frame)


def reference(candidates, box):
    """Mask (h, w) before the box cuts it and quality of one box, as the reference computes them."""
    own = candidates.box_index == box
    view, image = candidates.frame.view, candidates.frame.image
    large = aligned_bilinear(candidates.mask_probs[own], 4)[:, : view[0], : view[1]]
    probs = F.interpolate(large[:, None], image, mode="bilinear", align_corners=False)[:, 0]
    above = probs > 0.5
    mask = above.float().mean(dim=0) > 0.5
    qualities = []
    for p, b, s in zip(probs, above, candidates.score[own], strict=True):
        overlap = (b & mask).sum() / (b | mask).sum().clamp(min=1)
        qualities.append(((s + 1) / 2 * overlap * (p * b).sum() / mask.sum().clamp(min=1)).sqrt())
    return mask, torch.stack(qualities).mean()


@pytest.mark.parametrize("frame", [FRAME, SAME])
@pytest.mark.parametrize("at_once", [1, 2**25])
def test_masks_and_qualities_equal_those_of_the_reference_on_every_pixel(
    frame, at_once, monkeypatch
):
    monkeypatch.setattr(enlarge, "PIXELS_AT_ONCE", at_once)  # 1: one box at a time
    candidates = make_candidates(frame)
    pseudo = make_pseudo_masks(candidates, BOXES, settings=released())
    inside = box_masks(BOXES, 64, 64)
    for box in range(3):
        mask, quality = reference(candidates, box)
        expected = F.pad(mask, (0, 64 - 44, 0, 64 - 55)) & inside[box]
        assert torch.equal(pseudo.full[box], expected)
        torch.testing.assert_close(pseudo.quality[box], quality)
    assert not bool(pseudo.full[3].any())
    assert float(pseudo.quality[3]) == 0
    assert torch.equal(pseudo.mask, pseudo.full[:, 2::4, 2::4])
    assert pseudo.num_candidates.tolist() == [3, 2, 2, 0]


@pytest.mark.parametrize("fusion", ["vote", "weighted"])
def test_where_the_scale_is_one_the_cells_are_those_of_the_coarse_fusion(fusion):
    candidates = make_candidates(SAME)
    settings = released(fusion=fusion)
    fine = make_pseudo_masks(candidates, BOXES, settings=settings)
    valid = F.pad(torch.ones(55, 44), (0, 20, 0, 9))[2::4, 2::4]
    coarse = make_pseudo_masks(
        replace(candidates, mask_probs=candidates.mask_probs * valid, frame=None),
        BOXES,
        settings=settings,
    )
    assert torch.equal(fine.mask, coarse.mask)
    torch.testing.assert_close(fine.soft, coarse.soft, atol=1e-6, rtol=0)
    torch.testing.assert_close(fine.quality, coarse.quality, atol=0.05, rtol=0)
    assert coarse.full is None


def test_an_image_without_boxes_has_empty_maps_of_both_sizes():
    candidates = make_candidates(FRAME)
    none = Candidates(
        *(
            part[:0]
            for part in (candidates.mask_probs, candidates.score, *[candidates.box_index] * 2)
        )
    )
    pseudo = make_pseudo_masks(replace(none, frame=FRAME), BOXES[:0], settings=released())
    assert (pseudo.mask.shape, pseudo.soft.shape, pseudo.full.shape) == (
        (0, 16, 16),
        (0, 16, 16),
        (0, 64, 64),
    )


@pytest.mark.parametrize("counts", [[20] * 20, [0, 31, 1, 0, 32, 40, 2]])
def test_no_more_masks_are_enlarged_at_once_than_fit_unless_one_box_has_more(counts, monkeypatch):
    frame = MaskFrame((8, 8), (8, 8), (32, 32))
    monkeypatch.setattr(enlarge, "PIXELS_AT_ONCE", 31 * 64)
    box_index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    number = torch.arange(len(box_index)).float()
    candidates = Candidates(
        number[:, None, None].expand(-1, 2, 2), number, number, box_index, frame
    )
    seen = list(enlarge.by_boxes(candidates, len(counts)))
    assert [box for own, _ in seen for box in range(own.start, own.stop)] == list(
        range(len(counts))
    )
    assert torch.equal(torch.cat([part.score for _, part in seen]), number)
    for own, part in seen:
        assert torch.equal(part.box_index + own.start, box_index[part.score.long()])
        assert part.mask_probs.shape[1:] == (8, 8)
        assert len(part.score) <= max(31, max(counts[own]))
