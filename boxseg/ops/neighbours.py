"""Pairs of a cell with its eight neighbours: shifted views, CIELAB, colour similarity and where it may be trusted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from boxseg.errors import ShapeError
from boxseg.structures import MASK_STRIDE

OFFSETS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""(row, column) steps to the eight neighbours in units of the dilation; entry 7 - k is opposite to entry k."""

RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE_XYZ = (0.95047, 1.0, 1.08883)


def color_similarity(images: Tensor, valid: Tensor, *, dilation: int, truncate: bool = True) -> Tensor:
    """Likeness in colour of every stride-4 cell and its eight neighbours.

    Args:
        images: uint8 or float (B, 3, H, W), RGB in 0 … 255, both sides multiples of 4.
        valid: Bool (B, H, W); False on padding and on rows whose colours mean nothing.
        dilation: Distance of the neighbours, in cells of 4 px.
        truncate: Cut the pooled colours to whole grey levels, as the reference does.

    Returns:
        Float (B, 8, H/4, W/4) in [0, 1], `exp(-LAB distance / 2)`; 0 for a neighbour that is invalid or off the map.

    Raises:
        ShapeError: sizes differ or are no multiples of 4.

    Source: BoxInst (arXiv 2012.02310); `method.md` section (c).
    """
    batch, _, height, width = images.shape
    if tuple(valid.shape) != (batch, height, width) or height % MASK_STRIDE or width % MASK_STRIDE:
        raise ShapeError(
            f"images {tuple(images.shape)} and valid {tuple(valid.shape)} need one (H, W), each a multiple of 4"
        )
    pooled = F.avg_pool2d(images.float(), MASK_STRIDE)
    return lab_similarity(rgb_to_lab(pooled.floor() if truncate else pooled), sample_cells(valid), dilation=dilation)


def lab_similarity(lab: Tensor, valid: Tensor, *, dilation: int) -> Tensor:
    """Colour similarity on a map that is small already.

    Args:
        lab: Float (B, 3, h, w), CIELAB.
        valid: Bool (B, h, w); only the neighbour's validity counts.
        dilation: Distance of the neighbours, in cells.

    Returns:
        Float (B, 8, h, w) in [0, 1]; 0 for a neighbour that is invalid or off the map.
    """
    difference = neighbour_view(lab, dilation) - lab.unsqueeze(-3)  # (B, 3, 8, h, w)
    return torch.exp(-0.5 * difference.norm(dim=1)) * neighbour_view(valid.to(lab.dtype), dilation)


def neighbour_view(values: Tensor, dilation: int) -> Tensor:
    """The eight neighbours of every cell.

    Args:
        values: (…, h, w), any dtype that can be padded.
        dilation: Distance of the neighbours, in cells.

    Returns:
        (…, 8, h, w) in the order of `OFFSETS`; zero (False) where the neighbour is off the map.
    """
    height, width = values.shape[-2:]
    padded = F.pad(values, (dilation,) * 4)
    rows_columns = [(dilation * (1 + row), dilation * (1 + column)) for row, column in OFFSETS]
    return torch.stack([padded[..., y : y + height, x : x + width] for y, x in rows_columns], dim=-3)


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """CIELAB (D65) of RGB colours.

    Args:
        rgb: uint8 or float (…, 3, h, w) in 0 … 255, sRGB.

    Returns:
        Float (…, 3, h, w): L in 0 … 100, then a and b.

    Source: `method.md` section (c) for the constants.
    """
    share = rgb.float() / 255.0
    linear = torch.where(share > 0.04045, ((share + 0.055) / 1.055).pow(2.4), share / 12.92)
    red, green, blue = linear.unbind(dim=-3)
    xyz = [
        (row[0] * red + row[1] * green + row[2] * blue) / white
        for row, white in zip(RGB_TO_XYZ, WHITE_XYZ, strict=True)
    ]
    x, y, z = [torch.where(u > 0.008856, u.clamp(min=0.008856).pow(1 / 3), 7.787 * u + 16 / 116) for u in xyz]
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-3)


def sample_cells(values: Tensor) -> Tensor:
    """The pixels at the centres of the stride-4 cells: (…, H, W) -> (…, H/4, W/4)."""
    return values[..., MASK_STRIDE // 2 :: MASK_STRIDE, MASK_STRIDE // 2 :: MASK_STRIDE]


def remove_bottom_rows(
    valid: Tensor, sizes: list[tuple[int, int]], original_sizes: list[tuple[int, int]], bottom_px: float
) -> Tensor:
    """Validity without the lowest rows of each image, which carry artefacts in COCO.

    Args:
        valid: Bool (B, H, W); False on padding.
        sizes: B times (h, w) before padding, pixels.
        original_sizes: B times (height, width) of the image file, pixels.
        bottom_px: Rows to remove, in pixels of the image file; scaled to `sizes` and rounded down.

    Returns:
        Bool (B, H, W), a new tensor.
    """
    ends = [
        size[0] - int(bottom_px * size[0] / original[0]) for size, original in zip(sizes, original_sizes, strict=True)
    ]
    rows = torch.arange(valid.shape[1], device=valid.device)
    return valid & (rows < torch.tensor(ends, device=valid.device)[:, None])[:, :, None]
