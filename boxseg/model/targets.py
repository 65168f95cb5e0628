"""Which ground-truth box each location answers for, and which locations get mask losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from boxseg.ops.boxes import box_area
from boxseg.ops.transfer import tensor_on
from boxseg.structures import LocationTargets, Proposals


def assign_locations(
    locations: Tensor,
    strides: Tensor,
    levels: Tensor,
    boxes: Tensor,
    labels: Tensor,
    *,
    radius: float = 1.5,
    sizes: Sequence[float] = (64, 128, 256, 512),
) -> LocationTargets:
    """`assign_batch` for the boxes (N, 4) and labels (N,) of one image; without the batch dimension."""
    targets = assign_batch(
        locations, strides, levels, [boxes], [labels], radius=radius, sizes=sizes
    )
    return LocationTargets(
        targets.box_index[0], targets.labels[0], targets.distances[0], targets.centerness[0]
    )


@torch.no_grad()
def assign_batch(
    locations: Tensor,
    strides: Tensor,
    levels: Tensor,
    boxes: list[Tensor],
    labels: list[Tensor],
    *,
    radius: float = 1.5,
    sizes: Sequence[float] = (64, 128, 256, 512),
) -> LocationTargets:
    """Match every location with the smallest box that has it near its centre and suits its level.

    Args:
        locations: Float (L, 2), x y in pixels.
        strides: Float (L,), pixels.
        levels: int64 (L,), 0 for the finest.
        boxes: B times float (N, 4), pixels; boxes without area match nothing.
        labels: B times int64 (N,), class index.
        radius: Half side of the square around the box centre that counts as near, in strides.
        sizes: Largest distance to a side of the box on each level but the last [px], inclusive.

    Returns:
        Targets for all images and locations.

    Source: FCOS (arXiv 2006.09214), centre sampling; `docs/method.md#which-location-learns-which-box`.
    """
    padded, exists = _pad_boxes(boxes, like=locations)  # (B, N, 4), (B, N)
    points = locations[None, :, None]  # (1, L, 1, 2)
    corner_min, corner_max = padded[:, None, :, :2], padded[:, None, :, 2:]  # (B, 1, N, 2)
    distances = torch.cat([points - corner_min, corner_max - points], dim=-1)  # (B, L, N, 4)

    # Near: in a square around the middle of the box, and in the box.
    centre, reach = (corner_min + corner_max) / 2, radius * strides[None, :, None, None]
    near_min = torch.maximum(centre - reach, corner_min)
    near_max = torch.minimum(centre + reach, corner_max)
    near = ((points > near_min) & (points < near_max)).all(dim=-1)

    # Of the right level: the furthest side of the box is between the limits of the location's level.
    extent = distances.amax(dim=-1)
    limits = [-1.0, *sizes, torch.inf]  # the finest level has no limit below
    bounds = tensor_on(locations.device, limits, dtype=locations.dtype)
    least, most = bounds[levels][None, :, None], bounds[levels + 1][None, :, None]
    suits = (extent >= least) & (extent <= most)

    # Of several boxes the smallest wins: large boxes have other locations.
    may_match = near & suits & exists[:, None]  # (B, L, N)
    area = torch.where(may_match, box_area(padded)[:, None], torch.inf)
    least_area, matched = area.min(dim=-1)
    positive = least_area < torch.inf
    index = matched[..., None, None].expand(-1, -1, 1, 4)
    distances = distances.gather(2, index).squeeze(2) / strides[:, None]
    distances = torch.where(positive[..., None], distances, 0)
    padded_labels = _pad(labels, like=matched, fill=-1)
    return LocationTargets(
        box_index=torch.where(positive, matched, -1),
        labels=torch.where(positive, padded_labels.gather(1, matched), -1),
        distances=distances,
        centerness=compute_centerness(distances),
    )


def compute_centerness(distances: Tensor) -> Tensor:
    """How central a location is, (...,) in [0, 1], from its distances (..., 4) to the sides; 0 on a side.

    >>> compute_centerness(torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 3.0, 1.0]]))
    tensor([1.0000, 0.5774])
    """
    horizontal, vertical = distances[..., 0::2], distances[..., 1::2]
    tiny = torch.finfo(distances.dtype).tiny
    ratio_x = horizontal.amin(dim=-1) / horizontal.amax(dim=-1).clamp(min=tiny)
    ratio_y = vertical.amin(dim=-1) / vertical.amax(dim=-1).clamp(min=tiny)
    return (ratio_x * ratio_y).clamp(min=0).sqrt()


@torch.no_grad()
def choose_proposals(box_index: Tensor, scores: Tensor, *, max_per_image: int) -> Proposals:
    """Positive locations for the mask losses, shared fairly among the boxes of an image.

    Each box that has positive locations may send max_per_image / number of such boxes of them (rounded down, at
    least one), those with the highest scores.

    Args:
        box_index: int64 (B, L), -1 for background.
        scores: Float (B, L), class probability x centre-ness.
        max_per_image: Proposals of an image that are shared out.

    Returns:
        The chosen locations, their index as handle; none where no location is positive.

    Source: CondInst (arXiv 2003.05664); `docs/method.md#proposals`.
    """
    image_index, location_index = (box_index >= 0).nonzero(as_tuple=True)
    if len(image_index) == 0:
        return Proposals(image_index, location_index, image_index)
    boxes = box_index[image_index, location_index]
    owner = image_index * (box_index.max() + 1) + boxes

    # Sorted by score, then stably by owner: the locations of each box stand together, best first.
    order = scores[image_index, location_index].argsort(descending=True, stable=True)
    order = order[owner[order].argsort(stable=True)]
    image_index, location_index, boxes, owner = (
        image_index[order],
        location_index[order],
        boxes[order],
        owner[order],
    )

    # The rank of a location among those of its box is its position less that of the first one.
    position = torch.arange(len(owner), device=owner.device)
    opens = torch.cat([torch.ones_like(owner[:1], dtype=torch.bool), owner[1:] != owner[:-1]])
    rank = position - torch.where(opens, position, 0).cummax(dim=0).values
    num_boxes = owner.new_zeros(len(box_index)).index_add(0, image_index, opens.long())
    quota = (max_per_image // num_boxes.clamp(min=1)).clamp(min=1)
    keep = (rank < quota[image_index]).nonzero().squeeze(1)
    return Proposals(image_index[keep], location_index[keep], boxes[keep])


def _pad_boxes(boxes: list[Tensor], *, like: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (B, N, 4) and bool (B, N), False on padding; N is at least one."""
    padded = _pad(boxes, like=like, fill=0)
    count = tensor_on(like.device, [len(item) for item in boxes])
    return padded, torch.arange(padded.shape[1], device=like.device) < count[:, None]


def _pad(items: list[Tensor], *, like: Tensor, fill: float) -> Tensor:
    """Items (N, ...) stacked to (B, largest N but at least 1, ...) in the dtype and on the device of `like`."""
    blank = torch.full((1, *items[0].shape[1:]), fill, dtype=like.dtype, device=like.device)
    items = [item.to(like) if len(item) else blank for item in items]
    return pad_sequence(items, batch_first=True, padding_value=fill)
