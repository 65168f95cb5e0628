"""Tiny data sets of kinds that settings for photographs of everyday things do not fit, with masks to measure with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxseg.coco.writer import CocoSplit
from boxseg.config.method import CocoSource


@dataclass(frozen=True)
class Kind:
    """What the pictures of a set look like."""

    side: int
    """Of the square pictures [px]."""
    objects: int
    """In each picture, at most."""
    sizes: tuple[float, float]
    """Least and most of the diameter [px]."""
    hole: float = 0.0
    """Inner radius, as a share of the outer one."""
    dark: bool = False
    """Grey, and hardly brighter than black."""


KINDS = {
    "dark": Kind(192, 8, (24, 48), dark=True),
    "small": Kind(192, 20, (7, 9)),
    "large": Kind(512, 1, (380, 420)),
    "rings": Kind(192, 3, (44, 72), hole=0.55),
}


def write_set(folder: Path, kind: Kind, *, images: int, seed: int = 0) -> CocoSource:
    """Draw pictures with stars of three to six points, or rings, of one class, with masks."""
    rng = np.random.default_rng(seed)
    split = CocoSplit(folder / "images", ["thing"])
    (folder / "images").mkdir(parents=True)
    for number in range(images):
        picture, masks = _draw(rng, kind)
        Image.fromarray(picture).save(folder / "images" / f"{number:03d}.png")
        split.add_image(f"{number:03d}.png", (kind.side, kind.side))
        for mask in masks:
            split.add_object(0, mask=mask)
    (folder / "boxes.json").write_text(json.dumps(split.content))
    return CocoSource(images=folder / "images", annotations=folder / "boxes.json")


def without_masks(source: CocoSource, path: Path) -> CocoSource:
    """The same set with its boxes alone."""
    content = json.loads(source.annotations.read_text())
    for each in content["annotations"]:
        del each["segmentation"]
    path.write_text(json.dumps(content))
    return CocoSource(images=source.images, annotations=path)


def _draw(
    rng: np.random.Generator, kind: Kind
) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    side = kind.side
    rows, columns = np.mgrid[0:side, 0:side] + 0.5
    taken = np.zeros((side, side), dtype=bool)
    background, noise = (
        (rng.uniform(8, 14), 1.5) if kind.dark else (rng.uniform(60, 200, size=3), 8.0)
    )
    picture = np.zeros((side, side, 3)) + background
    masks = []
    for _ in range(20 * kind.objects):
        radius = rng.uniform(*kind.sizes) / 2
        x, y = rng.uniform(radius + 1, side - radius - 1, size=2)
        distance, angle = np.hypot(rows - y, columns - x), np.arctan2(rows - y, columns - x)
        if (taken & (distance < radius + 3)).any():
            continue
        points, turn = int(rng.integers(3, 7)), rng.uniform(0, 2 * np.pi)
        edge = radius if kind.hole else radius * (0.7 + 0.3 * np.cos(points * angle + turn))
        mask = (distance <= edge) & (distance >= kind.hole * radius)
        taken |= distance < radius + 3
        color = background + rng.uniform(7, 12) if kind.dark else _far_from(rng, background)
        picture[mask] = color
        masks.append(mask)
        if len(masks) == kind.objects:
            break
    picture += rng.normal(scale=noise, size=(side, side, 1))
    return picture.round().clip(0, 255).astype(np.uint8), masks


def _far_from(rng: np.random.Generator, background: NDArray[np.float64]) -> NDArray[np.float64]:
    while True:
        color = rng.uniform(0, 255, size=3)
        if np.linalg.norm(color - background) > 90:
            return color
