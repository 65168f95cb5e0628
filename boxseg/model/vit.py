"""Plain vision transformers, such as those of DINOv2 and DINOv3, as feature extractors."""

from __future__ import annotations

from typing import Any

import timm
import torch.nn.functional as F
from torch import Tensor, nn

TOKEN_PX = 16
"""Pixels of the image that a token stands for, along each axis."""
VIT_MODULES = {"vision_transformer", "eva"}
"""Modules of timm with networks that keep one map of tokens from the first layer to the last."""


def is_plain_vit(name: str) -> bool:
    """Whether a network of timm is a plain vision transformer."""
    return timm.models.is_model_in_modules(name, VIT_MODULES)


class PlainVit(nn.Module):
    """A vision transformer whose last map is that of stride 16, and the maps of strides 8 and 32 that come from it.

    Patches of another size than 16 px see an image that is resized by as much, so that each token stands for 16 px of
    the image as it came: with patches of 14 px, of 7/8 of its size.

    Source: the simple feature pyramid of ViTDet (arXiv 2203.16527); the network's own pyramid follows.
    """

    def __init__(self, name: str, *, pretrained: bool) -> None:
        """
        Args:
            name: As timm has it.
            pretrained: Download its weights.
        """
        super().__init__()
        # `dynamic_img_size`: learnt positions are resized to each image; timm would refuse all sizes but one.
        vit: Any = timm.create_model(name, pretrained=pretrained, dynamic_img_size=True)
        # Drops the classifier: data-parallel training waits for the gradient of every parameter.
        vit.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
        self.vit = vit
        self.patch_px: int = vit.patch_embed.patch_size[0]
        self.finer = nn.ConvTranspose2d(vit.num_features, vit.num_features // 2, 2, stride=2)

    @property
    def resizes(self) -> bool:
        """Whether images, or learnt positions, are resized to fit each other."""
        return self.patch_px != TOKEN_PX or getattr(self.vit, "pos_embed", None) is not None

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W), sides multiples of 32 -> (B, C/2, H/8, W/8), (B, C, H/16, W/16), (B, C, H/32, W/32)."""
        if self.patch_px != TOKEN_PX:
            size = [side * self.patch_px // TOKEN_PX for side in images.shape[-2:]]
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        vit: Any = self.vit
        (tokens,) = vit.forward_intermediates(
            images, indices=1, norm=True, intermediates_only=True
        )
        return [self.finer(tokens), tokens, F.max_pool2d(tokens, 2)]
