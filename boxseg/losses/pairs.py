"""The pairs of neighbouring cells that losses compare: only those that begin inside a proposal's box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boxseg.ops.neighbours import neighbour_offsets
from boxseg.ops.transfer import tensor_on


@dataclass(frozen=True)
class Pairs:
    """M cells, each of one proposal, with S neighbours; values of pairs are (M, S).

    Boxes cover a small part of most images, so this is much less work and memory than maps of all pairs.
    """

    proposal: Tensor
    """int64 (M,), rising."""
    cell: Tensor
    """int32 (M,): row * width + column of the first cell, in maps padded by `reach` on all sides."""
    shifts: Tensor
    """int32 (S,): from the first cell to its neighbours."""
    on_map: Tensor
    """Bool (M, S): whether there is a second cell."""
    reach: int

    def take(self, maps: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """Values of maps (K, h, w) at the first cells (M, 1) and at the second ones (M, S); proposal i has map row[i].

        Flat indices into one dimension: their gradient is many times cheaper than that of an index into maps.
        """
        padded = F.pad(maps, (self.reach,) * 4)
        first = self._first(padded, row)
        there = padded.flatten().index_select(0, (first[:, None] + self.shifts).flatten())
        return padded.flatten().index_select(0, first)[:, None], there.view(self.on_map.shape)

    def take_pairs(self, maps: Tensor, row: Tensor) -> Tensor:
        """Values (M, S) of maps of pairs (K, S, h, w); proposal i has map row[i]."""
        padded = F.pad(maps, (self.reach,) * 4)
        of_cells = padded.flatten(2).transpose(1, 2).flatten(0, 1)  # (K * cells, S)
        return of_cells.index_select(0, self._first(padded, row))

    def _first(self, padded: Tensor, row: Tensor) -> Tensor:
        """int32 (M,): index of the first cells among the cells of all maps."""
        size = padded.shape[-2] * padded.shape[-1]
        return (row * size).int().index_select(0, self.proposal) + self.cell

    def sum_per_proposal(self, values: Tensor, num_proposals: int) -> Tensor:
        """Sum of the values (M, S) of each proposal: (n,)."""
        return values.new_zeros(num_proposals).index_add(
            0, self.proposal, values.sum(dim=1, dtype=values.dtype)
        )


def find_pairs(inside: Tensor, *, size: int = 3, dilation: int = 2) -> Pairs:
    """All pairs whose first cell is inside.

    Args:
        inside: Bool (n, h, w).
        size: Side of the neighbourhood, odd; S = size² - 1 neighbours, in the order of `neighbour_offsets`.
        dilation: Distance of the neighbours, in cells.
    """
    reach = dilation * (size // 2)
    width = inside.shape[-1] + 2 * reach
    # On a padded map the step to a neighbour is the same shift of the flat index for all cells, also at the border.
    padded = F.pad(inside, (reach,) * 4).flatten(1)
    # waits for the device: the number of cells decides all shapes
    proposal, cell = padded.nonzero(as_tuple=True)
    cell = cell.int()
    shifts = [dilation * (row * width + column) for row, column in neighbour_offsets(size)]
    shift = tensor_on(inside.device, shifts, dtype=torch.int32)
    map_cells = F.pad(inside.new_ones(inside.shape[1:]), (reach,) * 4).flatten()
    on_map = map_cells.index_select(0, (cell[:, None] + shift).flatten()).view(
        len(cell), len(shifts)
    )
    return Pairs(proposal, cell, shift, on_map, reach)


def pair_costs(mask_logits: Tensor, pairs: Pairs) -> Tensor:
    """Cost of giving the two cells of a pair different labels: -log P(both object or both background).

    It equals -logaddexp(log p_i + log p_j, log (1 - p_i) + log (1 - p_j)) with p = sigmoid(z), computed from the logits
    without differences of large numbers.

    Args:
        mask_logits: Float (n, h, w).
        pairs: Of these maps.

    Returns:
        Float (M, S) >= 0; exactly 0 where there is no second cell.

    Source: BoxInst (arXiv 2012.02310), pairwise term; `docs/method.md#pairwise-colour-affinity`.
    """
    here, there = pairs.take(
        mask_logits, torch.arange(len(mask_logits), device=mask_logits.device)
    )
    costs: Tensor = _Disagreement.apply(here, there)
    return costs * pairs.on_map


class _Disagreement(torch.autograd.Function):
    """Cost of logits a = `here` (M, 1) and b = `there` (M, S) for one label.

    The cost is softplus(a) + softplus(b) - softplus(a + b). Large logits would lose digits in these differences. With
    softplus(x) = max(x, 0) + rest(x) the three maxima add up to min(|a|, |b|) where the signs differ, and to 0 where
    they agree; only the rests, which are at most log 2, are subtracted. The maximum has a kink at 0, so the gradient is
    written out: sigmoid(a) - sigmoid(a + b) holds everywhere.
    """

    @staticmethod
    def forward(ctx: Any, here: Tensor, there: Tensor) -> Tensor:
        ctx.save_for_backward(here, there)
        distance = there.abs()
        opposed = torch.minimum(here.abs(), distance).masked_fill_((here < 0) == (there < 0), 0)
        return (
            opposed.add_(_rest(here.abs()))
            .add_(_rest(distance))
            .sub_(_rest((here + there).abs_()))
        )

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor]:
        here, there = ctx.saved_tensors
        both = (here + there).sigmoid_()
        return (slopes[0] * (here.sigmoid() - both)).sum(dim=1, keepdim=True), slopes[0] * (
            there.sigmoid() - both
        )


def _rest(distance: Tensor) -> Tensor:
    """log(1 + exp(-|x|)) of |x|, which is used up; at most log 2."""
    return F.softplus(distance.neg_())
