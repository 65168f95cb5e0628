"""torchvision's Mask R-CNN: its detector as it is, and its mask head drawn on the grid of the mask losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import (
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image

from boxseg.model.backbone import Backbone
from boxseg.model.fcos import grid_locations
from boxseg.model.pyramid import PyramidNetwork
from boxseg.model.targets import choose_proposals
from boxseg.ops.boxes import box_iou
from boxseg.ops.masks import box_masks
from boxseg.structures import MASK_STRIDE, MeanOverRanks, Proposals, RawDetections

REGION_MAPS = ["p3", "p4", "p5"]
"""Pyramid levels that regions are cut from; regions are searched on all levels."""

MASK_WINDOW = 1.5
"""Side of the window that a mask is drawn in, in sides of the box. A window that ends at the box would cut the masks of
boxes that miss a part of their object, and box losses, unlike pixel targets, would then fight over the cut."""

OUTSIDE = -10.0
"""Mask logit outside of the window of an instance."""


@dataclass(frozen=True)
class RegionPredictions:
    """What Mask R-CNN knows of a batch before its heads look at single regions."""

    maps: dict[str, Tensor]
    """Float32 (B, channels, H/s, W/s), finest first."""
    padded_size: tuple[int, int]
    """(H, W), pixels."""
    sizes: list[tuple[int, int]]
    """B times (h, w) before padding, pixels."""
    anchors: list[Tensor]
    """B times float (A, 4), pixels."""
    objectness: Tensor
    """Float (B * A, 1), logits."""
    deltas: Tensor
    """Float (B * A, 4): from anchors to regions, as torchvision encodes them."""
    regions: list[Tensor]
    """B times float (R, 4), pixels, without gradient: the boxes that the second stage looks at."""


class MaskRcnn(PyramidNetwork):
    """Mask R-CNN on the pyramid P3 … P7; a handle is the box of the instance and its label, float (n, 5).

    Source: Mask R-CNN (arXiv 1703.06870) as in torchvision.
    """

    class_layers: ClassVar[Mapping[str, int]] = MappingProxyType(
        {
            "roi_heads.box_predictor.cls_score": 1,
            "roi_heads.box_predictor.bbox_pred": 4,
            "mask_predictor.mask_fcn_logits": 0,
        }
    )

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: Backbone,
        channels: int,
        anchor_sizes: Sequence[int],
        representation: int,
        mask_channels: int,
        mask_convs: int,
        regions: int,
        sampled: int,
        max_per_image: int,
    ) -> None:
        """
        Args:
            num_classes: K.
            backbone: Gives maps of strides 8, 16 and 32; see `build_backbone`.
            channels: Channels of the pyramid.
            anchor_sizes: Side of the anchors on each of the five levels [px].
            representation: Width of the box head.
            mask_channels: Width of the mask head.
            mask_convs: 3x3 convolutions of the mask head.
            regions: Regions of an image that reach the second stage.
            sampled: Regions of an image that the box head learns from; a quarter of them positive at most.
            max_per_image: Proposals of an image that get mask losses.
        """
        super().__init__(num_classes=num_classes, backbone=backbone, channels=channels)
        self.max_per_image = max_per_image
        anchors = AnchorGenerator(
            tuple((size,) for size in anchor_sizes), ((0.5, 1.0, 2.0),) * len(anchor_sizes)
        )
        limit = {"training": regions, "testing": regions}
        # Thresholds and shares are torchvision's defaults.
        self.rpn = RegionProposalNetwork(
            anchors,
            RPNHead(channels, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n=limit,
            post_nms_top_n=limit,
            nms_thresh=0.7,
        )
        # Only its training is used; the last three settings belong to its inference.
        self.roi_heads = RoIHeads(
            MultiScaleRoIAlign(REGION_MAPS, output_size=7, sampling_ratio=2),
            TwoMLPHead(channels * 7 * 7, representation),
            FastRCNNPredictor(representation, num_classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=sampled,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.0,
            nms_thresh=0.5,
            detections_per_img=100,
        )
        self.mask_pool = MultiScaleRoIAlign(REGION_MAPS, output_size=14, sampling_ratio=2)
        self.mask_head = MaskRCNNHeads(channels, (mask_channels,) * mask_convs, dilation=1)
        self.mask_predictor = MaskRCNNPredictor(mask_channels, mask_channels, num_classes)
        # torchvision's first logits are several units large, which only per-pixel targets can undo.
        nn.init.normal_(self.mask_predictor.mask_fcn_logits.weight, std=0.01)
        nn.init.zeros_(self.mask_predictor.mask_fcn_logits.bias)

    def forward(self, images: Tensor, valid: Tensor) -> RegionPredictions:
        """Pyramid maps and the regions worth a second look; arguments as for `pyramid_maps`."""
        maps = {name: level.float() for name, level in self.pyramid_maps(images, valid).items()}
        extent = torch.stack([valid.any(dim=2).sum(dim=1), valid.any(dim=1).sum(dim=1)], dim=1)
        # torchvision clips boxes with plain numbers
        sizes = [(height, width) for height, width in extent.tolist()]
        levels = list(maps.values())
        objectness, deltas = self.rpn.head(levels)
        anchors = self.rpn.anchor_generator(ImageList(images, sizes), levels)
        counts = [level[0].numel() for level in objectness]
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        objectness, deltas = objectness.float(), deltas.float()
        boxes = self.rpn.box_coder.decode(deltas.detach(), anchors).view(len(images), -1, 4)
        regions, _ = self.rpn.filter_proposals(boxes, objectness, sizes, counts)
        height, width = images.shape[-2:]
        return RegionPredictions(
            maps, (height, width), sizes, anchors, objectness, deltas, regions
        )

    @torch.no_grad()
    def detect(
        self, predictions: RegionPredictions, *, score_thr: float, pre_topk: int
    ) -> list[RawDetections]:
        """The `pre_topk` best pairs of region and class of each image, of class probability above `score_thr`."""
        logits, deltas = self._look_at(predictions, predictions.regions)
        counts = [len(regions) for regions in predictions.regions]
        # (sum of R, K, 4)
        boxes = self.roi_heads.box_coder.decode(deltas, predictions.regions)[:, 1:]
        # Class 0 is the background.
        probs = logits.softmax(dim=-1)[:, 1:]
        detections = []
        for image_boxes, image_probs, size in zip(
            boxes.split(counts), probs.split(counts), predictions.sizes, strict=True
        ):
            confidence, place = image_probs.flatten().topk(min(pre_topk, image_probs.numel()))
            place = place[confidence > score_thr]
            labels = place % self.num_classes
            kept = clip_boxes_to_image(image_boxes.flatten(0, 1)[place], size)
            # `topk` sorts, so those above the threshold are the first.
            scores = confidence[: len(place)].sqrt()
            detections.append(RawDetections(kept, labels, scores, _make_handle(kept, labels)))
        return detections

    def mask_logits(
        self, predictions: RegionPredictions, image_index: Tensor, handle: Tensor
    ) -> Tensor:
        """Mask logits, float32 (n, H/4, W/4), of boxes with labels (n, 5); `OUTSIDE` outside of their windows."""
        # The pool takes the boxes image by image; `order.argsort()` brings the masks back into the caller's order.
        order = image_index.argsort(stable=True)
        windows, labels = _widen(handle[order, :4]), handle[order, 4].long()
        per_image = windows.split(image_index.bincount(minlength=len(predictions.sizes)).tolist())
        crops = self.mask_pool(
            predictions.maps, list(per_image), [predictions.padded_size] * len(per_image)
        )
        logits = self.mask_predictor(self.mask_head(crops)).float()  # (n, K, 28, 28)
        own = logits[torch.arange(len(labels), device=labels.device), labels]
        return paste_logits(own, windows, *predictions.padded_size)[order.argsort()]

    def detection_losses(
        self,
        predictions: RegionPredictions,
        boxes: list[Tensor],
        labels: list[Tensor],
        *,
        mean_over_ranks: MeanOverRanks,
    ) -> tuple[dict[str, Tensor], Proposals]:
        """torchvision's `objectness`, `region`, `cls` and `loc`, normalised per process; positive regions as proposals.

        Boxes without area are left out, which torchvision cannot encode.
        """
        kept = [(box[:, 2:] > box[:, :2]).all(dim=1).nonzero().squeeze(1) for box in boxes]
        targets = [
            {"boxes": box[index], "labels": label[index] + 1}  # 0 is the background
            for box, label, index in zip(boxes, labels, kept, strict=True)
        ]
        matches, matched_boxes = self.rpn.assign_targets_to_anchors(predictions.anchors, targets)
        wanted = self.rpn.box_coder.encode(matched_boxes, predictions.anchors)
        objectness, region = self.rpn.compute_loss(
            predictions.objectness, predictions.deltas, matches, list(wanted)
        )

        regions, owners, classes, wanted = self.roi_heads.select_training_samples(
            list(predictions.regions), targets
        )
        cls, loc = fastrcnn_loss(*self._look_at(predictions, regions), classes, wanted)
        proposals = self._choose(regions, owners, classes, targets, kept)
        return {"objectness": objectness, "region": region, "cls": cls, "loc": loc}, proposals

    def _look_at(
        self, predictions: RegionPredictions, regions: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Class logits (sum of R, K + 1), background first, and box deltas (sum of R, 4 K + 4) of regions."""
        heads = self.roi_heads
        crops = heads.box_roi_pool(
            predictions.maps, regions, [predictions.padded_size] * len(regions)
        )
        logits, deltas = heads.box_predictor(heads.box_head(crops))
        return logits.float(), deltas.float()

    def _choose(
        self,
        regions: list[Tensor],
        owners: list[Tensor],
        classes: list[Tensor],
        targets: list[dict[str, Tensor]],
        kept: list[Tensor],
    ) -> Proposals:
        """Positive regions, shared fairly among the boxes; those that fit their box best come first."""
        box_index, fit = [], []
        for region, owner, label, target, index in zip(
            regions, owners, classes, targets, kept, strict=True
        ):
            # Images without boxes need no case of their own: an additional box without area matches nothing.
            box_index.append(torch.where(label > 0, F.pad(index, (0, 1), value=-1)[owner], -1))
            fit.append(box_iou(region, F.pad(target["boxes"], (0, 0, 0, 1))).amax(dim=1))
        padded = [pad_sequence(items, batch_first=True) for items in (regions, classes, fit)]
        chosen = choose_proposals(
            pad_sequence(box_index, batch_first=True, padding_value=-1),
            padded[2],
            max_per_image=self.max_per_image,
        )
        place = chosen.image_index, chosen.handle
        return replace(chosen, handle=_make_handle(padded[0][place], padded[1][place] - 1))


def paste_logits(logits: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Logits of boxes, drawn on the stride-4 grid of an image; differentiable in the logits.

    Args:
        logits: Float (n, m, m), stretched over the boxes.
        boxes: Float (n, 4), pixels.
        height: Rows of the padded image, pixels.
        width: Columns of the padded image, pixels.

    Returns:
        Float (n, height / 4, width / 4): bilinear samples at the centre pixels of the cells, `OUTSIDE` elsewhere.
    """
    rows, columns = height // MASK_STRIDE, width // MASK_STRIDE
    # + 0.5: boxes and `grid_sample` measure to edges of pixels, and the centre of pixel k is at k + 0.5.
    pixels = grid_locations(rows, columns, MASK_STRIDE, device=boxes.device) + 0.5
    pixels = pixels.view(rows, columns, 2)
    corner = boxes[:, None, None, :2]
    side = (boxes[:, 2:] - boxes[:, :2])[:, None, None].clamp(min=1)
    grid = 2 * (pixels - corner) / side - 1  # (n, rows, columns, 2)
    drawn = F.grid_sample(logits[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    return torch.where(box_masks(boxes, height, width, stride=MASK_STRIDE), drawn, OUTSIDE)


def _widen(boxes: Tensor) -> Tensor:
    """Windows (n, 4) around boxes (n, 4)."""
    margin = (MASK_WINDOW - 1) / 2 * (boxes[:, 2:] - boxes[:, :2])
    return torch.cat([boxes[:, :2] - margin, boxes[:, 2:] + margin], dim=1)


def _make_handle(boxes: Tensor, labels: Tensor) -> Tensor:
    return torch.cat([boxes, labels[:, None].to(boxes.dtype)], dim=1)
