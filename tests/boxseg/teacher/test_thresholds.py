"""Dynamic thresholds, with numbers worked by hand."""

import pytest
import torch

from boxseg.teacher.qam import fuse_masks, score_masks
from boxseg.teacher.thresholds import ThresholdTable, choose_thresholds, threshold_grid

PROBS = torch.tensor(
    [[[0.055, 0.125], [0.935, 0.475]], [[0.105, 0.435], [0.885, 0.535]], [[0.045, 0.145], [0.975, 0.415]]]
)
SCORES = torch.tensor([0.9, 0.6, 0.4])
ONE_BOX = torch.zeros(3, dtype=torch.int64)
GRID = threshold_grid(0.5, 0.1, 0.01)


def test_the_grid_has_21_thresholds():
    assert len(GRID) == 21
    assert (GRID[0], GRID[-1]) == (pytest.approx(0.4), pytest.approx(0.6))


def test_the_threshold_of_the_worked_example_is_the_first_minimum():
    chosen, decided = choose_thresholds(PROBS, ONE_BOX, 1, grid=GRID, per_union=False)
    assert float(chosen) == pytest.approx(0.54, abs=1e-5)
    assert bool(decided)
    up_to_53 = [value for value in GRID if value < 0.535]
    chosen, _ = choose_thresholds(PROBS, ONE_BOX, 1, grid=up_to_53, per_union=False)
    assert float(chosen) == pytest.approx(0.40, abs=1e-5)  # .144338 there and at .44 … .53


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, 0.840755), (0.54, 0.870011)])
def test_quality_at_the_old_and_the_new_threshold(threshold, expected):
    mask, _ = fuse_masks(PROBS, ONE_BOX, 1, mask_thr=threshold)
    quality, _ = score_masks(PROBS, mask, SCORES, ONE_BOX, mask_thr=threshold)
    assert float(quality) == pytest.approx(expected, abs=1e-5)


def test_a_single_candidate_gets_the_first_threshold_in_the_reference():
    chosen, decided = choose_thresholds(PROBS[:1], ONE_BOX[:1], 1, grid=GRID, per_union=False)
    assert float(chosen) == pytest.approx(0.40, abs=1e-5)
    assert bool(decided)
    mask, _ = fuse_masks(PROBS[:1], ONE_BOX[:1], 1, mask_thr=chosen[ONE_BOX[:1]])
    quality, _ = score_masks(PROBS[:1], mask, SCORES[:1], ONE_BOX[:1], mask_thr=chosen[ONE_BOX[:1]])
    assert mask[0].tolist() == [[False, False], [True, True]]
    assert float(quality) == pytest.approx(0.818383, abs=1e-5)


def test_the_repaired_measure_needs_two_candidates_and_a_mask_that_is_left():
    _, decided = choose_thresholds(PROBS[:1], ONE_BOX[:1], 1, grid=GRID, per_union=True)
    assert not bool(decided)
    low = torch.tensor([[[0.45, 0.44]], [[0.43, 0.45]]])
    for per_union, expected in ((True, 0.40), (False, 0.40)):
        chosen, _ = choose_thresholds(low, ONE_BOX[:2], 1, grid=[0.40, 0.44, 0.46], per_union=per_union)
        assert float(chosen) == pytest.approx(expected)
    noisy = torch.tensor([[[0.45, 0.41]], [[0.43, 0.45]]])  # at .42 they differ, at .46 nothing is left
    empty, _ = choose_thresholds(noisy, ONE_BOX[:2], 1, grid=[0.42, 0.46], per_union=False)
    kept, _ = choose_thresholds(noisy, ONE_BOX[:2], 1, grid=[0.42, 0.46], per_union=True)
    assert (float(empty), float(kept)) == (pytest.approx(0.46), pytest.approx(0.42))


def test_boxes_are_decided_independently():
    both = torch.cat([PROBS[:1], PROBS, PROBS[:2]])
    box_index = torch.tensor([0, 1, 1, 1, 3, 3])
    chosen, decided = choose_thresholds(both, box_index, 4, grid=GRID, per_union=False)
    assert decided.tolist() == [True, True, False, True]
    assert float(chosen[1]) == pytest.approx(0.54, abs=1e-5)
    assert [len(part) for part in choose_thresholds(both[:0], box_index[:0], 0, grid=GRID, per_union=True)] == [0, 0]


def test_overwriting_gives_each_box_its_own_threshold():
    table = ThresholdTable(3)
    labels, decided = torch.tensor([1, 1, 0]), torch.tensor([True, True, False])
    used = table.update(labels, torch.tensor([0.4, 0.6, 0.45]), decided, ema=0.0)
    assert used.tolist() == pytest.approx([0.4, 0.6, 0.5])
    assert table.table.tolist() == pytest.approx([0.5, 0.5, 0.5])


def test_averaging_moves_a_class_once_for_each_of_its_boxes():
    table = ThresholdTable(2)
    used = table.update(torch.tensor([1, 1]), torch.tensor([0.6, 0.6]), torch.tensor([True, True]), ema=0.9)
    expected = 0.81 * 0.5 + 0.19 * 0.6
    assert used.tolist() == pytest.approx([expected, expected])
    assert table.table.tolist() == pytest.approx([0.5, expected])
    fresh = ThresholdTable(2)
    fresh.load_state_dict(table.state_dict())
    assert torch.equal(fresh.table, table.table)
