"""One geometry, two colourings: the weak view for the teacher and the strong one for the student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from boxseg.ops.boxes import scale_boxes
from boxseg.ops.images import resized_shape
from boxseg.ops.masks import resize_bool
from boxseg.structures import DrawnMasks, Sample

Strong = Literal["none", "weak", "strong", "strongv2"]


@dataclass(frozen=True)
class View:
    """One image after geometry, in two colourings."""

    weak: Tensor
    """uint8 (3, h, w), RGB."""
    strong: Tensor
    """uint8 (3, h, w), RGB; the same tensor as `weak` where colours are not changed."""
    boxes: Tensor
    """Float (N, 4), x1 y1 x2 y2 in pixels of the view."""
    labels: Tensor
    """int64 (N,)."""
    image_id: int
    """Id of the image in the COCO file."""
    original_size: tuple[int, int]
    """(height, width) of the image file, in pixels."""
    drawn: DrawnMasks | None = None
    """Drawn masks at the size of the view, where they are to be used."""


@dataclass(frozen=True)
class ColorChanges:
    """How far, and how often, colours change."""

    jitter: float
    """Probability of colour jitter."""
    amount: float
    """Brightness, contrast and saturation are multiplied by a factor from 1 ± this."""
    hue: float
    """Limit of the hue shift, as a share of the colour circle."""
    grey: float
    """Probability of losing all colour."""
    blur: float
    """Probability of a Gaussian blur of 3 x 3 pixels."""


COLOR_CHANGES: dict[Strong, ColorChanges | None] = {
    "none": None,
    "weak": ColorChanges(jitter=0.2, amount=0.2, hue=0.1, grey=0.0, blur=0.0),
    "strong": ColorChanges(jitter=0.8, amount=0.4, hue=0.1, grey=0.2, blur=0.0),
    "strongv2": ColorChanges(jitter=0.8, amount=0.4, hue=0.1, grey=0.2, blur=0.5),
}
"""Settings of the strong view; `method.md` section (h)."""

BLUR_SIGMA_PX = (0.1, 2.0)

PIXELS_AT_ONCE = 2**15
"""Pixels whose hue is shifted at once: the planes of so many stay in a processor's cache."""


def make_views(
    sample: Sample, *, short_sides: Sequence[int], max_size: int, flip: float, strong: Strong, generator: Generator
) -> View:
    """Resize and perhaps flip a sample, then change the colours of one copy.

    Args:
        sample: Image and boxes; left unchanged.
        short_sides: Short side of the view [px]; one is drawn.
        max_size: Limit of the long side [px].
        flip: Probability of a horizontal flip.
        strong: Name in COLOR_CHANGES.
        generator: Source of all randomness. Its first two numbers settle the geometry, so that this does not
            depend on `strong`.

    Returns:
        A View; boxes are clipped to it and those without area removed.

    Source: `method.md` sections (a.1) and (h).
    """
    drawn = torch.rand(2, generator=generator).tolist()
    short_side = short_sides[min(int(drawn[0] * len(short_sides)), len(short_sides) - 1)]
    view = resize_only(sample, short_side=short_side, max_size=max_size)
    if drawn[1] < flip:
        view = flip_view(view)
    changes = COLOR_CHANGES[strong]
    return view if changes is None else replace(view, strong=change_colors(view.weak, changes, generator))


def resize_only(sample: Sample, short_side: int, max_size: int) -> View:
    """The view that evaluation uses: resized, neither flipped nor recoloured; weak and strong are one tensor.

    Boxes keep their order and number as long as they have an area.
    """
    height, width = sample.image.shape[-2:]
    new_size = resized_shape((height, width), short_side=short_side, max_size=max_size)
    image = sample.image
    if new_size != (height, width):
        image = F.resize_image(image, list(new_size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    image = image.contiguous()  # colour by colour, as changes of colours want it
    boxes = clip_boxes_to_image(scale_boxes(sample.boxes, (height, width), new_size), new_size)
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    drawn = sample.drawn
    if drawn is not None:
        drawn = DrawnMasks(resize_bool(drawn.mask[kept], new_size), drawn.present[kept])
    return View(image, image, boxes[kept], sample.labels[kept], sample.image_id, sample.original_size, drawn)


def flip_view(view: View) -> View:
    """The horizontally mirrored view; its strong image is the weak one."""
    weak = F.horizontal_flip_image(view.weak)
    drawn = None if view.drawn is None else replace(view.drawn, mask=view.drawn.mask.flip(-1))
    return replace(view, weak=weak, strong=weak, boxes=flip_boxes(view.boxes, width=weak.shape[-1]), drawn=drawn)


def flip_boxes(boxes: Tensor, *, width: int) -> Tensor:
    """Boxes (N, 4) of the horizontally mirrored image of this width [px]."""
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=1)


def change_colors(image: Tensor, changes: ColorChanges, generator: Generator) -> Tensor:
    """A recoloured copy of uint8 (3, h, w): jitter in random order, then perhaps grey, then perhaps blurred."""
    chances = torch.rand(3, generator=generator).tolist()
    amounts = (2 * torch.rand(4, generator=generator) - 1).tolist()
    order = torch.randperm(4, generator=generator).tolist()
    sigma_share = torch.rand(1, generator=generator).item()
    image = image.clone()
    if chances[0] < changes.jitter:
        for operation in order:
            image = _jitter(image, operation, amounts[operation], changes)
    if chances[1] < changes.grey:
        image = F.rgb_to_grayscale_image(image, num_output_channels=3)
    if chances[2] < changes.blur:
        low, high = BLUR_SIGMA_PX
        sigma = low + (high - low) * sigma_share
        image = F.gaussian_blur_image(image, kernel_size=[3, 3], sigma=[sigma, sigma])
    return image


def _jitter(image: Tensor, operation: int, amount: float, changes: ColorChanges) -> Tensor:
    """One of brightness, contrast, saturation and hue; `amount` in [-1, 1]."""
    if operation == 3:
        return shift_hue(image, amount * changes.hue)
    adjust = (F.adjust_brightness_image, F.adjust_contrast_image, F.adjust_saturation_image)[operation]
    return adjust(image, 1 + amount * changes.amount)


def shift_hue(image: Tensor, share: float) -> Tensor:
    """uint8 (3, h, w) with the hue of every pixel moved by `share` of the colour circle; lightness and chroma stay.

    What torchvision's `adjust_hue_image` gives, in a third of its time; one value of 20,000 is rounded differently.
    """
    parts = [_shift_hue(part, 6 * share) for part in image.flatten(1).split(PIXELS_AT_ONCE, dim=1)]
    return torch.cat(parts, dim=1).view_as(image)


def _shift_hue(pixels: Tensor, sixths: float) -> Tensor:
    """uint8 (3, n); hue runs from 0 (red) over 2 (green) and 4 (blue) to 6."""
    red, green, blue = pixels.float().unbind()
    high, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    from_green, from_red = (blue - red).add_(2 * chroma), green - blue
    hue = torch.where(high == green, from_green, (red - green).add_(4 * chroma))
    hue = torch.where(high == red, from_red, hue).div_(chroma.clamp(min=1e-6)).add_(sixths).remainder_(6)
    shares = ((hue - 3).abs_().sub_(1), (hue - 2).abs_().neg_().add_(2), (hue - 4).abs_().neg_().add_(2))
    # As torchvision does, [0, 1] is cut into 256 equal steps.
    return torch.stack([low + chroma * part.clamp_(0, 1) for part in shares]).mul_(255.999 / 255).to(torch.uint8)
