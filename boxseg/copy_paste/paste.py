"""Peer-assisted copy-paste: what was chosen is pasted into the images, and their own good instances are remembered."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from boxseg.config.method import PcConfig
from boxseg.copy_paste.bank import Admitted, Bank, Peer
from boxseg.copy_paste.choose import (
    ImageFacts,
    Paste,
    attempt_probability,
    plan_pastes,
    read_facts,
)
from boxseg.copy_paste.compose import Composition, Draft, Limits, compose, draft_composition
from boxseg.ops.boxes import box_iou
from boxseg.ops.masks import aligned_bilinear
from boxseg.ops.neighbours import sample_cells
from boxseg.ops.transfer import tensor_on
from boxseg.structures import MASK_STRIDE, Batch, PseudoMasks

__all__ = ["compose", "paste_peers"]

LIMITS_FOR_PX = 800
"""Short side for which `min_area` and `box_shift_px` are given when `relative_limits` is on."""


@dataclass(frozen=True)
class Attempt:
    """A paste into one image whose outcome is computed but not yet read from the device."""

    peers: list[Peer]
    in_sight: Tensor
    """Bool (P,): whether enough of each peer lies inside the image; the draft has nothing of the others."""
    draft: Draft


@dataclass(frozen=True)
class ImageState:
    """One image with its instances while peers are pasted into it."""

    views: Tensor
    """uint8 (6, H, W): strong, then weak."""
    size: tuple[int, int]
    """(h, w) without padding, pixels."""
    valid: Tensor
    """Bool (H, W)."""
    boxes: Tensor
    labels: Tensor
    pseudo: PseudoMasks


def paste_peers(
    batch: Batch,
    pseudo_masks: list[PseudoMasks],
    bank: Bank,
    *,
    step: int,
    settings: PcConfig,
    generator: torch.Generator,
    soft_thr: float = 0.5,
) -> tuple[Batch, list[PseudoMasks], dict[str, Tensor]]:
    """Paste remembered instances into some images of a batch, and remember new ones.

    Args:
        batch: Unchanged.
        pseudo_masks: B times the teacher's opinion; unchanged.
        bank: Peers to choose from; updated in place: loses what a paste uses up, then takes in the image without it.
        step: Steps done so far, from 0.
        settings: Probabilities, limits and variants; `warmup` in steps.
        generator: On the CPU; the only source of randomness.
        soft_thr: Threshold of `PseudoMasks.soft`: `qam.vote_thr` for fusion by vote, else `qam.mask_thr`.

    Returns:
        A batch and pseudo masks in which each image is as before, or has its pasted instances last in its lists (in
        the strong view, with `paste_weak` in both, with the quality they had in the bank); `pc/paste_rate`, the share
        of images with a paste, and `pc/bank_size`.

    Source: BoxSeg (arXiv 2504.05137); `docs/method.md#copy-paste`.
    """
    probability = attempt_probability(step, settings)
    facts = read_facts(batch, pseudo_masks)
    before = _image_states(batch, pseudo_masks)
    states = list(before)
    # Images share the reads from the device, except where the paste into one decides what the next one can draw.
    every_image = range(len(batch))
    groups = [[image] for image in every_image] if bank.uses_up else [every_image]
    for images in groups:
        plans = {}
        for image in images:
            plans[image] = plan_pastes(facts[image], bank, probability, settings, generator)
            # From `before`, so that no peer is a copy of a copy.
            if not bank.uses_up:
                bank.add(_good_instances(before[image], facts[image], settings), generator)
        for number in range(settings.per_image):
            attempts = {}
            for image, plan in plans.items():
                if number < len(plan):
                    attempts[image] = _attempt(states[image], plan[number], settings, soft_thr)
            _settle(states, attempts, bank)
        # what was pasted has left the bank, so its place is free for the image's own instances
        if bank.uses_up:
            for image in images:
                bank.add(_good_instances(before[image], facts[image], settings), generator)
    pasted = sum(state is not old for state, old in zip(states, before, strict=True))
    stats = {
        "pc/paste_rate": torch.tensor(pasted / len(batch)),
        "pc/bank_size": torch.tensor(float(len(bank))),
    }
    if not pasted:
        return batch, pseudo_masks, stats
    changed = _with_states(batch, states, paste_weak=settings.paste_weak)
    return changed, [state.pseudo for state in states], stats


def _image_states(batch: Batch, pseudo_masks: list[PseudoMasks]) -> list[ImageState]:
    """The images of a batch, each apart."""
    states = []
    for image, pseudo in enumerate(pseudo_masks):
        views = torch.cat([batch.strong[image], batch.weak[image]])
        boxes, labels = batch.boxes[image], batch.labels[image]
        states.append(
            ImageState(views, batch.sizes[image], batch.valid[image], boxes, labels, pseudo)
        )
    return states


def _with_states(batch: Batch, states: list[ImageState], *, paste_weak: bool) -> Batch:
    """The batch with its images, boxes and labels as they are after pasting."""
    views = torch.stack([state.views for state in states])
    return replace(
        batch,
        strong=views[:, :3].contiguous(),
        # The box losses take their colours from the weak view.
        weak=views[:, 3:].contiguous() if paste_weak else batch.weak,
        boxes=[state.boxes for state in states],
        labels=[state.labels for state in states],
    )


def _attempt(state: ImageState, paste: Paste, settings: PcConfig, soft_thr: float) -> Attempt:
    """Compute a paste into an image."""
    limits = _limits(state.size, settings)
    pasted_views, masks, in_sight = _place(state, paste, limits.min_area, soft_thr)
    draft = draft_composition(
        state.views,
        state.pseudo.mask if state.pseudo.full is None else state.pseudo.full,
        state.boxes,
        pasted_views,
        masks,
        valid=state.valid,
        limits=limits,
    )
    return Attempt(paste.peers, in_sight, draft)


def _settle(states: list[ImageState], attempts: dict[int, Attempt], bank: Bank) -> None:
    """Put the outcome of attempts, by image, into `states`; one read from the device for all of them.

    An image stays as it is if none of its peers is in sight.
    """
    if not attempts:
        return
    # Per attempt a flag for each of its peers, then the number of the image's own instances that stay.
    outcomes = [
        torch.cat([attempt.in_sight, attempt.draft.keep.sum(dim=0, keepdim=True)])
        for attempt in attempts.values()
    ]
    numbers = iter(torch.cat(outcomes).tolist())
    for image, attempt in attempts.items():
        *in_sight, num_kept = (next(numbers) for _ in range(len(attempt.peers) + 1))
        peers = [peer for peer, is_seen in zip(attempt.peers, in_sight, strict=True) if is_seen]
        if not peers:
            continue
        # One is enough: a bank that uses peers up drops the whole entry that holds it.
        bank.mark_used(peers[0])
        state = states[image]
        composition = attempt.draft.finish(
            state.labels,
            tensor_on(state.labels.device, [peer.label for peer in peers]),
            kept=_places(attempt.draft.keep, num_kept),
            placed=_places(attempt.in_sight, len(peers)),
        )
        states[image] = replace(
            state,
            views=composition.image,
            boxes=composition.boxes,
            labels=composition.labels,
            pseudo=_merge(state.pseudo, composition, peers),
        )


def _places(flags: Tensor, count: int) -> Tensor:
    """Indices, int64 (count,), of the `count` entries of `flags` (N,) that are not 0.

    `nonzero` would wait for the device to count them; here the caller knows the count.
    """
    # A stable sort brings the entries that are not 0 to the front, in their order.
    return (flags == 0).to(torch.uint8).argsort(stable=True)[:count]


def _place(
    state: ImageState, paste: Paste, min_area: float, soft_thr: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The peers in their new places on an empty canvas of the padded image.

    Returns:
        Their views uint8 (6, H, W), their masks bool (P, H, W), and bool (P,): whether more than `min_area` pixels of
        each lie inside the image. A peer of which too little does leaves an empty mask and no pixels.
    """
    down, right = paste.shift
    canvas = torch.zeros_like(state.views)
    masks = state.valid.new_zeros(len(paste.peers), *state.valid.shape)
    for mask, peer in zip(masks, paste.peers, strict=True):
        rows, crop_rows = _overlap(peer.corner[0] + down, peer.views.shape[1], state.size[0])
        columns, crop_columns = _overlap(
            peer.corner[1] + right, peer.views.shape[2], state.size[1]
        )
        visible = pixel_mask(peer, soft_thr)[crop_rows, crop_columns].to(mask.device)
        # Compared on the device; an `if` would wait for it.
        mask[rows, columns] = visible & (visible.sum() > min_area)
        crop = peer.views[:, crop_rows, crop_columns].to(canvas.device)
        canvas[:, rows, columns] = torch.where(mask[rows, columns], crop, canvas[:, rows, columns])
    return canvas, masks, masks.flatten(1).any(dim=1)


def _overlap(start: int, length: int, limit: int) -> tuple[slice, slice]:
    """The part of a stretch of `length` from `start` that lies in 0 … limit: as a slice of that, and of the stretch."""
    first = min(max(start, 0), limit)
    last = max(min(start + length, limit), first)
    return slice(first, last), slice(first - start, last - start)


def _merge(pseudo: PseudoMasks, composition: Composition, peers: list[Peer]) -> PseudoMasks:
    """Pseudo masks of what is left, then of the peers."""
    kept, own = composition.kept, len(composition.kept)
    full = None if pseudo.full is None else composition.masks
    mask = composition.masks if full is None else sample_cells(full)
    pasted = mask[own:]
    trust = [[peer.quality, peer.score] for peer in peers]
    numbers = tensor_on(pseudo.quality.device, trust, dtype=pseudo.quality.dtype)
    # A thin peer may lie between cell centres. A mask on cells is empty then, and nothing may be learnt from it.
    quality = numbers[:, 0] * composition.masks[own:].flatten(1).any(dim=1)
    return PseudoMasks(
        mask=mask,
        soft=torch.cat([pseudo.soft[kept] * ~pasted.any(dim=0), pasted.to(pseudo.soft.dtype)]),
        quality=torch.cat([pseudo.quality[kept], quality]),
        score=torch.cat([pseudo.score[kept], numbers[:, 1]]),
        num_candidates=torch.cat(
            # The teacher found a peer in another image, with no candidates in this one.
            [pseudo.num_candidates[kept], pseudo.num_candidates.new_zeros(len(peers))]
        ),
        full=full,
    )


def _good_instances(state: ImageState, facts: ImageFacts, settings: PcConfig) -> list[Admitted]:
    """Instances of the image that may go into the bank: apart from others, well masked and large enough."""
    boxes = torch.tensor(facts.boxes).view(-1, 4)
    largest_iou = (
        box_iou(boxes, boxes).fill_diagonal_(0).amax(dim=1).tolist() if facts.labels else []
    )
    min_area = _limits(state.size, settings).min_area
    return [
        (label, partial(_cut, state, facts, index))
        for index, label in enumerate(facts.labels)
        if largest_iou[index] < settings.bank_iou_thr
        and facts.quality[index] > settings.bank_q_thr
        and facts.score[index] > settings.bank_s_thr
        and facts.area[index] > min_area
    ]


def _cut(state: ImageState, facts: ImageFacts, index: int) -> Peer:
    """One instance as a peer: the pixels of its box, and the part of its mask that these pixels need."""
    (height, width), (x1, y1, x2, y2) = state.size, facts.boxes[index]
    # The pixels that belong to a box as `box_masks` has it.
    rows = slice(int(y1), min(int(y2 + 1), height))
    columns = slice(int(x1), min(int(x2 + 1), width))
    if state.pseudo.full is None:
        mask = state.pseudo.soft[index, _cells(rows), _cells(columns)]
    else:
        mask = state.pseudo.full[index, rows, columns]
    return Peer(
        # Cloned: a view would keep the whole image in memory.
        views=state.views[:, rows, columns].clone(),
        mask=mask.clone(),
        corner=(rows.start, columns.start),
        box=facts.boxes[index],
        label=facts.labels[index],
        quality=facts.quality[index],
        score=facts.score[index],
    )


def _cells(pixels: slice) -> slice:
    """The cells that are needed to enlarge a map for some pixels.

    A bilinear value depends on the pixel's own cell and the one beside it; two on either side leave a margin.
    """
    return slice(max(pixels.start // MASK_STRIDE - 2, 0), pixels.stop // MASK_STRIDE + 3)


def pixel_mask(peer: Peer, soft_thr: float) -> Tensor:
    """Mask of a peer on the pixels of its crop, bool (h, w)."""
    if peer.mask.dtype == torch.bool:
        return peer.mask
    # The kept cells begin before the crop does. `first` is the number of pixels of the enlarged map before it.
    first = [start - MASK_STRIDE * _cells(slice(start, start)).start for start in peer.corner]
    last = [start + length for start, length in zip(first, peer.views.shape[1:], strict=True)]
    enlarged = aligned_bilinear(peer.mask, MASK_STRIDE)
    return enlarged[first[0] : last[0], first[1] : last[1]] > soft_thr


def _limits(size: tuple[int, int], settings: PcConfig) -> Limits:
    """The settings' limits for an image of this size."""
    scale = min(size) / LIMITS_FOR_PX if settings.relative_limits else 1.0
    return Limits(
        settings.min_area * scale**2,
        settings.box_shift_px * scale,
        settings.keep_sides,
        settings.drop_slivers,
    )
