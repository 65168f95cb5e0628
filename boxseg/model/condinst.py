"""CondInst: images in, dense predictions out, and masks for the locations one asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from boxseg.config.method import CondConfig, FcosConfig, ModelConfig
from boxseg.model.backbone import PYRAMID_STRIDES, Backbone
from boxseg.model.fcos import FcosHead, make_locations, make_patches
from boxseg.model.mask_head import FEATURE_STRIDE, DynamicMaskHead, MaskBranch, with_coordinates
from boxseg.model.pyramid import PyramidNetwork
from boxseg.model.targets import assign_batch, choose_proposals
from boxseg.ops.detections import decode_detections
from boxseg.structures import (
    MASK_STRIDE,
    MeanOverRanks,
    Predictions,
    Proposals,
    RawDetections,
    Windows,
)

PARAMS_AT_ONCE = 1024
"""Locations whose mask-head parameters are computed in one go. Each needs a copy of nine cells with all channels, so
this bounds memory."""


class CondInst(PyramidNetwork):
    """Backbone, feature pyramid, detection head, mask branch and dynamic mask head.

    Source: CondInst (arXiv 2003.05664); `docs/method.md#network`.
    """

    class_layers: ClassVar[tuple[str, ...]] = ("head.class_logits",)
    draws_windows: ClassVar[bool] = True

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: Backbone,
        detection_loss: Callable[..., dict[str, Tensor]],
        model: ModelConfig,
        cond: CondConfig,
        fcos: FcosConfig,
    ) -> None:
        """
        Args:
            num_classes: K.
            backbone: Gives maps of strides 8, 16 and 32; see `build_backbone`.
            detection_loss: `losses.detection.detection_losses`.
            model: Width of pyramid and heads, and depth of the detection head's towers.
            cond: Of mask branch and mask head.
            fcos: Of the detection head, its targets and its losses. Its `sizes` are also the unit of the mask head's
                coordinates, on the last level twice the last one.
        """
        super().__init__(num_classes=num_classes, backbone=backbone, channels=model.channels)
        self.detection_loss = detection_loss
        self.fcos = fcos
        self.max_per_image = cond.max_per_image
        self.mask_branch = MaskBranch(model.channels, cond)
        self.mask_head = DynamicMaskHead(
            features=cond.features,
            channels=cond.channels,
            layers=cond.layers,
            reach=(*fcos.sizes, 2 * fcos.sizes[-1]),
        )
        num_params = self.mask_head.num_params
        self.head = FcosHead(model, fcos, num_classes=num_classes, num_params=num_params)

    def forward(self, images: Tensor, valid: Tensor) -> Predictions:
        """Dense predictions for a batch, float32, all levels together; arguments as for `pyramid_maps`."""
        maps = list(self.pyramid_maps(images, valid).values())
        class_logits, distances, centerness_logits, controller_maps = self.head(maps)
        locations, strides, levels = make_locations(maps, PYRAMID_STRIDES)
        return Predictions(
            class_logits=class_logits,
            distances=distances,
            centerness_logits=centerness_logits,
            controller_maps=controller_maps,
            patches=make_patches(maps),
            mask_features=self.mask_branch(maps[:3]).float(),
            locations=locations,
            strides=strides,
            levels=levels,
        )

    def mask_logits(self, predictions: Predictions, image_index: Tensor, handle: Tensor) -> Tensor:
        """Mask logits of chosen locations.

        Args:
            predictions: Output of `forward`.
            image_index: int64 (n,).
            handle: int64 (n,), index of the location.

        Returns:
            Float32 (n, H/4, W/4), on the grid of the padded images; n may be 0.
        """
        return self.mask_head(
            with_coordinates(predictions.mask_features),
            params=self._params(predictions, image_index, handle),
            image_index=image_index,
            locations=predictions.locations[handle],
            levels=predictions.levels[handle],
        )

    def window_logits(
        self,
        predictions: Predictions,
        image_index: Tensor,
        handle: Tensor,
        parts: Sequence[tuple[Tensor, Windows]],
    ) -> Iterator[Tensor]:
        """`mask_logits` in windows; see `MaskNetwork`."""
        # Candidates of several boxes may share a location: its parameters are computed once. `unique` reads from the
        # device how many locations there are, the only read here.
        num_locations = len(predictions.locations)
        distinct, which = torch.unique(image_index * num_locations + handle, return_inverse=True)
        images = (distinct // num_locations).split(PARAMS_AT_ONCE)
        locations = (distinct % num_locations).split(PARAMS_AT_ONCE)
        params = torch.cat(
            [self._params(predictions, *part) for part in zip(images, locations, strict=True)]
        )
        cells = with_coordinates(predictions.mask_features).contiguous(
            memory_format=torch.channels_last
        )
        for index, windows in parts:
            yield self.mask_head(
                cells,
                params=params[which[index]],
                image_index=image_index[index],
                locations=predictions.locations[handle[index]],
                levels=predictions.levels[handle[index]],
                windows=windows.coarser(FEATURE_STRIDE // MASK_STRIDE),
            )

    def _params(self, predictions: Predictions, image_index: Tensor, handle: Tensor) -> Tensor:
        """Parameters (n, P) of the dynamic mask head."""
        return self.head.controller_at(
            predictions.controller_maps, image_index, predictions.patches[handle]
        )

    def detect(
        self, predictions: Predictions, *, score_thr: float, pre_topk: int
    ) -> list[RawDetections]:
        """The best (location, class) pairs of every level; see `decode_detections`. The handle is the location."""
        return decode_detections(predictions, score_thr=score_thr, pre_topk=pre_topk)

    def detection_losses(
        self,
        predictions: Predictions,
        boxes: list[Tensor],
        labels: list[Tensor],
        *,
        mean_over_ranks: MeanOverRanks,
    ) -> tuple[dict[str, Tensor], Proposals]:
        """`cls`, `loc` and `ctr` of all locations, and the positive locations that get mask losses.

        Source: FCOS (arXiv 2006.09214), `docs/method.md#detection-losses`; CondInst (arXiv 2003.05664),
        `docs/method.md#proposals`.
        """
        targets = assign_batch(
            predictions.locations,
            predictions.strides,
            predictions.levels,
            boxes,
            labels,
            radius=self.fcos.radius,
            sizes=self.fcos.sizes,
        )
        positive = targets.box_index >= 0
        # Both normalisers travel in one message; a process without boxes takes part like all others.
        sums = torch.stack([positive.sum().float(), (targets.centerness.float() * positive).sum()])
        num_positive, centerness_sum = mean_over_ranks(sums).unbind()
        with torch.autocast(sums.device.type, enabled=False):
            terms = self.detection_loss(
                predictions,
                targets,
                num_positive=num_positive.clamp(min=1),
                centerness_sum=centerness_sum.clamp(min=1e-6),
                settings=self.fcos,
            )
            anchor = self._gradient_anchor(predictions)
        class_score = predictions.class_logits.detach().float().amax(dim=-1).sigmoid()
        score = class_score * predictions.centerness_logits.detach().float().sigmoid()
        proposals = choose_proposals(targets.box_index, score, max_per_image=self.max_per_image)
        return {name: term + anchor for name, term in terms.items()}, proposals

    def _gradient_anchor(self, predictions: Predictions) -> Tensor:
        """Zero that depends on every output, so that each parameter gets a gradient whatever the batch holds."""
        first = predictions.patches.new_zeros(1)
        outputs = (
            predictions.class_logits,
            predictions.distances,
            predictions.centerness_logits,
            self.head.controller_at(predictions.controller_maps, first, predictions.patches[:1]),
            predictions.mask_features,
        )
        zeros = (output.flatten()[:1].float().sum() * 0 for output in outputs)
        return sum(zeros, start=outputs[0].new_zeros(()).float())
