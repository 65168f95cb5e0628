"""Numbers worked by hand."""

import math

import pytest
import torch

from boxseg.evaluation.pseudo_quality import auroc, mask_iou, quality_metrics, ranks


def test_auroc_counts_the_pairs_in_the_right_order():
    # positives 0.9 and 0.4 against negatives 0.5, 0.4: wins 2 of 2, then 0 and a tie
    assert auroc([0.9, 0.4, 0.5, 0.4], [True, True, False, False]) == pytest.approx(2.5 / 4)


def test_auroc_of_one_kind_is_undefined():
    assert math.isnan(auroc([0.1, 0.2], [True, True]))


def test_summary_of_pseudo_masks():
    metrics = quality_metrics([(0.9, 0.8), (0.5, 0.75), (0.6, 0.3), (0.0, 0.0)])
    assert metrics["pseudo_iou"] == pytest.approx(0.4625)
    assert metrics["quality_auroc"] == pytest.approx(3 / 4)
    assert metrics["quality_rank"] == pytest.approx(0.8)


def test_equal_values_share_their_ranks():
    assert ranks([0.5, 0.1, 0.5, 0.9, 0.5]).tolist() == [3, 1, 3, 5, 3]
    assert ranks([]).tolist() == []


def test_what_is_undefined_is_left_out():
    assert quality_metrics([]) == {}
    assert quality_metrics([(0.5, 0.9), (0.5, 0.8)]) == {"pseudo_iou": pytest.approx(0.85)}


def test_iou_of_masks():
    first = torch.tensor([[[1, 1, 0]], [[0, 0, 0]]], dtype=torch.bool)
    second = torch.tensor([[[0, 1, 1]], [[0, 0, 0]]], dtype=torch.bool)
    torch.testing.assert_close(mask_iou(first, second), torch.tensor([1 / 3, 0.0]))
