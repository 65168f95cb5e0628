"""Colour changes of the strong view: drawn where images are read, carried out on the device of the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as F

from boxseg.structures import Batch

Strong = Literal["none", "weak", "strong", "strongv2"]


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
"""Setting `data.strong` -> changes of the strong view; `docs/method.md#views`."""

BLUR_SIGMA_PX = (0.1, 2.0)
"""The sigma of a blur is drawn between these."""
BLUR_KERNEL_PX = 3

PIXELS_AT_ONCE = 2**15
"""Pixels that a CPU changes at once: their three planes stay in its cache."""


@dataclass(frozen=True)
class Recoloring:
    """What happens to the colours of one image."""

    changes: tuple[tuple[str, float], ...]
    """Name of a change, `contrast` or one in CHANGES, and its amount; carried out one after the other."""
    blur_sigma: float | None
    """Sigma of the blur at the end [px]; None without a blur."""


def draw_recoloring(limits: ColorChanges, generator: Generator) -> Recoloring:
    """Draw the changes of one image: jitter in random order, then perhaps grey, then perhaps blurred."""
    # All numbers are drawn, needed or not, so that no change shifts the random numbers of another.
    jitter, grey, blur, *shares = torch.rand(7, generator=generator).tolist()
    order = torch.randperm(len(JITTER), generator=generator).tolist()
    sigma_share = torch.rand(1, generator=generator).item()
    changes: list[tuple[str, float]] = []
    if jitter < limits.jitter:
        *factors, hue = [2 * share - 1 for share in shares]  # -1 … 1
        amounts = [1 + factor * limits.amount for factor in factors]
        amounts.append(hue * limits.hue)
        changes += [(JITTER[index], amounts[index]) for index in order]
    if grey < limits.grey:
        changes.append(("saturation", 0.0))
    low, high = BLUR_SIGMA_PX
    sigma = low + (high - low) * sigma_share
    return Recoloring(tuple(changes), blur_sigma=sigma if blur < limits.blur else None)


def add_strong_view(batch: Batch, recolorings: Sequence[Recoloring | None]) -> Batch:
    """The batch with a strong view made from the weak one, on its device and without waiting for it.

    Args:
        batch: Its `strong` is not looked at.
        recolorings: For each of the B images what changes; where all are None, `weak` and `strong` are one tensor.
    """
    if all(recoloring is None for recoloring in recolorings):
        return replace(batch, strong=batch.weak)
    strong = batch.weak.clone()
    for image, recoloring, size in zip(strong, recolorings, batch.sizes, strict=True):
        if recoloring is not None:
            height, width = size
            pixels = image[:, :height, :width]  # without the padding, which stays 0
            pixels.copy_(recolor(pixels, recoloring))
    return replace(batch, strong=strong)


def recolor(image: Tensor, recoloring: Recoloring) -> Tensor:
    """The recoloured image, uint8 (3, h, w).

    Every change gives what torchvision's gives, rounded down to whole numbers; so does the hue, but for one value of
    20,000. On a CPU the changes take turns on blocks of pixels that stay in its cache.
    """
    pixels = image.flatten(1)  # (3, h * w)
    pending: list[Change] = []
    for name, amount in recoloring.changes:
        if name == "contrast":
            # It needs the mean of all pixels, so what came before is carried out first.
            pixels = _carry_out(pending, pixels)
            lightness = [_lightness(block.float()) for block in _blocks(pixels)]
            mean = torch.cat(lightness).mean()
            pending = [partial(_blend, other=mean, amount=amount)]
        else:
            pending.append(partial(CHANGES[name], amount=amount))
    image = _carry_out(pending, pixels).view_as(image)
    if recoloring.blur_sigma is None:
        return image
    kernel_size, sigma = [BLUR_KERNEL_PX] * 2, [recoloring.blur_sigma] * 2
    return F.gaussian_blur_image(image, kernel_size=kernel_size, sigma=sigma)


def _carry_out(changes: Sequence[Change], pixels: Tensor) -> Tensor:
    """The changed pixels, uint8 (3, n); the same tensor where there are no changes."""
    if not changes:
        return pixels
    changed = torch.empty_like(pixels)
    for block, result in zip(_blocks(pixels), _blocks(changed), strict=True):
        values = block.float()
        for change in changes:
            change(values)
        result.copy_(values)
    return changed


def _blocks(pixels: Tensor) -> tuple[Tensor, ...]:
    """Pixels (3, n) in blocks for a CPU's cache; in one for a GPU, where each call costs time."""
    if pixels.device.type == "cpu":
        return pixels.split(PIXELS_AT_ONCE, dim=1)
    return (pixels,)


def _brighten(pixels: Tensor, amount: float) -> None:
    pixels.mul_(amount).clamp_(max=255).floor_()


def _saturate(pixels: Tensor, amount: float) -> None:
    _blend(pixels, _lightness(pixels), amount)


def _blend(pixels: Tensor, other: Tensor, amount: float) -> None:
    """Mix pixels (3, n) with others: 1 leaves them, 0 leaves the others, more than 1 moves away from them."""
    pixels.mul_(amount).add_(other, alpha=1 - amount).clamp_(0, 255).floor_()


def _lightness(pixels: Tensor) -> Tensor:
    """Grey of float (3, n): float (n,) of whole numbers, with torchvision's weights of the colours."""
    red, green, blue = pixels.unbind()
    grey = 0.2989 * red
    grey.add_(green, alpha=0.587).add_(blue, alpha=0.114)
    return grey.floor_()


def _shift_hue(pixels: Tensor, amount: float) -> None:
    """Move the hue by a share of the colour circle, at most a sixth either way; lightness and chroma stay.

    Hue runs from 0 (red) over 2 (green) and 4 (blue) to 6. Comparing and selecting cost a CPU many times what adding
    does, so the sector of a colour is computed: exactly, as the values are whole numbers until the division.
    """
    red, green, blue = pixels.unbind()
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    # How far the hue is from red, times chroma; it goes the shorter way, which is negative where blue exceeds green.
    distance = high - red
    distance.add_(green).add_(blue).sub_(low, alpha=2)
    from_red = torch.copysign(distance, green - blue)
    chroma = high.sub_(low)
    # 1 from blue over magenta, where the way is negative
    is_past_blue = (from_red + chroma).neg_().clamp_(0, 1)
    from_red.add_(is_past_blue.mul_(chroma), alpha=6)
    hue = from_red.div_(chroma.clamp(min=1e-6)).add_(6 * amount)
    hue.sub_((hue / 6).floor_(), alpha=6)  # back into 0 … 6
    # Each colour is 1 near its own hue, 0 far from it, and rises in a line between; values beyond are cut below.
    torch.sub(hue, 3, out=red).abs_().sub_(1)
    torch.sub(hue, 2, out=green).abs_().neg_().add_(2)
    torch.sub(hue, 4, out=blue).abs_().neg_().add_(2)
    # As torchvision does, [0, 1] is cut into 256 equal steps.
    pixels.clamp_(0, 1).mul_(chroma).add_(low)
    pixels.mul_(255.999 / 255).floor_()


Change = Callable[[Tensor], None]
CHANGES: dict[str, Callable[..., None]] = {
    "brightness": _brighten,
    "saturation": _saturate,
    "hue": _shift_hue,
}
"""Change float (3, n) of whole numbers 0 … 255 in place by an amount."""
JITTER = ("brightness", "contrast", "saturation", "hue")
