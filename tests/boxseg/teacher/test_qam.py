"""Ranking, fusion and scoring, with numbers worked by hand for `docs/method.md#pseudo-masks`."""

from typing import Any

import pytest
import torch

from boxseg.config.method import QamConfig
from boxseg.config.presets import RELEASED
from boxseg.errors import ShapeError
from boxseg.structures import Candidates, PseudoMasks
from boxseg.teacher.qam import fuse_masks, make_pseudo_masks, rank_candidates, score_masks
from boxseg.teacher.quality import qam_metrics
from boxseg.teacher.ranking import adaptive_k


def released(**changes: Any) -> QamConfig:
    """Settings of the released code, which the worked numbers are of."""
    return QamConfig(**RELEASED["qam"] | changes)


PROBS = torch.tensor(
    [
        [[0.1, 0.2, 0.1, 0], [0.2, 0.9, 0.8, 0.1], [0.1, 0.9, 0.7, 0.2], [0, 0.1, 0.2, 0.1]],
        [[0.1, 0.1, 0.6, 0], [0.3, 0.8, 0.9, 0.6], [0.1, 0.7, 0.8, 0.3], [0, 0.1, 0.1, 0.1]],
        [[0, 0.1, 0.1, 0], [0.1, 0.6, 0.4, 0.1], [0.2, 0.8, 0.9, 0.1], [0.1, 0.6, 0.6, 0.1]],
    ]
)
SCORES = torch.tensor([0.9, 0.6, 0.4])
IOUS = torch.tensor([0.85, 0.75, 0.6])
ONE_BOX = torch.zeros(3, dtype=torch.int64)
FUSED = torch.zeros(1, 4, 4, dtype=torch.bool)
FUSED[0, 1:3, 1:3] = True


def random_candidates(seed, boxes=4, count=9, size=6):
    random = torch.Generator().manual_seed(seed)
    return Candidates(
        mask_probs=torch.rand(count, size, size, generator=random),
        score=torch.rand(count, generator=random),
        box_iou=torch.rand(count, generator=random),
        box_index=torch.randint(0, boxes, (count,), generator=random).sort().values,
    )


def test_votes_of_the_worked_example():
    mask, soft = fuse_masks(PROBS, ONE_BOX, 1)
    votes = torch.tensor([[0.0, 0, 1, 0], [0, 3, 2, 1], [0, 3, 3, 0], [0, 1, 1, 0]])
    torch.testing.assert_close(soft[0], votes / 3)
    assert torch.equal(mask, FUSED)


def test_scores_of_the_worked_example():
    quality, score = score_masks(PROBS, FUSED, SCORES, ONE_BOX)
    assert float(quality) == pytest.approx(0.734879, abs=1e-5)
    assert float(score) == pytest.approx(0.633333, abs=1e-5)
    for index, expected in enumerate((0.885297, 0.765942, 0.553399)):
        alone, _ = score_masks(
            PROBS[index : index + 1], FUSED, SCORES[index : index + 1], ONE_BOX[:1]
        )
        assert float(alone) == pytest.approx(expected, abs=1e-5)


def test_score_without_agreement_is_the_mean_confidence():
    quality, _ = score_masks(PROBS[:1], FUSED, torch.ones(1), ONE_BOX[:1], agreement=False)
    assert float(quality) == pytest.approx((3.3 / 4) ** 0.5, abs=1e-5)


def test_score_floor_weakens_the_detection_score():
    for floor in (0.0, 0.5, 1.0):
        quality, _ = score_masks(PROBS[:1], FUSED, SCORES[:1], ONE_BOX[:1], score_floor=floor)
        assert float(quality) == pytest.approx(
            ((0.9 + floor) / (1 + floor) * 0.825) ** 0.5, abs=1e-5
        )


def test_weighted_fusion_of_the_worked_example():
    beta = (SCORES * IOUS).sqrt()
    torch.testing.assert_close(
        beta, torch.tensor([0.874643, 0.670820, 0.489898]), atol=1e-5, rtol=0
    )
    mask, soft = fuse_masks(PROBS, ONE_BOX, 1, fusion="weighted", weights=beta)
    expected = torch.tensor([[0.794834, 0.736681], [0.810014, 0.781097]])
    torch.testing.assert_close(soft[0, 1:3, 1:3], expected, atol=1e-5, rtol=0)
    assert torch.equal(mask, FUSED)


def test_two_disjoint_masks_make_an_empty_one_of_quality_zero():
    probs = torch.zeros(2, 2, 2)
    probs[0, 0, 0] = probs[1, 1, 1] = 0.9
    mask, _ = fuse_masks(probs, ONE_BOX[:2], 1)
    assert not bool(mask.any())
    for agreement in (True, False):
        quality, score = score_masks(probs, mask, SCORES[:2], ONE_BOX[:2], agreement=agreement)
        assert float(quality) == 0
        assert float(score) == pytest.approx(0.75)


def test_one_candidate_is_the_mask_and_half_of_the_votes_are_not_enough():
    alone, _ = fuse_masks(PROBS[:1], ONE_BOX[:1], 1)
    assert torch.equal(alone[0], PROBS[0] > 0.5)
    pair, _ = fuse_masks(PROBS[:2], ONE_BOX[:2], 1)
    assert torch.equal(pair[0], (PROBS[0] > 0.5) & (PROBS[1] > 0.5))
    generous, _ = fuse_masks(PROBS[:2], ONE_BOX[:2], 1, vote_thr=0.4)
    assert torch.equal(generous[0], (PROBS[0] > 0.5) | (PROBS[1] > 0.5))


@pytest.mark.parametrize("fusion", ["vote", "weighted"])
@pytest.mark.parametrize("seed", range(5))
def test_boxes_together_equal_each_box_alone_in_any_order(fusion, seed):
    one = random_candidates(seed)
    shuffle = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    weights = (one.score * one.box_iou).sqrt()
    mask, soft = fuse_masks(
        one.mask_probs[shuffle],
        one.box_index[shuffle],
        5,
        fusion=fusion,
        weights=weights[shuffle],
        mask_thr=0.4,
    )
    quality, score = score_masks(
        one.mask_probs[shuffle], mask, one.score[shuffle], one.box_index[shuffle], mask_thr=0.4
    )
    for box in range(5):
        own = one.box_index == box
        index = torch.zeros(int(own.sum()), dtype=torch.int64)
        mask_alone, soft_alone = fuse_masks(
            one.mask_probs[own], index, 1, fusion=fusion, weights=weights[own], mask_thr=0.4
        )
        torch.testing.assert_close(soft[box], soft_alone[0])
        assert torch.equal(mask[box], mask_alone[0])
        alone = score_masks(one.mask_probs[own], mask_alone, one.score[own], index, mask_thr=0.4)
        torch.testing.assert_close((quality[box], score[box]), (alone[0][0], alone[1][0]))


@pytest.mark.parametrize("agreement", [True, False])
@pytest.mark.parametrize("fusion", ["vote", "weighted"])
@pytest.mark.parametrize("seed", range(10))
def test_quality_is_in_the_unit_interval_and_zero_only_without_a_mask(seed, fusion, agreement):
    one = random_candidates(seed, boxes=5, size=3)
    mask, _ = fuse_masks(one.mask_probs, one.box_index, 6, fusion=fusion, weights=one.score)
    quality, _ = score_masks(one.mask_probs, mask, one.score, one.box_index, agreement=agreement)
    assert float(quality.min()) >= 0
    assert float(quality.max()) <= 1
    assert torch.equal(quality == 0, ~mask.flatten(1).any(dim=1))


@pytest.mark.parametrize(
    ("area", "expected"),
    [(2500, 9.21875), (4096, 12.5), (1024, 5), (100, 5), (9216, 20), (1e6, 20)],
)
def test_adaptive_k_of_the_worked_examples(area, expected):
    assert float(adaptive_k(torch.tensor([float(area)]), QamConfig())) == pytest.approx(
        expected, abs=1e-5
    )


def detections():
    gt_boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    gt_labels = torch.tensor([1, 0])
    boxes = torch.tensor(
        [[0.0, 0, 10, 9], [0, 0, 10, 10], [0, 0, 10, 8], [20, 20, 30, 29], [0, 0, 10, 9]]
    )
    labels = torch.tensor([1, 0, 1, 0, 1])
    scores = torch.tensor([0.3, 0.9, 0.8, 0.05, 0.7])
    return gt_boxes, gt_labels, boxes, labels, scores


def test_reference_order_takes_the_best_boxes_first_and_filters_them():
    index, box_index, iou = rank_candidates(*detections(), k_top=2)
    # place 1 has another class and filled a slot; the tie goes to the lower index
    assert index.tolist() == [0]
    assert box_index.tolist() == [0]
    assert iou.tolist() == pytest.approx([0.9])


def test_filters_first_fill_every_slot_and_break_ties_by_score():
    index, box_index, iou = rank_candidates(*detections(), k_top=3, filter_first=True)
    assert index.tolist() == [4, 0, 2]
    assert box_index.tolist() == [0, 0, 0]
    assert iou.tolist() == pytest.approx([0.9, 0.9, 0.8])
    index, box_index, _ = rank_candidates(
        *detections(), k_top=3, filter_first=True, score_thr=0.0, class_match=False
    )
    assert index.tolist() == [1, 4, 0, 3]
    assert box_index.tolist() == [0, 0, 0, 1]


def test_thresholds_of_the_ranking_are_strict():
    gt_boxes, gt_labels, boxes, labels, scores = detections()
    strict, *_ = rank_candidates(
        gt_boxes, gt_labels, boxes, labels, scores, iou_thr=0.9, score_thr=0.0, class_match=False
    )
    assert strict.tolist() == [1]
    strict, *_ = rank_candidates(
        gt_boxes, gt_labels, boxes, labels, scores, score_thr=0.7, filter_first=True
    )
    assert strict.tolist() == [2]


def test_each_box_may_have_its_own_limit():
    index, box_index, _ = rank_candidates(
        *detections(), filter_first=True, score_thr=0.0, k_per_box=torch.tensor([2.0, 5.0])
    )
    assert index.tolist() == [4, 0, 3]
    assert box_index.tolist() == [0, 0, 1]


def test_ranking_equals_a_loop_over_boxes():
    random = torch.Generator().manual_seed(0)
    corners = torch.rand(60, 2, generator=random) * 20
    boxes = torch.cat([corners, corners + 5 + torch.rand(60, 2, generator=random) * 20], dim=1)
    labels, scores = torch.randint(0, 2, (60,), generator=random), torch.rand(60, generator=random)
    gt_boxes, gt_labels = boxes[:7] + 0.5, labels[:7]
    found = rank_candidates(
        gt_boxes, gt_labels, boxes, labels, scores, k_top=4, iou_thr=0.3, filter_first=True
    )
    for box in range(7):
        alone = rank_candidates(
            gt_boxes[box : box + 1],
            gt_labels[box : box + 1],
            boxes,
            labels,
            scores,
            k_top=4,
            iou_thr=0.3,
            filter_first=True,
        )
        own = found[1] == box
        assert found[0][own].tolist() == alone[0].tolist()
        assert bool((alone[2][:-1] >= alone[2][1:]).all())


@pytest.mark.parametrize("filter_first", [True, False])
def test_no_boxes_or_no_detections_give_no_candidates(filter_first):
    gt_boxes, gt_labels, boxes, labels, scores = detections()
    for some in (
        (gt_boxes[:0], gt_labels[:0], boxes, labels, scores),
        (gt_boxes, gt_labels, boxes[:0], labels[:0], scores[:0]),
    ):
        assert [len(part) for part in rank_candidates(*some, filter_first=filter_first)] == [
            0,
            0,
            0,
        ]


def test_groups_of_candidates_survive_the_loss_of_some():
    candidates = Candidates(PROBS, SCORES, IOUS, torch.tensor([0, 1, 1]))
    boxes = torch.tensor([[0.0, 0, 15, 15]] * 2)
    # the second candidate has an empty box and is dropped after ranking
    left = torch.tensor([0, 2])
    # the reference splits what is left by the counts from before
    with pytest.raises(RuntimeError):
        PROBS[left].split([1, 2])
    some = Candidates(*(part[left] for part in (PROBS, SCORES, IOUS, candidates.box_index)))
    pseudo = make_pseudo_masks(some, boxes, settings=released())
    assert torch.equal(pseudo.mask, torch.stack([PROBS[0] > 0.5, PROBS[2] > 0.5]))
    assert pseudo.num_candidates.tolist() == [1, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"mask_thr": 0.65},
        {"vote_thr": 0.2},
        {"fusion": "weighted"},
        {"score_floor": 0.0},
        {"agreement": False},
        {"min_quality": 0.9},
    ],
    ids=str,
)
def test_every_setting_of_fusion_and_scoring_has_an_effect(change):
    probs = torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(3))
    candidates = Candidates(
        probs, SCORES[[0, 1, 2, 0, 1]], IOUS[[0, 1, 2, 0, 1]], torch.zeros(5, dtype=torch.int64)
    )

    def outcome(settings):
        pseudo = make_pseudo_masks(candidates, torch.tensor([[0.0, 0, 31, 31]]), settings=settings)
        return [*pseudo.mask.flatten().tolist(), float(pseudo.quality)]

    assert outcome(released()) != outcome(released(**change))


def test_lengths_must_agree():
    gt_boxes, gt_labels, boxes, labels, scores = detections()
    with pytest.raises(ShapeError, match="one length"):
        rank_candidates(gt_boxes, gt_labels, boxes, labels[:2], scores)
    with pytest.raises(ShapeError, match="box_index"):
        fuse_masks(PROBS, ONE_BOX[:2], 1)


def test_pseudo_masks_stay_inside_their_boxes_and_empty_ones_are_not_trusted():
    candidates = Candidates(PROBS, SCORES, IOUS, torch.tensor([0, 0, 2]))
    boxes = torch.tensor([[4.0, 4, 9, 15], [0, 0, 15, 15], [12, 0, 15, 3]])
    pseudo = make_pseudo_masks(candidates, boxes, settings=released(need_inside=True))
    kept = make_pseudo_masks(candidates, boxes, settings=released())
    # the third mask lies outside its box
    assert (kept.quality > 0).tolist() == [True, False, True]
    assert torch.equal(kept.mask, pseudo.mask)
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[1:3, 1] = True  # the right half of the block is outside the box
    assert torch.equal(pseudo.mask[0], expected)
    assert pseudo.num_candidates.tolist() == [2, 0, 1]
    assert (pseudo.quality > 0).tolist() == [True, False, False]
    assert pseudo.score.tolist() == pytest.approx([0.75, 0, 0.4])
    assert not bool(pseudo.mask[1:].any())


def test_a_fused_mask_outside_its_box_is_not_trusted_even_if_colours_find_something_inside():
    probs = torch.full((2, 16, 16), 0.45)
    probs[:, 10:, 10:] = 0.9  # far from the box
    lab = torch.zeros(3, 16, 16)
    lab[0, 2:5, 2:5] = 90.0
    candidates = Candidates(probs, torch.ones(2), torch.ones(2), torch.zeros(2, dtype=torch.int64))
    for need_inside in (False, True):
        settings = released(
            full_resolution=False, fusion="weighted", color_weight=2.0, need_inside=need_inside
        )
        boxes = torch.tensor([[4.0, 4.0, 24.0, 24.0]])
        pseudo = make_pseudo_masks(candidates, boxes, settings=settings, lab=lab)
        assert pseudo.mask.any()
        assert bool(pseudo.quality > 0) is not need_inside


def test_low_quality_counts_as_none():
    candidates = Candidates(PROBS, SCORES, IOUS, ONE_BOX)
    box = torch.tensor([[0.0, 0, 15, 15]])
    for limit, expected in ((0.73, 0.734879), (0.74, 0.0)):
        pseudo = make_pseudo_masks(candidates, box, settings=released(min_quality=limit))
        assert float(pseudo.quality) == pytest.approx(expected, abs=1e-5)


def test_a_labelling_with_nms_uses_the_quality_of_boxteacher():
    candidates = Candidates(PROBS[:1], SCORES[:1], IOUS[:1], torch.tensor([1]))
    boxes = torch.tensor([[0.0, 0, 15, 15], [0, 0, 15, 15]])
    pseudo = make_pseudo_masks(candidates, boxes, settings=released(), with_nms=True)
    assert pseudo.quality.tolist() == pytest.approx([0, (0.9**0.5 * 3.3 / 4) ** 0.5], abs=1e-5)
    assert torch.equal(pseudo.mask[1], PROBS[0] > 0.5)
    assert pseudo.score.tolist() == pytest.approx([0, 0.9])


def test_metrics_with_and_without_boxes():
    empty = torch.zeros(0, 2, 2)
    some = PseudoMasks(
        empty, empty, torch.tensor([0.5, 0.0]), torch.tensor([0.5, 0.0]), torch.tensor([3, 0])
    )
    none = PseudoMasks(
        empty, empty, torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    )
    metrics = {name: float(value) for name, value in qam_metrics([some, none]).items()}
    assert metrics == {"qam/quality": 0.25, "qam/coverage": 0.5, "qam/candidates": 1.5}
    assert {float(value) for value in qam_metrics([none]).values()} == {0.0}
