"""What a network and QAM say about known boxes: they look at a close-up of each box and at its mirror image."""

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
from boxseg.evaluation.tiles import whole_images
from boxseg.mask_parts import MaskPart
from boxseg.ops.images import resized_shape
from boxseg.ops.masks import resize_masks
from boxseg.ops.neighbours import sample_cells
from boxseg.predict.predictor import PADDED_TO, Predictor, of_one_size
from boxseg.structures import Batch, Candidates, Sample
from boxseg.teacher.candidates import pick_candidates
from boxseg.teacher.qam import fuse_candidates

UNKNOWN = -1
"""Label of a box whose class the network does not know, or that may be of any class."""
EVERYTHING = 2**20
"""More locations than a pyramid level has."""
COLOR_WEIGHT = 1.0
"""`qam.color_weight` for labels, whatever the training run has: colours help the map of the network, but the outline
weighs them again."""
CLOSE_UPS_AT_ONCE = {"cpu": 8, "cuda": 64}
"""Close-ups that the network looks at together, by kind of device."""
LARGE, LARGEST = 0.85, 1.2
"""A network that was trained on windows sees the longer side of a box as at least the first of these times the largest
object size of its training. Larger boxes are seen pixel by pixel up to the second one: a closer look improves outlines
as long as the image has the pixels for it."""
ENLARGED = 1.5
"""A network that was trained on whole images sees boxes larger than in training by this factor."""
CONTEXT = 1.75
"""Side of a close-up, as a multiple of the longer side of its box."""


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
    """Has this box alone, clipped to the window."""
    other: OtherMask | None = None
    """The mask of another tool for the box, which becomes one more candidate."""


@dataclass(frozen=True)
class SoftMask:
    """What network and QAM say about a close-up."""

    soft: Tensor
    """Float (h, w) in [0, 1], on the pixels of the window, see `PseudoMasks`."""
    num_candidates: int
    """Detections in the close-up and in its mirror image that were fused; 0 where nothing was found."""


def take_close_up(predictor: Predictor, sample: Sample, row: int) -> CloseUp:
    """The close-up of a box of a sample, at the scale that the network knows best; the box must have an area."""
    train = predictor.config.train
    size = (sample.image.shape[1], sample.image.shape[2])
    box = sample.boxes[row]
    longest = float((box[2:] - box[:2]).max())
    if train.window is not None:
        largest = train.closest.object_size[1]
        wanted = min(max(LARGE * largest, longest), LARGEST * largest)
    else:
        # As if the whole image were scaled for evaluation, but without the limit of its longer side.
        short_side = round(ENLARGED * train.eval_short_side)
        whole = resized_shape(size, short_side=short_side, max_size=10**6)
        wanted = min(longest * whole[0] / size[0], ENLARGED * train.max_size)
    # With less, even the smallest window would show far more than the box, at the same cost.
    wanted = min(max(wanted, PADDED_TO / CONTEXT), MAX_ENLARGEMENT * longest)
    # Rounded up, so that nothing is padded.
    side = max(-(-round(CONTEXT * wanted) // PADDED_TO), 1) * PADDED_TO
    window = place_window(box, size, side=side, object_size=wanted)
    alone = replace(
        sample,
        boxes=sample.boxes[row : row + 1],
        labels=sample.labels[row : row + 1],
        drawn=None,
    )
    view = cut_window(alone, window)[0]
    return CloseUp(window, view)


@torch.no_grad()
def find_soft_masks(predictor: Predictor, close_ups: Sequence[CloseUp]) -> list[SoftMask]:
    """What the network says about each close-up, which does not depend on the other ones."""
    at_once = CLOSE_UPS_AT_ONCE.get(predictor.device.type, 1)
    soft_masks: dict[int, SoftMask] = {}
    for alike in of_one_size([close_up.view for close_up in close_ups]):
        for start in range(0, len(alike), at_once):
            places = alike[start : start + at_once]
            found = _look_twice(predictor, [close_ups[place] for place in places])
            soft_masks |= dict(zip(places, found, strict=True))
    return [soft_masks[place] for place in range(len(close_ups))]


def _look_twice(predictor: Predictor, close_ups: Sequence[CloseUp]) -> Iterator[SoftMask]:
    """For each close-up, the mean of its map and that of its mirror image, as the errors of the two differ."""
    plain = _look(predictor, close_ups)
    mirrored = _look(
        predictor, [replace(shown, view=flip_view(shown.view)) for shown in close_ups]
    )
    for here, there in zip(plain, mirrored, strict=True):
        looks = [here, replace(there, soft=there.soft.flip(1))]
        # Averaging with the empty map of a look that found nothing would halve the other one.
        counted = [look for look in looks if look.num_candidates] or looks
        yield SoftMask(
            soft=torch.stack([look.soft for look in counted]).mean(dim=0),
            num_candidates=sum(look.num_candidates for look in counted),
        )


def _look(predictor: Predictor, close_ups: Sequence[CloseUp]) -> list[SoftMask]:
    views = [close_up.view for close_up in close_ups]
    batch = collate(views, divisor=PADDED_TO, device=predictor.device)
    soft_masks: list[SoftMask] = []
    # The predictor splits a batch that does not fit in memory, so a part may have only some of the close-ups.
    for part, predictions in predictor.look(whole_images(batch)):
        of_part = [close_ups[tile.image] for tile in part.places]
        soft_masks.extend(_read_maps(predictor, of_part, part.batch, predictions))
    return soft_masks


def _read_maps(
    predictor: Predictor, close_ups: Sequence[CloseUp], batch: Batch, predictions: Any
) -> list[SoftMask]:
    """The map of each close-up; boxes for which one of the `attempts` finds nothing get the next one."""
    soft_masks = [SoftMask(torch.zeros(size), 0) for size in batch.sizes]
    for config in attempts(predictor.config):
        left = [
            place for place, soft_mask in enumerate(soft_masks) if soft_mask.num_candidates == 0
        ]
        if not left:
            break
        wanted = _with_boxes_of(batch, left)
        candidates = pick_candidates(predictor.network, predictions, wanted, wanted, config)
        for place in left:
            candidates[place] = _join(candidates[place], close_ups[place], batch)
        pseudo_masks = fuse_candidates(config, candidates, wanted)
        for place in left:
            pseudo, size = pseudo_masks[place], batch.sizes[place]
            if bool(pseudo.mask.any()):
                # From cells to the pixels of the view, without its padding.
                soft = resize_masks(pseudo.soft, size=size, original_size=size)[0].cpu()
                soft_masks[place] = SoftMask(soft, int(pseudo.num_candidates[0]))
    return soft_masks


def _with_boxes_of(batch: Batch, places: Sequence[int]) -> Batch:
    """A batch in which only the images at some places have boxes."""
    boxes = [image_boxes[:0] for image_boxes in batch.boxes]
    labels = [image_labels[:0] for image_labels in batch.labels]
    for place in places:
        boxes[place] = batch.boxes[place]
        labels[place] = batch.labels[place]
    return replace(batch, boxes=boxes, labels=labels)


def _join(candidates: Candidates, close_up: CloseUp, batch: Batch) -> Candidates:
    """The candidates, followed by the mask of the other tool, if there is one."""
    # A box that was clipped to its window may have no area left.
    if close_up.other is None or not close_up.view.boxes.numel():
        return candidates
    other, window, view = close_up.other, close_up.window, close_up.view
    piece = other.part.within(window.top, window.left, (window.height, window.width))
    pixels = torch.from_numpy(piece)[None, None].float()
    small = F.interpolate(pixels, view.size, mode="bilinear", antialias=True)[0, 0]
    if view.is_flipped:
        small = small.flip(1)
    height, width = batch.weak.shape[-2:]
    right, bottom = width - view.size[1], height - view.size[0]
    padded = F.pad(small, (0, right, 0, bottom))
    probs = candidates.mask_probs
    return Candidates(
        mask_probs=torch.cat([probs, sample_cells(padded[None]).to(probs)]),
        score=_append(candidates.score, other.quality),
        box_iou=_append(candidates.box_iou, other.fit),
        box_index=_append(candidates.box_index, 0),  # a close-up has one box
    )


def _append(values: Tensor, value: float) -> Tensor:
    """Values (n,) and one more."""
    return torch.cat([values, torch.tensor([value]).to(values)])


def attempts(config: BoxSegConfig) -> Iterator[BoxSegConfig]:
    """Settings to find candidates with, strictest first."""
    # The outline is found from fused maps, not from masks, so weighted maps on coarse cells are what is needed.
    always = {
        "min_quality": 0.0,
        "fusion": "weighted",
        "full_resolution": False,
        "color_weight": COLOR_WEIGHT,
    }
    own = config.qam.model_copy(update=always)
    # Also for runs that were trained as BoxTeacher: QAM ranks all detections of a box, not the one that NMS leaves.
    teacher = config.teacher.model_copy(update={"with_nms": False})
    yield config.model_copy(update={"qam": own, "teacher": teacher})

    any_class = own.model_copy(update={"class_match": False})
    yield config.model_copy(update={"qam": any_class, "teacher": teacher})

    few = {"iou_thr": 0.0, "score_thr": 0.0, "k_top": 3, "adaptive_k": False}
    nearest = any_class.model_copy(update=few)
    weakest = teacher.model_copy(update={"cand_score_thr": 0.0, "pre_topk": EVERYTHING})
    yield config.model_copy(update={"qam": nearest, "teacher": weakest})
