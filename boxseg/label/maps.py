"""What a network and QAM say about known boxes: a close-up of each box, and its mirror image, are looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from boxseg.config.method import MAX_ENLARGEMENT, BoxSegConfig
from boxseg.data.loader import collate
from boxseg.data.transforms import View, flip_view
from boxseg.data.windows import Window, cut_window, place_window
from boxseg.engine.step import fuse_candidates
from boxseg.evaluation.tiles import whole_images
from boxseg.mask_parts import MaskPart
from boxseg.ops.images import resized_shape
from boxseg.ops.masks import resize_masks
from boxseg.ops.neighbours import sample_cells
from boxseg.predict.predictor import PADDED_TO, Predictor
from boxseg.structures import Batch, Candidates, Sample
from boxseg.teacher.candidates import pick_candidates

UNKNOWN = -1
"""Label of a box whose class the network does not know, or may be any."""
EVERYTHING = 2**20
"""More locations than a pyramid level has."""
COLOR_WEIGHT = 1.0
"""Least trust in the colours of each box: a training run may leave them out, but labels gain by them."""
CLOSE_UPS_AT_ONCE = {"cpu": 8, "cuda": 64}
"""Close-ups that the network looks at together, by kind of device."""
LARGE = 0.85
"""A known box is shown at this share of the largest size that a network was trained on: outlines gain by it."""
ENLARGED = 1.5
"""Networks that were trained on whole images see a known box larger than there."""
CONTEXT = 1.75
"""Side of a close-up, in longer sides of its box."""


@dataclass(frozen=True)
class OtherMask:
    """The mask of another tool for a known box."""

    part: MaskPart
    quality: float
    fit: float
    """IoU of its own box with the known one."""


@dataclass(frozen=True)
class CloseUp:
    """One known box in the window of its image that the network looks at."""

    window: Window
    view: View
    """With this box alone, clipped to the window."""
    other: OtherMask | None = None
    """One more candidate, where another tool has a mask for the box."""


@dataclass(frozen=True)
class SoftMask:
    """What network and QAM say about a close-up."""

    soft: Tensor
    """Float (h, w) in [0, 1], on the pixels of the window, see `PseudoMasks`."""
    num_candidates: int
    """Detections that were fused, of the close-up and its mirror image; 0 where nothing was found."""


def close_up(predictor: Predictor, sample: Sample, row: int) -> CloseUp:
    """The close-up of a box of a sample, at the scale that the network knows best; the box must have an area."""
    train, size = predictor.config.train, (sample.image.shape[1], sample.image.shape[2])
    box = sample.boxes[row]
    longest = float((box[2:] - box[:2]).max())
    if train.window is not None:
        wanted = LARGE * train.object_size[1]
    else:
        whole = resized_shape(
            size, short_side=round(ENLARGED * train.eval_short_side), max_size=10**6
        )
        wanted = min(longest * whole[0] / size[0], ENLARGED * train.max_size)
    wanted = min(wanted, MAX_ENLARGEMENT * longest)
    side = max(-(-round(CONTEXT * wanted) // PADDED_TO), 1) * PADDED_TO
    window = place_window(box, size, side=side, object_size=wanted)
    alone = replace(
        sample, boxes=sample.boxes[row : row + 1], labels=sample.labels[row : row + 1], drawn=None
    )
    return CloseUp(window, cut_window(alone, window)[0])


@torch.no_grad()
def find_soft_masks(predictor: Predictor, close_ups: Sequence[CloseUp]) -> list[SoftMask]:
    """What the network says about each close-up; that depends on the close-up alone."""
    at_once = CLOSE_UPS_AT_ONCE.get(predictor.device.type, 1)
    by_size: dict[tuple[int, ...], list[int]] = {}
    for place, each in enumerate(close_ups):
        by_size.setdefault(tuple(-(-side // PADDED_TO) for side in each.view.size), []).append(
            place
        )
    found: dict[int, SoftMask] = {}
    for alike in by_size.values():
        for start in range(0, len(alike), at_once):
            places = alike[start : start + at_once]
            part = [close_ups[place] for place in places]
            found |= dict(zip(places, _look_twice(predictor, part), strict=True))
    return [found[place] for place in range(len(close_ups))]


def _look_twice(predictor: Predictor, close_ups: Sequence[CloseUp]) -> Iterator[SoftMask]:
    plain = _look(predictor, close_ups)
    for here, there in zip(
        plain, _look(predictor, [_mirror(each) for each in close_ups]), strict=True
    ):
        looks = [here, replace(there, soft=there.soft.flip(1))]
        seen = [each for each in looks if each.num_candidates] or looks
        yield SoftMask(
            soft=torch.stack([each.soft for each in seen]).mean(dim=0),
            num_candidates=sum(each.num_candidates for each in seen),
        )


def _mirror(each: CloseUp) -> CloseUp:
    return replace(each, view=flip_view(each.view))


def _look(predictor: Predictor, close_ups: Sequence[CloseUp]) -> list[SoftMask]:
    batch = collate([each.view for each in close_ups], divisor=PADDED_TO, device=predictor.device)
    found: list[SoftMask] = []
    for part, predictions in predictor.look(whole_images(batch)):
        own = [close_ups[place] for place in part.image_index]
        found.extend(_read_maps(predictor, own, part.batch, predictions))
    return found


def _read_maps(
    predictor: Predictor, close_ups: Sequence[CloseUp], batch: Batch, predictions: Any
) -> list[SoftMask]:
    """Boxes for which the settings of the run find nothing go through the next attempt."""
    found = [SoftMask(torch.zeros(size), 0) for size in batch.sizes]
    for config in attempts(predictor.config):
        left = [place for place, each in enumerate(found) if each.num_candidates == 0]
        if not left:
            break
        wanted = replace(
            batch,
            boxes=[b if p in left else b[:0] for p, b in enumerate(batch.boxes)],
            labels=[b if p in left else b[:0] for p, b in enumerate(batch.labels)],
        )
        candidates = pick_candidates(
            predictor.network,
            predictions,
            wanted,
            wanted,
            teacher=config.teacher,
            qam=config.qam,
            fcos=config.fcos,
        )
        for place in left:
            candidates[place] = _join(candidates[place], close_ups[place], batch)
        pseudo_masks = fuse_candidates(config, candidates, wanted)
        for place in left:
            pseudo, size = pseudo_masks[place], batch.sizes[place]
            if bool(pseudo.mask.any()):
                found[place] = SoftMask(
                    soft=resize_masks(pseudo.soft, size=size, original_size=size)[0].cpu(),
                    num_candidates=int(pseudo.num_candidates[0]),
                )
    return found


def _join(candidates: Candidates, close_up: CloseUp, batch: Batch) -> Candidates:
    """The candidates, and after them the mask of the other tool."""
    if close_up.other is None or not close_up.view.boxes.numel():
        return candidates
    other, window, view = close_up.other, close_up.window, close_up.view
    piece = other.part.within(window.top, window.left, (window.height, window.width))
    cells = torch.from_numpy(piece)[None, None].float()
    small = F.interpolate(cells, view.size, mode="bilinear", antialias=True)[0, 0]
    small = small.flip(1) if view.is_flipped else small
    height, width = batch.weak.shape[-2:]
    padded = F.pad(small, (0, width - view.size[1], 0, height - view.size[0]))
    more = (
        sample_cells(padded[None]),
        torch.tensor([other.quality]),
        torch.tensor([other.fit]),
        torch.tensor([0]),
    )
    own = (candidates.mask_probs, candidates.score, candidates.box_iou, candidates.box_index)
    probs, score, box_iou, box_index = (
        torch.cat([ours, theirs.to(ours)]) for ours, theirs in zip(own, more, strict=True)
    )
    return Candidates(probs, score, box_iou, box_index)


def attempts(config: BoxSegConfig) -> Iterator[BoxSegConfig]:
    """Settings to find candidates with, strictest first."""
    always = {"min_quality": 0.0, "fusion": "weighted", "full_resolution": False}
    color_weight = max(config.qam.color_weight, COLOR_WEIGHT)
    own = config.qam.model_copy(update=always | {"color_weight": color_weight})
    teacher = config.teacher.model_copy(update={"with_nms": False})
    yield config.model_copy(update={"qam": own, "teacher": teacher})
    any_class = own.model_copy(update={"class_match": False})
    yield config.model_copy(update={"qam": any_class, "teacher": teacher})
    nearest = any_class.model_copy(
        update={"iou_thr": 0.0, "score_thr": 0.0, "k_top": 3, "adaptive_k": False}
    )
    weakest = teacher.model_copy(update={"cand_score_thr": 0.0, "pre_topk": EVERYTHING})
    yield config.model_copy(update={"qam": nearest, "teacher": weakest})
