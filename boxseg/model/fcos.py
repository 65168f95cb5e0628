"""The detection head: class, box, centre-ness and mask-head parameters for every location of the pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxseg.config.method import FcosConfig, ModelConfig

PRIOR = 0.01
"""Class probability that the untrained head gives."""


class FcosHead(nn.Module):
    """Two towers shared by all levels; the box tower also feeds centre-ness and controller.

    Source: FCOS (arXiv 1904.01355), CondInst (arXiv 2003.05664); `docs/method.md#detection-head`.
    """

    def __init__(
        self,
        model: ModelConfig,
        fcos: FcosConfig,
        *,
        num_classes: int,
        num_params: int,
    ) -> None:
        """
        Args:
            model: `channels`, `tower_convs` and `norm_groups` count.
            fcos: `tower_std` and `start_distance` count, and the number of `sizes`, one less than of levels.
            num_classes: K.
            num_params: P, parameters of the dynamic mask head.
        """
        super().__init__()
        channels, convs = model.channels, model.tower_convs
        groups = num_groups(channels) if model.norm_groups is None else model.norm_groups
        self.class_tower = _build_tower(channels, convs, groups)
        self.box_tower = _build_tower(channels, convs, groups)
        self.class_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.distances = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.controller = nn.Conv2d(channels, num_params, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(fcos.sizes) + 1))
        for layer in (*self.class_tower, *self.box_tower):
            if isinstance(layer, nn.Conv2d):
                _draw(layer, std=fcos.tower_std)
        # Narrow networks start with outputs as spread as at 256 channels: the dynamic head hardly learns from
        # parameters near 0.
        output_std = 0.01 * math.sqrt(256 / channels)
        # The logit of PRIOR. Nearly all locations are background, and would begin with a huge loss at one half.
        _draw(self.class_logits, std=output_std, bias=-math.log((1 - PRIOR) / PRIOR))
        _draw(self.distances, std=output_std, bias=fcos.start_distance)
        _draw(self.centerness, std=output_std)
        _draw(self.controller, std=output_std)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the head says about all locations, finest level first, row by row.

        Args:
            maps: One map (B, channels, h, w) for each level.

        Returns:
            Class logits (B, L, K), distances (B, L, 4) >= 0 in strides, centre-ness logits (B, L), and the maps that
            `controller_at` reads, (B, L', channels), padded by a cell; all float32.
        """
        class_logits, distances, centerness, padded = [], [], [], []
        for level, feature in enumerate(maps):
            class_logits.append(_flatten(self.class_logits(self.class_tower(feature))))
            box_feature = self.box_tower(feature)
            distances.append(F.relu(self.scales[level] * _flatten(self.distances(box_feature))))
            centerness.append(_flatten(self.centerness(box_feature)))
            padded.append(_flatten(F.pad(box_feature, (1, 1, 1, 1))))
        return (
            torch.cat(class_logits, dim=1),
            torch.cat(distances, dim=1),
            torch.cat(centerness, dim=1).squeeze(-1),
            torch.cat(padded, dim=1),
        )

    def controller_at(self, padded: Tensor, image_index: Tensor, patches: Tensor) -> Tensor:
        """Parameters of the dynamic mask head, float32 (n, P), at some locations only.

        A step needs them for a few hundred of many thousand locations, and this convolution has more channels than
        those that need all.

        Args:
            padded: (B, L', channels), from `forward`.
            image_index: int64 (n,).
            patches: int64 (n, 9), rows of `make_patches`.
        """
        # (n, 9): places among those of all images in one row.
        cells = image_index[:, None] * padded.shape[1] + patches
        values = (
            padded.flatten(0, 1)
            .index_select(0, cells.flatten())
            .reshape(*patches.shape, padded.shape[2])
        )
        # (P, 9, channels), as the values lie
        weight = self.controller.weight.flatten(2).transpose(1, 2)
        return F.linear(values.flatten(1), weight.flatten(1), self.controller.bias).float()


def make_locations(
    maps: Sequence[Tensor], strides: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the cells of all levels sit: cell k of a map of stride s is at pixel k * s + s // 2.

    Args:
        maps: One map (..., h, w) for each level.
        strides: Pixels per cell of each level.

    Returns:
        Locations (L, 2), x y in pixels; strides float (L,); levels int64 (L,). Order as in `FcosHead.forward`.
    """
    locations, stride_of, level_of = [], [], []
    for level, (feature, stride) in enumerate(zip(maps, strides, strict=True)):
        locations.append(
            grid_locations(feature.shape[-2], feature.shape[-1], stride, device=feature.device)
        )
        # tensors of its shape, so that an exported network follows the size of the image
        of_cell = locations[-1][:, 0]
        stride_of.append(torch.full_like(of_cell, float(stride)))
        level_of.append(torch.full_like(of_cell, level, dtype=torch.int64))
    return torch.cat(locations), torch.cat(stride_of), torch.cat(level_of)


def make_patches(maps: Sequence[Tensor]) -> Tensor:
    """int64 (L, 9): where the 3x3 patch around each location lies in the padded maps of `FcosHead.forward`."""
    patches, start = [], 0
    for feature in maps:
        (height, width), device = feature.shape[-2:], feature.device
        padded_width = width + 2
        # A location's cell is the middle of its patch; in padded maps the patch begins where the cell was without.
        corner = _flat_grid(height, width, padded_width, device)
        steps = _flat_grid(3, 3, padded_width, device)
        patches.append(start + corner.reshape(-1, 1) + steps.flatten())
        start = start + (height + 2) * padded_width
    return torch.cat(patches)


def _flat_grid(rows: int, columns: int, row_length: int, device: torch.device) -> Tensor:
    """int64 (rows, columns): flat indices of the first cells of a map whose rows are `row_length` long."""
    row = torch.arange(rows, device=device)[:, None]
    return row * row_length + torch.arange(columns, device=device)


def grid_locations(
    height: int, width: int, stride: int, *, device: torch.device | str = "cpu"
) -> Tensor:
    """Pixels (height * width, 2), x y, of the cells of a map, row by row."""
    y = torch.arange(height, device=device) * stride + stride // 2
    x = torch.arange(width, device=device) * stride + stride // 2
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows], dim=-1).reshape(-1, 2).float()


def _flatten(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> float32 (B, h * w, C)."""
    return maps.flatten(2).transpose(1, 2).float()


def _draw(layer: nn.Conv2d, *, std: float, bias: float = 0.0) -> None:
    """Give a layer random weights of this spread, and one bias for all channels."""
    assert layer.bias is not None
    nn.init.normal_(layer.weight, std=std)
    nn.init.constant_(layer.bias, bias)


def _build_tower(channels: int, convs: int, groups: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(convs):
        layers += [
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(groups, channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def num_groups(channels: int) -> int:
    """Groups of a group norm: 32 where channels allow, fewer rather than groups of less than four channels.

    >>> [num_groups(channels) for channels in (256, 32, 24, 6)]
    [32, 8, 6, 1]
    """
    most = min(32, max(channels // 4, 1))
    return max(groups for groups in range(1, most + 1) if channels % groups == 0)
