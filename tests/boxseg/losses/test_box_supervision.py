"""Projection and pairwise losses, with numbers worked by hand for `docs/method.md#box-losses`."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from boxseg.errors import ShapeError
from boxseg.losses.box_supervision import pairwise_loss, pairwise_term, projection_loss
from boxseg.losses.pairs import find_pairs, pair_costs
from boxseg.ops.neighbours import neighbour_offsets, neighbour_view

LOGITS = torch.tensor([[[2.0, 0, -1], [1, 0.5, -2], [0, -1, 3]]])
PROBS = torch.tensor(
    [[[0.1, 0.2, 0.1, 0], [0.2, 0.9, 0.8, 0.1], [0.1, 0.7, 0.6, 0.3], [0, 0.1, 0.2, 0.1]]]
)


def square_box():
    box = torch.zeros(1, 4, 4, dtype=torch.bool)
    box[0, 1:3, 1:3] = True
    return box


def test_pairwise_term_of_the_worked_example():
    near = pairwise_term(LOGITS, dilation=1)
    centre = [0.522115, 0.693147, 0.813262, 0.585925, 0.899592, 0.693147, 0.813262, 0.492914]
    torch.testing.assert_close(near[0, :, 1, 1], torch.tensor(centre), atol=1e-5, rtol=0)
    assert float(near.sum()) == pytest.approx(29.755213, abs=1e-4)
    far = pairwise_term(LOGITS, dilation=2)
    corner = [0, 0, 0, 0, 1.126928, 0, 0.693147, 0.168800]
    torch.testing.assert_close(far[0, :, 0, 0], torch.tensor(corner), atol=1e-5, rtol=0)
    assert far[0, :, 1, 1].tolist() == [0] * 8
    assert float(far.sum()) == pytest.approx(12.860332, abs=1e-4)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_pairwise_term_and_gradient_equal_the_log_space_formula(size):
    logits = (
        torch.randn(3, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 6
    ).requires_grad_()
    term = pairwise_term(logits, size=size, dilation=2)
    assert term.shape == (3, size**2 - 1, 9, 7)
    if size == 1:
        return
    both = [
        F.logsigmoid(sign * logits)[:, None] + neighbour_view(F.logsigmoid(sign * logits), size, 2)
        for sign in (1, -1)
    ]
    on_map = neighbour_view(torch.ones_like(logits), size, 2)
    expected = -torch.logaddexp(*both) * on_map
    torch.testing.assert_close(term, expected, atol=1e-8, rtol=0)
    weights = torch.rand(
        term.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    slopes = [
        torch.autograd.grad((value * weights).sum(), logits)[0] for value in (term, expected)
    ]
    torch.testing.assert_close(*slopes, atol=1e-8, rtol=0)


def test_pairwise_term_of_extreme_logits_is_finite():
    logits = torch.tensor([[[200.0, -200.0], [-300.0, 300.0]]], requires_grad=True)
    term = pairwise_term(logits, dilation=1)
    term.sum().backward()
    assert bool(torch.isfinite(term).all())
    assert bool(torch.isfinite(logits.grad).all())
    assert float(term.detach().max()) == pytest.approx(300 - math.log(2), abs=1e-3)


@pytest.mark.parametrize("reach", [1.0, 6.0, 30.0])
def test_the_cost_of_a_pair_is_right_to_the_last_digits_and_so_is_its_slope(reach):
    logits = (
        torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(3)) * reach
    ).requires_grad_()
    term = pairwise_term(logits, dilation=1)
    term.sum().backward()
    exact, slope = (
        torch.zeros(8, 6, 6, dtype=torch.float64),
        torch.zeros(6, 6, dtype=torch.float64),
    )
    values = logits[0].tolist()
    for index, (row, column) in enumerate(neighbour_offsets(3)):
        for y, x in product(range(6), range(6)):
            if 0 <= y + row < 6 and 0 <= x + column < 6:
                here, there = values[y][x], values[y + row][x + column]
                inverse = 1 / (1 + math.exp(-here - there))
                alike = math.exp(-math.log1p(math.exp(-here)) - math.log1p(math.exp(-there)))
                unlike = math.exp(-math.log1p(math.exp(here)) - math.log1p(math.exp(there)))
                exact[index, y, x] = -math.log(alike + unlike)
                slope[y, x] += 1 / (1 + math.exp(-here)) - inverse
                slope[y + row, x + column] += 1 / (1 + math.exp(-there)) - inverse
    assert bool(((term.detach()[0] - exact).abs() <= 3e-7 * (1 + exact)).all())
    torch.testing.assert_close(logits.grad[0].double(), slope, atol=2e-6, rtol=1e-6)


def test_confident_neighbours_that_agree_cost_nothing_but_a_trace():
    term = pairwise_term(torch.tensor([[[12.0, 14.0]]]), dilation=1)
    # 7e-6: less than the last digit of a difference of numbers like 26
    exact = math.exp(-12) + math.exp(-14)
    assert float(term[0, 4, 0, 0]) == pytest.approx(exact, rel=1e-4)


def test_the_slope_of_a_pair_is_smooth_where_a_logit_is_zero():
    logits = torch.tensor([[[0.0, -2.0]]], requires_grad=True)
    pairwise_term(logits, dilation=1)[0, 4, 0, 0].backward()
    low, middle = 1 / (1 + math.exp(2)), 0.5
    torch.testing.assert_close(logits.grad, torch.tensor([[[middle - low, low - low]]]))


def test_pairwise_loss_is_one_mean_over_alike_pairs_inside_the_boxes():
    term = torch.arange(2.0 * 8 * 4).view(2, 8, 2, 2)
    alike = torch.zeros(2, 8, 2, 2, dtype=torch.bool)
    alike[1, 3] = True
    boxes = torch.zeros(2, 2, 2, dtype=torch.bool)
    boxes[0, 0, 0] = boxes[1, 0] = True
    pairs = find_pairs(boxes)
    costs = pairs.take_pairs(term, torch.arange(2))
    loss = pairwise_loss(costs, pairs.take_pairs(alike, torch.tensor([1, 1])))
    expected = (term[0, 3, 0, 0] + term[1, 3, 0, 0] + term[1, 3, 0, 1]) / 3
    torch.testing.assert_close(loss, expected)
    nothing = pairwise_loss(costs, pairs.take_pairs(alike, torch.tensor([0, 0])))
    assert float(nothing) == 0


@pytest.mark.parametrize(("size", "dilation"), [(3, 2), (5, 1), (1, 2)])
def test_pairs_inside_boxes_are_those_of_the_whole_map_with_the_same_gradient(size, dilation):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, 7, generator=random, dtype=torch.float64, requires_grad=True)
    inside = torch.rand(3, 6, 7, generator=random) < 0.4
    pairs = find_pairs(inside, size=size, dilation=dilation)
    everywhere = pairwise_term(logits, size=size, dilation=dilation)
    chosen = everywhere.movedim(1, -1)[inside]  # (M, S)
    costs = pair_costs(logits, pairs)
    torch.testing.assert_close(costs, chosen)
    weights = torch.rand(costs.shape, generator=random, dtype=torch.float64)
    slopes = [torch.autograd.grad((value * weights).sum(), logits)[0] for value in (costs, chosen)]
    torch.testing.assert_close(*slopes)
    sums = pairs.sum_per_proposal(costs.detach(), 3)
    torch.testing.assert_close(sums, (everywhere.detach() * inside[:, None]).sum(dim=(1, 2, 3)))


def test_projection_of_the_worked_example():
    torch.testing.assert_close(
        projection_loss(PROBS, square_box()), torch.tensor([0.103539]), atol=1e-5, rtol=0
    )


def test_the_first_of_equal_largest_values_gets_the_gradient_of_the_projection():
    box = torch.zeros(1, 3, 4, dtype=torch.bool)
    box[0, 1:, 1:3] = True
    probs = torch.tensor(
        [[[0.5, 0.9, 0.9, 0.2], [0.5, 0.9, 0.3, 0.2], [0.5, 0.9, 0.9, 0.1]]], requires_grad=True
    )
    projection_loss(probs, box).sum().backward()

    def slopes(shadow, target):
        """Derivative of 1 - 2 sum(u v) / (sum(u²) + sum(v²) + 1e-5) by u."""
        size = sum(u * u + v * v for u, v in zip(shadow, target, strict=True)) + 1e-5
        overlap = 2 * sum(u * v for u, v in zip(shadow, target, strict=True))
        return [
            -2 * v / size + overlap * 2 * u / size**2 for u, v in zip(shadow, target, strict=True)
        ]

    expected = torch.zeros(1, 3, 4)
    # all columns have theirs in row 0
    expected[0, 0] += torch.tensor(slopes([0.5, 0.9, 0.9, 0.2], [0, 1, 1, 0]))
    # and all rows in column 1
    expected[0, :, 1] += torch.tensor(slopes([0.9, 0.9, 0.9], [0, 1, 1]))
    torch.testing.assert_close(probs.grad, expected)


@pytest.mark.parametrize("shape", [(2, 5, 7), (3, 64, 64), (1, 33, 128), (1, 17, 1000)])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_first_of_equal_values_is_found_in_maps_of_any_layout(shape, transposed):
    probs = torch.randint(1, 4, shape, generator=torch.Generator().manual_seed(0)) / 4
    if transposed:
        probs = probs.mT.contiguous().mT
    probs.requires_grad_()
    projection_loss(probs, torch.ones(shape, dtype=torch.bool)).sum().backward()
    with_slope = torch.zeros(shape, dtype=torch.bool)
    for image, columns in enumerate(probs.detach().mT.tolist()):
        for x, column in enumerate(columns):
            with_slope[image, column.index(max(column)), x] = True
    for image, rows in enumerate(probs.tolist()):
        for y, row in enumerate(rows):
            with_slope[image, y, row.index(max(row))] = True
    assert torch.equal(probs.grad != 0, with_slope)


def test_projection_ignores_the_outline_inside_the_box():
    box = torch.zeros(1, 6, 6, dtype=torch.bool)
    box[0, 1:5, 1:5] = True
    diagonal = torch.zeros(1, 6, 6)
    diagonal[0, range(1, 5), range(1, 5)] = 1.0
    torch.testing.assert_close(projection_loss(diagonal, box), torch.zeros(1), atol=1e-4, rtol=0)


def test_stripes_beside_the_box_cast_its_shadow_unless_shadows_come_from_inside():
    box = torch.zeros(1, 30, 30, dtype=torch.bool)
    box[0, 4:16, 4:16] = True
    stripes = torch.zeros(1, 30, 30)
    # below the box and to the right of it, nothing inside
    stripes[0, -1, 4:16] = stripes[0, 4:16, -1] = 1.0
    # Each shadow is the box's with one more cell: 1 - 2 * 12 / (13 + 12).
    torch.testing.assert_close(projection_loss(stripes, box), torch.tensor([0.08]))
    torch.testing.assert_close(
        projection_loss(stripes, box, from_inside=True), torch.tensor([2.0])
    )


def test_shadows_from_inside_are_the_plain_ones_of_a_mask_inside_its_box_and_see_all_that_is_outside():
    box = torch.zeros(2, 12, 12, dtype=torch.bool)
    box[0, 2:7, 3:9] = box[1, 5:, 5:] = True
    probs = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        projection_loss(probs * box, box, from_inside=True), projection_loss(probs * box, box)
    )
    for row, column in ((0, 0), (4, 11), (11, 5)):  # in a corner, beside the first box, below it
        outside = box[:1].float()
        outside[0, row, column] = 1.0
        assert projection_loss(outside, box[:1], from_inside=True) > 0.05


def test_projection_of_an_empty_mask_is_two_and_of_no_mask_is_nothing():
    torch.testing.assert_close(
        projection_loss(torch.zeros(1, 4, 4), square_box()), torch.full((1,), 2.0)
    )
    assert projection_loss(torch.zeros(0, 4, 4), torch.zeros(0, 4, 4, dtype=torch.bool)).shape == (
        0,
    )


def test_projection_refuses_other_shapes():
    with pytest.raises(ShapeError, match="mask_probs"):
        projection_loss(torch.zeros(1, 4, 4), torch.zeros(1, 4, 5, dtype=torch.bool))
