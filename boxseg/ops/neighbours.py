"""Pairs of a cell with its neighbours: shifted views, CIELAB, colour similarity and where it may be trusted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from boxseg.errors import ShapeError
from boxseg.ops.transfer import tensor_on
from boxseg.structures import MASK_STRIDE

RGB_TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE_XYZ = (0.95047, 1.0, 1.08883)


def color_similarity(
    images: Tensor, valid: Tensor, *, size: int = 3, dilation: int = 2, truncate: bool = True
) -> Tensor:
    """Likeness in colour of every stride-4 cell and its S = size² - 1 neighbours.

    Args:
        images: uint8 or float (B, 3, H, W), RGB in 0 … 255, both sides multiples of 4.
        valid: Bool (B, H, W); False on padding and on rows whose colours mean nothing.
        size: Side of the neighbourhood, odd.
        dilation: Distance of the neighbours, in cells of 4 px.
        truncate: Cut the pooled colours to whole grey levels, as the reference does.

    Returns:
        Float (B, S, H/4, W/4) in [0, 1], `exp(-LAB distance / 2)`; 0 for a neighbour that is invalid or off the map.

    Raises:
        ShapeError: sizes differ or are no multiples of 4.

    Source: BoxInst (arXiv 2012.02310); `docs/method.md#pairwise-colour-affinity`.
    """
    batch, _, height, width = images.shape
    if tuple(valid.shape) != (batch, height, width) or height % MASK_STRIDE or width % MASK_STRIDE:
        raise ShapeError(
            f"images {tuple(images.shape)} and valid {tuple(valid.shape)} need one (H, W), each a multiple of 4"
        )
    pooled = F.avg_pool2d(images.float(), MASK_STRIDE)
    lab = rgb_to_lab(pooled.floor() if truncate else pooled)
    return lab_similarity(lab, sample_cells(valid), size=size, dilation=dilation)


def lab_similarity(lab: Tensor, valid: Tensor, *, size: int, dilation: int) -> Tensor:
    """Colour similarity on a map that is small already.

    Args:
        lab: Float (B, 3, h, w), CIELAB.
        valid: Bool (B, h, w); only the neighbour's validity counts.
        size: Side of the neighbourhood, odd.
        dilation: Distance of the neighbours, in cells.

    Returns:
        Float (B, S, h, w) in [0, 1]; 0 for a neighbour that is invalid or off the map.
    """
    difference = neighbour_view(lab, size, dilation) - lab.unsqueeze(-3)  # (B, 3, S, h, w)
    # `norm` over a dimension that is not the last one takes several times as long.
    distance = difference.square().sum(dim=1).sqrt()
    return torch.exp(-0.5 * distance) * neighbour_view(valid.to(lab.dtype), size, dilation)


def neighbour_view(values: Tensor, size: int, dilation: int) -> Tensor:
    """The neighbours of every cell.

    Args:
        values: (…, h, w), any dtype that can be padded.
        size: Side of the neighbourhood, odd.
        dilation: Distance of the neighbours, in cells.

    Returns:
        (…, S, h, w) in the order of `neighbour_offsets`; zero (False) where the neighbour is off the map.
    """
    height, width = values.shape[-2:]
    reach = dilation * (size // 2)
    padded = F.pad(values, (reach,) * 4)
    corners = [
        (reach + dilation * row, reach + dilation * column)
        for row, column in neighbour_offsets(size)
    ]
    views = [padded[..., y : y + height, x : x + width] for y, x in corners]
    return torch.stack(views, dim=-3) if views else values.unsqueeze(-3)[..., :0, :, :]


def neighbour_offsets(size: int) -> list[tuple[int, int]]:
    """(row, column) steps to the S = size² - 1 neighbours, row by row; entry S - 1 - k is opposite to entry k."""
    steps = range(-(size // 2), size // 2 + 1)
    return [(row, column) for row in steps for column in steps if (row, column) != (0, 0)]


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """CIELAB (D65) of RGB colours.

    Args:
        rgb: uint8 or float (…, 3, h, w) in 0 … 255, sRGB.

    Returns:
        Float (…, 3, h, w): L in 0 … 100, then a and b.

    Source: IEC 61966-2-1 (sRGB) and CIE 1976 L*a*b*; `docs/method.md#pairwise-colour-affinity`.

    >>> white = torch.full((3, 1, 1), 255)
    >>> [abs(round(value, 2)) for value in rgb_to_lab(white).flatten().tolist()]
    [100.0, 0.0, 0.0]
    """
    share = rgb.float() / 255.0
    linear = torch.where(share > 0.04045, ((share + 0.055) / 1.055).pow(2.4), share / 12.92)
    red, green, blue = linear.unbind(dim=-3)
    xyz = [
        (row[0] * red + row[1] * green + row[2] * blue) / white
        for row, white in zip(RGB_TO_XYZ, WHITE_XYZ, strict=True)
    ]
    x, y, z = (_cube_root_or_line(share) for share in xyz)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-3)


def _cube_root_or_line(share: Tensor) -> Tensor:
    """Cube root of a share of white; a line takes over near 0, where the slope of the root is without bounds."""
    root = share.clamp(min=0.008856).pow(1 / 3)
    return torch.where(share > 0.008856, root, 7.787 * share + 16 / 116)


def sample_cells(values: Tensor) -> Tensor:
    """The pixels at the centres of the stride-4 cells: (…, H, W) -> (…, H/4, W/4)."""
    return values[..., MASK_STRIDE // 2 :: MASK_STRIDE, MASK_STRIDE // 2 :: MASK_STRIDE]


def remove_bottom_rows(
    valid: Tensor,
    sizes: list[tuple[int, int]],
    original_sizes: list[tuple[int, int]],
    bottom_px: float,
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
    ends = []
    for (height, _), (original_height, _) in zip(sizes, original_sizes, strict=True):
        ends.append(height - int(bottom_px * height / original_height))
    rows = torch.arange(valid.shape[1], device=valid.device)
    is_kept = rows < tensor_on(valid.device, ends)[:, None]  # (B, H)
    return valid & is_kept[:, :, None]
