"""The teacher looks at the weak images and offers candidates for every ground-truth box."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from boxseg.ops.boxes import box_area, box_iou, clip_boxes, decode_boxes, scale_boxes
from boxseg.ops.neighbours import sample_cells
from boxseg.structures import MASK_STRIDE, Batch, Candidates, MaskNetwork, Predictions
from boxseg.teacher.qam import adaptive_k, mask_confidence, rank_candidates

CELLS_AT_ONCE = 2**23
"""Stride-4 cells of candidate masks that the mask head computes in one go: bounds memory to a few hundred MB."""
PAD_TO = 32
"""Sides of the teacher's input are multiples of this."""


@dataclass(frozen=True)
class CandidateSettings:
    """Settings of `find_candidates`; `teacher.*`, `qam.*` and `fcos.nms_thr, topk` of the same names explain them."""

    cand_score_thr: float = 0.05
    pre_topk: int = 1000
    resize_short: int | None = 800
    resize_long: int = 1333
    eval_mode: bool = False
    k_top: int = 20
    adaptive_k: bool = False
    k_min: int = 5
    k_max: int = 20
    area_s: float = 32.0**2
    area_l: float = 96.0**2
    iou_thr: float = 0.5
    score_thr: float = 0.1
    class_match: bool = True
    filter_first: bool = False
    mask_thr: float = 0.5
    with_nms: bool = False
    nms_thr: float = 0.6
    topk: int = 100


@dataclass(frozen=True)
class TeacherView:
    """What the teacher sees: the weak images, possibly at another size."""

    images: Tensor
    """uint8 or float (B, 3, Ht, Wt) in 0 … 255."""
    valid: Tensor
    """Bool (B, Ht, Wt)."""
    sizes: list[tuple[int, int]]
    """B times (h, w) before padding."""


@dataclass(frozen=True)
class Found:
    """Detections of one image before any ground truth is considered; M places, unused ones have box and score 0."""

    boxes: Tensor
    """Float (M, 4), pixels of the teacher's image, not clipped."""
    labels: Tensor
    """int64 (M,)."""
    scores: Tensor
    """Float (M,), sqrt(class probability x centre-ness)."""
    location_index: Tensor
    """int64 (M,)."""


@torch.no_grad()
def find_candidates(network: MaskNetwork, batch: Batch, settings: CandidateSettings) -> list[Candidates]:
    """Teacher detections with masks for the ground-truth boxes of every image.

    The network runs in training mode (or evaluation mode, as the settings say) and is given back as it came.

    Args:
        network: The teacher.
        batch: Its weak view is labelled.
        settings: Thresholds, limits and variants.

    Returns:
        B candidates, masks on the (H/4, W/4) grid of the batch and 0 on padding; sorted by box, then rank. With
        `with_nms` at most one candidate per box.

    Source: BoxSeg (arXiv 2504.05137), BoxTeacher (arXiv 2210.05174); `method.md` sections (a.2), (d), (e.1), (l.1).
    """
    view = teacher_view(batch, short=settings.resize_short, long=settings.resize_long)
    return pick_candidates(network, _forward(network, view, training=not settings.eval_mode), batch, view, settings)


@torch.no_grad()
def pick_candidates(
    network: MaskNetwork, predictions: Predictions, batch: Batch, view: TeacherView, settings: CandidateSettings
) -> list[Candidates]:
    """`find_candidates` for predictions that are already there; `view` is what the network saw."""
    pick = _pick_one_per_box if settings.with_nms else _pick_by_rank
    found = decode(predictions, score_thr=settings.cand_score_thr, pre_topk=settings.pre_topk)
    return [
        pick(MaskSource(network, predictions, batch, view, image), detections, settings)
        for image, detections in enumerate(found)
    ]


def teacher_view(batch: Batch, *, short: int | None, long: int) -> TeacherView:
    """The weak images resized to a short side of `short` pixels (long side at most `long`); None: as they are."""
    sizes = batch.sizes if short is None else [resized(size, short=short, long=long) for size in batch.sizes]
    if sizes == batch.sizes:
        return TeacherView(batch.weak, batch.valid, sizes)
    height, width = (-(-max(side) // PAD_TO) * PAD_TO for side in zip(*sizes, strict=True))
    images = batch.weak.new_zeros(len(batch), 3, height, width, dtype=torch.float32)
    valid = batch.valid.new_zeros(len(batch), height, width)
    for image, ((h, w), (new_h, new_w)) in enumerate(zip(batch.sizes, sizes, strict=True)):
        weak = batch.weak[image : image + 1, :, :h, :w].float()
        images[image, :, :new_h, :new_w] = F.interpolate(weak, (new_h, new_w), mode="bilinear", align_corners=False)[0]
        valid[image, :new_h, :new_w] = True
    return TeacherView(images, valid, sizes)


def resized(size: tuple[int, int], *, short: int, long: int) -> tuple[int, int]:
    """(height, width) at a short side of `short`, or less where the long side would exceed `long`; rounded half up."""
    scale = min(short / min(size), long / max(size))
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def decode(predictions: Predictions, *, score_thr: float, pre_topk: int) -> list[Found]:
    """The best (location, class) pairs of every level, without NMS.

    Args:
        predictions: Raw outputs for B images.
        score_thr: Floor of class probability x centre-ness.
        pre_topk: Pairs per level at most.

    Returns:
        B detections, each with the same number of places.
    """
    product = predictions.class_logits.float().sigmoid() * predictions.centerness_logits.float().sigmoid()[..., None]
    num_classes = product.shape[-1]
    scores, places = [], []
    start = 0
    # Level sizes follow from the image size, but only the network knows how: one small read from the device.
    for length in torch.bincount(predictions.levels).tolist():
        level = product[:, start : start + length].flatten(1)
        top, index = level.topk(min(pre_topk, level.shape[1]), dim=1)
        scores.append(top)
        places.append(index + start * num_classes)
        start += length
    score, place = torch.cat(scores, dim=1), torch.cat(places, dim=1)  # (B, M)
    used = score > score_thr
    location_index = place.div(num_classes, rounding_mode="floor")
    boxes = decode_boxes(predictions.locations, predictions.distances.float(), predictions.strides)
    boxes = boxes.gather(1, location_index[..., None].expand(-1, -1, 4)) * used[..., None]
    score = (score * used).sqrt()
    return [Found(*image) for image in zip(boxes, place % num_classes, score, location_index, strict=True)]


@dataclass(frozen=True)
class MaskSource:
    """Where the masks of one image come from, and the grid they are wanted on."""

    network: MaskNetwork
    predictions: Predictions
    batch: Batch
    view: TeacherView
    image: int

    def boxes(self) -> Tensor:
        """Ground-truth boxes (N, 4) in pixels of the teacher's image, clipped to it."""
        size = self.view.sizes[self.image]
        return clip_boxes(scale_boxes(self.batch.boxes[self.image], self.batch.sizes[self.image], size), size)

    def mask_probs(self, location_index: Tensor) -> Tensor:
        """Mask probabilities (C, H/4, W/4) of locations (C,), on the grid of the training batch; 0 on padding."""
        height, width = self.view.valid.shape[-2:]
        at_once = max(CELLS_AT_ONCE // (height * width // MASK_STRIDE**2), 1)
        image_index = torch.full_like(location_index, self.image)
        chunks = [
            self._to_training_grid(self.network.mask_logits(self.predictions, images, locations).float().sigmoid())
            for images, locations in zip(image_index.split(at_once), location_index.split(at_once), strict=True)
        ]
        return torch.cat(chunks) * sample_cells(self.batch.valid[self.image])

    def _to_training_grid(self, probs: Tensor) -> Tensor:
        """Bilinear samples of (C, Ht/4, Wt/4) at the centre pixels of the training cells."""
        if self.view.images is self.batch.weak:
            return probs
        axes = []
        sides = zip(
            self.batch.valid.shape[-2:],
            probs.shape[-2:],
            self.batch.sizes[self.image],
            self.view.sizes[self.image],
            strict=True,
        )
        for padded, cells, side, new_side in sides:
            pixel = torch.arange(MASK_STRIDE // 2, padded, MASK_STRIDE, device=probs.device)
            new_pixel = ((pixel + 0.5) * (new_side / side) - 0.5).clamp(0, new_side - 1)
            cell = (new_pixel - MASK_STRIDE // 2) / MASK_STRIDE
            axes.append(2 * cell / max(cells - 1, 1) - 1)
        y, x = torch.meshgrid(*axes, indexing="ij")
        grid = torch.stack([x, y], dim=-1)[None]  # (1, H/4, W/4, 2)
        return F.grid_sample(probs[None], grid, mode="bilinear", padding_mode="border", align_corners=True)[0]


def _pick_by_rank(source: MaskSource, found: Found, settings: CandidateSettings) -> Candidates:
    """Box-Quality Ranking: the best candidates of every box."""
    batch, image = source.batch, source.image
    k_per_box = None
    if settings.adaptive_k:
        (height, width), (original_height, original_width) = batch.sizes[image], batch.original_sizes[image]
        areas = box_area(batch.boxes[image]) * (original_height * original_width / (height * width))
        k_per_box = adaptive_k(
            areas, k_min=settings.k_min, k_max=settings.k_max, area_s=settings.area_s, area_l=settings.area_l
        ).round()
    index, box_index, iou = rank_candidates(
        source.boxes(),
        batch.labels[image],
        found.boxes,
        found.labels,
        found.scores,
        k_top=settings.k_max if settings.adaptive_k else settings.k_top,
        iou_thr=settings.iou_thr,
        score_thr=settings.score_thr,
        class_match=settings.class_match,
        filter_first=settings.filter_first,
        k_per_box=k_per_box,
    )
    return Candidates(source.mask_probs(found.location_index[index]), found.scores[index], iou, box_index)


def _pick_one_per_box(source: MaskSource, found: Found, settings: CandidateSettings) -> Candidates:
    """BoxTeacher's labelling: NMS, then the best-ranked detections take a free box each."""
    kept = batched_nms(found.boxes, found.scores, found.labels, settings.nms_thr)[: settings.topk]
    kept = kept[found.scores[kept] > 0]
    scores = found.scores[kept]
    probs = source.mask_probs(found.location_index[kept])
    rank = (scores * mask_confidence(probs, mask_thr=settings.mask_thr)).sqrt().argsort(descending=True, stable=True)
    iou = box_iou(found.boxes[kept], source.boxes())  # (P, N)
    chosen, box_index = match_greedily(iou[rank], iou_thr=settings.iou_thr)
    chosen = rank[chosen]
    return Candidates(probs[chosen], scores[chosen], iou[chosen, box_index], box_index)


def match_greedily(iou: Tensor, *, iou_thr: float) -> tuple[Tensor, Tensor]:
    """Give each detection in turn the free box that it overlaps most, if by at least `iou_thr`.

    Args:
        iou: Float (P, N), detections in falling order of rank.
        iou_thr: Least IoU.

    Returns:
        `detection_index` and `box_index`, int64 (C,), sorted by box.

    Source: BoxTeacher (arXiv 2210.05174); `method.md` sections (d) and (k-9).
    """
    # Each choice depends on the ones before: done on the host, at most 100 small rows and one read from the device.
    table = iou.cpu().clone()
    detection_of_box: dict[int, int] = {}
    for detection, row in enumerate(table if table.shape[1] else []):
        box = int(row.argmax())
        if float(row[box]) >= iou_thr:
            detection_of_box[box] = detection
            table[:, box] = -1
    pairs = torch.tensor(sorted(detection_of_box.items()), dtype=torch.int64).view(-1, 2).to(iou.device)
    return pairs[:, 1], pairs[:, 0]


def _forward(network: MaskNetwork, view: TeacherView, *, training: bool) -> Predictions:
    """Predictions in the wanted mode; the module's own mode is restored."""
    before = network.training if isinstance(network, nn.Module) else None
    if isinstance(network, nn.Module) and before != training:
        network.train(training)
    try:
        return network(view.images, view.valid)
    finally:
        if isinstance(network, nn.Module) and before is not None and before != training:
            network.train(before)
