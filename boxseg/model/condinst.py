"""The network: images in, dense predictions out, and masks for the locations one asks for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from boxseg.errors import ShapeError
from boxseg.model.backbone import PYRAMID_STRIDES, Backbone, build_pyramid
from boxseg.model.fcos import FcosHead, make_locations
from boxseg.model.mask_head import DynamicMaskHead, MaskBranch
from boxseg.structures import Predictions


class CondInst(nn.Module):
    """Backbone, feature pyramid, detection head, mask branch and dynamic mask head.

    Source: CondInst (arXiv 2003.05664); `method.md` section (b).
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: Backbone,
        channels: int = 256,
        tower_convs: int = 4,
        features: int = 16,
        head_channels: int = 8,
        head_layers: int = 3,
        branch_channels: int = 128,
        branch_convs: int = 4,
    ) -> None:
        """
        Args:
            num_classes: K.
            backbone: Gives maps of strides 8, 16 and 32; see `build_backbone`.
            channels: Channels of pyramid and detection head.
            tower_convs: Convolutions in each tower of the detection head.
            features: Channels of the mask features.
            head_channels: Width of the dynamic mask head.
            head_layers: Depth of the dynamic mask head.
            branch_channels: Width of the mask branch.
            branch_convs: Convolutions of the mask branch after the levels are summed.
        """
        super().__init__()
        self.num_classes = num_classes
        self.backbone = backbone
        self.pyramid = build_pyramid(backbone.channels, channels)
        self.mask_branch = MaskBranch(channels=channels, width=branch_channels, convs=branch_convs, features=features)
        self.mask_head = DynamicMaskHead(features=features, channels=head_channels, layers=head_layers)
        self.head = FcosHead(
            channels=channels,
            num_classes=num_classes,
            num_params=self.mask_head.num_params,
            tower_convs=tower_convs,
            num_levels=len(PYRAMID_STRIDES),
        )
        self.register_buffer("pixel_mean", torch.tensor(backbone.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("pixel_std", torch.tensor(backbone.std).view(3, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor, valid: Tensor) -> Predictions:
        """Dense predictions for a batch.

        Args:
            images: uint8 or float (B, 3, H, W), RGB in 0 … 255; H and W are multiples of 32.
            valid: Bool (B, H, W), False on padding; what `images` hold there does not matter.

        Returns:
            Raw predictions, float32, all levels together.

        Raises:
            ShapeError: H or W is no multiple of 32, or `valid` does not match.
        """
        maps = list(self.pyramid(self._backbone_maps(images, valid)).values())
        class_logits, distances, centerness_logits, controller = self.head(maps)
        locations, strides, levels = make_locations(maps, PYRAMID_STRIDES)
        return Predictions(
            class_logits=class_logits,
            distances=distances,
            centerness_logits=centerness_logits,
            controller=controller,
            mask_features=self.mask_branch(maps[:3]).float(),
            locations=locations,
            strides=strides,
            levels=levels,
        )

    def mask_logits(self, predictions: Predictions, image_index: Tensor, location_index: Tensor) -> Tensor:
        """Mask logits of chosen locations.

        Args:
            predictions: Output of `forward`.
            image_index: int64 (n,).
            location_index: int64 (n,).

        Returns:
            Float32 (n, H/4, W/4), on the grid of the padded images; n may be 0.
        """
        return self.mask_head(
            predictions.mask_features,
            params=predictions.controller[image_index, location_index],
            image_index=image_index,
            locations=predictions.locations[location_index],
            levels=predictions.levels[location_index],
        )

    def _backbone_maps(self, images: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Maps of the normalised images, by name, finest first; padding is 0 after normalisation."""
        height, width = images.shape[-2:]
        if height % 32 or width % 32 or valid.shape != (len(images), height, width):
            raise ShapeError(
                f"images have shape {tuple(images.shape)} and valid {tuple(valid.shape)}; "
                "(B, 3, H, W) and (B, H, W) with H and W multiples of 32 are needed"
            )
        normalised = (images.float() - self.pixel_mean) / self.pixel_std
        normalised = torch.where(valid[:, None], normalised, 0)
        return dict(zip(("p3", "p4", "p5"), self.backbone(normalised), strict=True))
