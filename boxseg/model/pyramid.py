"""What all networks share: normalised images through the backbone into a feature pyramid."""

from __future__ import annotations

import torch
from torch import Tensor

from boxseg.errors import ShapeError
from boxseg.model.backbone import Backbone, build_pyramid
from boxseg.structures import MaskNetwork


class PyramidNetwork(MaskNetwork):
    """Backbone and feature pyramid P3 … P7."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, *, num_classes: int, backbone: Backbone, channels: int) -> None:
        """
        Args:
            num_classes: K.
            backbone: Gives maps of strides 8, 16 and 32; see `build_backbone`.
            channels: Channels of all pyramid levels.
        """
        super().__init__()
        self.num_classes = num_classes
        self.backbone = backbone
        self.pyramid = build_pyramid(backbone.channels, channels)
        # Images come in 0 … 255, and weights expect the mean and deviation of 0 … 1.
        self.register_buffer(
            "pixel_mean", torch.tensor(backbone.mean).view(3, 1, 1) * 255, persistent=False
        )
        self.register_buffer(
            "pixel_std", torch.tensor(backbone.std).view(3, 1, 1) * 255, persistent=False
        )

    def pyramid_maps(self, images: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Maps (B, channels, H/s, W/s) by name, finest first; padding is 0 after normalisation.

        Args:
            images: uint8 or float (B, 3, H, W), RGB in 0 … 255; H and W are multiples of 32.
            valid: Bool (B, H, W), False on padding; what `images` hold there does not matter.

        Raises:
            ShapeError: H or W is no multiple of 32, or `valid` does not match.
        """
        height, width = images.shape[-2:]
        if height % 32 or width % 32 or valid.shape != (len(images), height, width):
            raise ShapeError(
                f"images have shape {tuple(images.shape)} and valid {tuple(valid.shape)}; "
                "(B, 3, H, W) and (B, H, W) with H and W multiples of 32 are needed"
            )
        normalised = (images.float() - self.pixel_mean) / self.pixel_std
        # 0 is the mean colour by now; black padding would end each image with an edge.
        normalised = torch.where(valid[:, None], normalised, 0)
        maps = dict(zip(("p3", "p4", "p5"), self.backbone(normalised), strict=True))
        return dict(self.pyramid(maps))
