"""Pseudo-mask losses, with numbers worked by hand for `docs/method.md#pseudo-mask-losses`."""

import pytest
import torch

from boxseg.losses.box_supervision import pairwise_term, projection_loss
from boxseg.losses.pairs import find_pairs, pair_costs
from boxseg.losses.pseudo_mask import affinity_loss, mask_affinity, pair_affinity, pseudo_mask_loss
from boxseg.ops.masks import dice_loss


def block():
    mask = torch.zeros(1, 5, 5, dtype=torch.bool)
    mask[0, 1:4, 1:4] = True
    return mask


def test_affinity_of_the_worked_example():
    affinity = mask_affinity(block(), torch.ones(1, 5, 5, dtype=torch.bool), dilation=2)
    centre = [0.055556, 0.166667, 0.055556, 0.166667, 0.166667, 0.055556, 0.166667, 0.055556]
    torch.testing.assert_close(affinity[0, :, 2, 2], torch.tensor(centre), atol=1e-5, rtol=0)
    corner = [0, 0, 0, 0, 0.598765, 0, 0.598765, 0.598765]
    torch.testing.assert_close(affinity[0, :, 1, 1], torch.tensor(corner), atol=1e-5, rtol=0)
    assert int((affinity >= 0.5).sum()) == 48


def test_affinity_accepts_soft_masks_and_one_validity_for_all():
    valid = torch.ones(5, 5, dtype=torch.bool)
    valid[4] = False
    hard = mask_affinity(block().expand(2, -1, -1), valid.expand(2, -1, -1), dilation=1)
    soft = mask_affinity(block().float().expand(2, -1, -1) * 0.6, valid, dilation=1)
    torch.testing.assert_close(hard, soft)
    assert float(hard[:, 5:, 3].abs().max()) == 0  # neighbours in the invalid row


def test_dice_is_weighted_and_divided_by_the_number_of_trusted_masks():
    masks = block().expand(3, -1, -1)
    probs = torch.stack([torch.zeros(5, 5), masks[0].float(), torch.zeros(5, 5)])  # dice 1, 0, 1
    quality = torch.tensor([0.6, 0.3, 0.0])
    assert float(pseudo_mask_loss(probs, masks, quality)) == pytest.approx(0.6 / 2, abs=1e-5)


def test_affinity_loss_averages_within_each_proposal_first():
    term = torch.zeros(2, 8, 2, 2)
    term[0, 0] = 4.0
    term[1, 0, 0, 0] = 2.0
    together = torch.zeros(2, 8, 2, 2, dtype=torch.bool)
    together[0, 0] = together[1, 0] = True
    quality, pairs = torch.tensor([0.5, 1.0]), find_pairs(torch.ones(2, 2, 2, dtype=torch.bool))
    costs, together = (pairs.take_pairs(maps, torch.arange(2)) for maps in (term, together))
    assert float(affinity_loss(costs, together, pairs, quality)) == pytest.approx(
        (0.5 * 4 + 1.0 * 0.5) / 2
    )


def test_without_pseudo_masks_the_losses_are_zero():
    probs, masks = torch.full((2, 4, 4), 0.5), torch.zeros(2, 4, 4, dtype=torch.bool)
    pairs = find_pairs(~masks)
    together = torch.zeros(len(pairs.cell), 8, dtype=torch.bool)
    assert float(pseudo_mask_loss(probs, masks, torch.zeros(2))) == 0
    costs = torch.ones(together.shape)
    assert float(affinity_loss(costs, together, pairs, torch.zeros(2))) == 0
    none = pseudo_mask_loss(probs[:0], masks[:0], torch.zeros(0))
    assert float(none) == 0


def affinity(logits, mask):
    """The affinity loss of pairs that begin inside the mask."""
    pairs, row = find_pairs(mask), torch.arange(2)
    together = (
        pair_affinity(mask, torch.ones_like(mask), pairs, mask_row=row, valid_row=row) >= 0.5
    )
    return affinity_loss(pair_costs(logits, pairs), together, pairs, torch.tensor([0.7, 0.2]))


@pytest.mark.parametrize(
    "loss",
    [
        lambda logits, mask: dice_loss(logits.sigmoid(), mask),
        lambda logits, mask: projection_loss(logits.sigmoid(), mask),
        lambda logits, mask: pseudo_mask_loss(logits.sigmoid(), mask, torch.tensor([0.7, 0.2])),
        lambda logits, mask: pairwise_term(logits, dilation=1),
        lambda logits, mask: affinity(logits, mask),
    ],
    ids=["dice", "projection", "pseudo mask", "pairwise", "affinity"],
)
def test_gradients_equal_differences_and_stay_finite_for_certain_masks(loss):
    random = torch.Generator().manual_seed(2)
    mask = block().expand(2, -1, -1)
    logits = torch.randn(2, 5, 5, generator=random, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: loss(values, mask), logits)
    for certain in (-200.0, 200.0):
        extreme = torch.full((2, 5, 5), certain, requires_grad=True)
        loss(extreme, mask).sum().backward()
        assert bool(torch.isfinite(extreme.grad).all())
