"""The mask branch, which makes features for a whole image, and the dynamic head, which reads one instance from them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxseg.config.method import CondConfig
from boxseg.errors import ShapeError
from boxseg.model.fcos import grid_locations
from boxseg.ops.masks import aligned_bilinear
from boxseg.structures import Windows

FEATURE_STRIDE = 8
"""Pixels per cell of the mask features."""


class MaskBranch(nn.Module):
    """Mask features from the three finest pyramid levels; holds the only learning batch norms beside the backbone's.

    Source: CondInst (arXiv 2003.05664); `docs/method.md#mask-head`.
    """

    def __init__(self, channels: int, settings: CondConfig) -> None:
        """
        Args:
            channels: Channels of the pyramid.
            settings: `branch_channels`, `branch_convs` and `features` count.
        """
        super().__init__()
        width, convs = settings.branch_channels, settings.branch_convs
        self.refine = nn.ModuleList(_conv_block(channels, width) for _ in range(3))
        self.tower = nn.Sequential(*(_conv_block(width, width) for _ in range(convs)))
        self.output = nn.Conv2d(width, settings.features, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Levels P3, P4, P5, each (B, channels, h, w) -> mask features (B, F, H/8, W/8)."""
        total = self.refine[0](maps[0])
        for level in (1, 2):
            # P4 and P5 have a half and a quarter of P3's sides.
            total = total + aligned_bilinear(self.refine[level](maps[level]), 2**level)
        return self.output(self.tower(total))


class DynamicMaskHead(nn.Module):
    """A tiny network of 1x1 convolutions whose parameters come with each instance; has none of its own.

    A cell's input is [x, y, features]: its offset from the instance's location and its mask features. Parameters
    are ordered weights of all layers, each (out, in) row by row, then biases of all layers.

    Source: CondInst (arXiv 2003.05664); `docs/method.md#mask-head`.
    """

    reach: Tensor

    def __init__(
        self,
        *,
        features: int = 16,
        channels: int = 8,
        layers: int = 3,
        reach: Sequence[float] = (64, 128, 256, 512, 1024),
    ) -> None:
        """
        Args:
            features: F, channels of the mask features.
            channels: Width of the hidden layers.
            layers: Number of layers, at least 2.
            reach: Pixels that are one unit of a cell's offset, for each pyramid level.
        """
        super().__init__()
        # Follows from the settings, so no checkpoint needs it.
        self.register_buffer("reach", torch.tensor(reach, dtype=torch.float32), persistent=False)
        self.widths = [features + 2] + [channels] * (layers - 1) + [1]
        self.weight_sizes = [before * after for before, after in pairwise(self.widths)]
        self.num_params = sum(self.weight_sizes) + sum(self.widths[1:])

    def forward(
        self,
        cells: Tensor,
        *,
        params: Tensor,
        image_index: Tensor,
        locations: Tensor,
        levels: Tensor,
        windows: Windows | None = None,
    ) -> Tensor:
        """Mask logits of instances; computed in float32.

        Args:
            cells: Float (B, 2 + F, H/8, W/8), from `with_coordinates`.
            params: Float (n, num_params).
            image_index: int64 (n,): the image of each instance.
            locations: Float (n, 2): x y of the location that gave the parameters, pixels.
            levels: int64 (n,): the pyramid level of that location.
            windows: The part of its map that is wanted of each instance, in cells of stride 8; None: all of it.

        Returns:
            Float32 (n, H/4, W/4); of windows (n, 2 h, 2 w), where the first row and column are of use only on the
            border of the map.

        Raises:
            ShapeError: `params` has another number of columns.
        """
        if params.shape[1:] != (self.num_params,):
            raise ShapeError(
                f"params have shape {tuple(params.shape)}; (n, {self.num_params}) is needed"
            )
        with torch.autocast(cells.device.type, enabled=False):
            (first, *weights), (first_bias, *biases) = self.split(params.float())
            if windows is None:
                height, width = cells.shape[-2:]
                # (n, 2 + F, h * w); the gradient of `index_select` is faster than that of an index in brackets
                inputs = cells.flatten(2).index_select(0, image_index)
            else:
                height, width = windows.size
                inputs = _take_windows(cells, image_index, windows)
            # The offset of a cell is (location - cell) / reach. The first layer is linear: the location's part of it is
            # the same for all cells and goes into the bias, so the inputs of an image serve all its instances.
            reach = self.reach[levels][:, None]  # (n, 1)
            bias = torch.baddbmm(
                first_bias[..., None], first[..., :2], (locations / reach)[..., None]
            )
            first = torch.cat([first[..., :2] / -reach[..., None], first[..., 2:]], dim=2)
            hidden = torch.baddbmm(bias, first, inputs)
            for weight, bias in zip(weights, biases, strict=True):
                hidden = torch.baddbmm(bias[..., None], weight, F.relu(hidden))
            return aligned_bilinear(hidden.reshape(-1, height, width), 2)

    def split(self, params: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters (n, num_params) -> each layer's weight (n, out, in), and each layer's bias (n, out)."""
        *weights, biases = params.split([*self.weight_sizes, sum(self.widths[1:])], dim=1)
        matrices = [
            weight.unflatten(1, (after, before))
            for weight, (before, after) in zip(weights, pairwise(self.widths), strict=True)
        ]
        return matrices, list(biases.split(self.widths[1:], dim=1))


def with_coordinates(mask_features: Tensor) -> Tensor:
    """The pixel (x, y) of each cell in front of its features, float32: (B, F, h, w) -> (B, 2 + F, h, w)."""
    batch, _, height, width = mask_features.shape
    pixels = grid_locations(height, width, FEATURE_STRIDE, device=mask_features.device)
    maps = pixels.T.reshape(2, height, width).expand(batch, -1, -1, -1)
    return torch.cat([maps, mask_features.float()], dim=1)


def _take_windows(maps: Tensor, image_index: Tensor, windows: Windows) -> Tensor:
    """Values (n, F, h * w) of maps (B, F, H, W) in windows of the images (n,)."""
    cells = image_index[:, None] * (maps.shape[-2] * maps.shape[-1]) + windows.cells(
        maps.shape[-1]
    )
    by_cell = maps.permute(0, 2, 3, 1).flatten(0, 2)  # no copy of maps that are channels-last
    return by_cell.index_select(0, cells.flatten()).view(*cells.shape, -1).transpose(1, 2)


def _conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    # a = 1 is the gain of a layer without ReLU; the reference begins so.
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())
