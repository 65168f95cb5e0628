"""Draws a small COCO data set of shapes with exact masks, for tests, first runs and the demo."""

from __future__ import annotations

import colorsys
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxseg.coco.writer import CocoSplit
from boxseg.config.method import CocoSource, Shape, ToyConfig
from boxseg.data.toy_shapes import SHAPES, BoolArray, FloatArray, coverage
from boxseg.files.writing import naming_storage_faults, sync_folder, sync_tree

DRAWING_VERSION = 2
"""Part of the folder's digest; raise it whenever the same settings would give other pictures."""

MAX_OBJECTS = 5
MIN_VISIBLE = 0.7
"""Share of an object that must stay visible beside image border and later objects."""
PLACES_TRIED = 30
"""Random places of an object that are tried before it is left out."""
COLORS_TRIED = 40
MIN_CONTRAST = 95.0
"""RGB distance (0 … 255 per channel) between an object and the background, and between two objects."""
CLASS_HUE_SPREAD = 0.3
"""Standard deviation of a class's hue, as a share of the distance between the hues of two classes."""

Rng = np.random.Generator
DrawHue = Callable[[Rng], float]
"""Draws a hue, as a share of the colour circle."""


# The same seed has to give the same pictures. So the order in which random numbers are drawn must stay, or
# DRAWING_VERSION rise.


def ensure_toy(root: Path, settings: ToyConfig) -> tuple[CocoSource, CocoSource]:
    """Train and val source of the generated data set; draws it first unless it is there.

    Safe when several processes call it at once: each draws beside, the first rename wins.

    Args:
        root: Folder that holds generated data sets; made if missing.
        settings: Number of images, their size and the seed; the same settings give the same bytes.

    Returns:
        (train, val): images `root/toy-<digest>/{train,val}/*.png`, annotations `…/annotations/{train,val}.json`. Both
        files hold tight boxes and RLE masks of the visible part; training ignores the masks.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     train, val = ensure_toy(Path(folder), ToyConfig(train_images=2, val_images=1, size=64))
    ...     sorted(path.name for path in train.images.iterdir())
    ['000000.png', '000001.png']
    """
    final = _folder(root, settings)
    if not final.is_dir():
        draft = root / f".{final.name}-{os.getpid()}-{os.urandom(4).hex()}"
        try:
            with naming_storage_faults(draft):
                _write_dataset(draft, settings)
                sync_tree(draft)
            draft.rename(final)
            sync_folder(root)
        except OSError:
            if not final.is_dir():  # else another process was faster
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return toy_sources(root, settings)


def toy_sources(root: Path, settings: ToyConfig) -> tuple[CocoSource, CocoSource]:
    """Train and val source as `ensure_toy` gives them; nothing is drawn, so they may not be there."""
    folder = _folder(root, settings)
    return _source(folder, "train"), _source(folder, "val")


def _folder(root: Path, settings: ToyConfig) -> Path:
    identity = f"{DRAWING_VERSION} {settings.model_dump_json()}"
    return root / f"toy-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"


def _source(folder: Path, split: str) -> CocoSource:
    annotations = folder / "annotations" / f"{split}.json"
    return CocoSource(images=folder / split, annotations=annotations)


def _write_dataset(folder: Path, settings: ToyConfig) -> None:
    (folder / "annotations").mkdir(parents=True)
    counts = {"train": settings.train_images, "val": settings.val_images}
    for number, (name, count) in enumerate(counts.items()):
        source = _source(folder, name)
        source.images.mkdir()
        split = CocoSplit(source.images, settings.shapes)
        for index in range(count):
            # A generator for each image: more images leave the first ones as they are.
            rng = np.random.default_rng([settings.seed, number, index])
            picture, objects = draw_scene(rng, settings)
            file_name = f"{index:06d}.png"
            Image.fromarray(picture).save(source.images / file_name, compress_level=1)
            split.add_image(file_name, (settings.size, settings.size))
            for label, mask in objects:
                split.add_object(label, mask=mask)
        info = {"description": f"boxseg toy shapes, {name}, seed {settings.seed}"}
        content = {"info": info, **split.content}
        source.annotations.write_text(json.dumps(content), encoding="utf-8")


def draw_scene(
    rng: Rng, settings: ToyConfig
) -> tuple[NDArray[np.uint8], list[tuple[int, BoolArray]]]:
    """One picture and what is in it.

    Args:
        rng: Source of all randomness.
        settings: Size, classes and looks; the number of images and the seed are not looked at.

    Returns:
        RGB uint8 (size, size, 3) and 1 … 5 pairs of class index and visible mask, bool (size, size).
    """
    size = settings.size
    picture, background_colors = _draw_background(rng, size)
    if settings.clutter:
        picture = _draw_clutter(rng, picture, settings)
    colors = list(background_colors)
    masks: list[BoolArray] = []
    full_areas: list[int] = []
    labels: list[int] = []
    for _ in range(int(rng.integers(1, MAX_OBJECTS + 1))):
        label = int(rng.integers(len(settings.shapes)))
        shape = settings.shapes[label]
        placed = _place_object(rng, size, shape, settings.max_turn, masks, full_areas)
        if placed is None:
            continue
        alpha, full_area = placed
        color = _contrasting_color(rng, colors, _hue_of(label, settings))
        picture = _paint(picture, _object_texture(rng, size, color), alpha)
        covered = alpha >= 0.5
        masks = [*(mask & ~covered for mask in masks), covered]
        full_areas.append(full_area)
        labels.append(label)
        colors.append(color)
    noise = rng.uniform(1.5, 3.5)  # as of a camera
    picture = picture + rng.normal(0, noise, picture.shape)
    pixels = picture.clip(0, 255).round().astype(np.uint8)
    return pixels, list(zip(labels, masks, strict=True))


def _place_object(
    rng: Rng,
    size: int,
    name: Shape,
    max_turn: float,
    masks: list[BoolArray],
    full_areas: list[int],
) -> tuple[FloatArray, int] | None:
    """Place a new object so that it and the others stay visible.

    Args:
        rng: Source of all randomness.
        size: Side of the picture [px].
        name: Shape of the object.
        max_turn: It is turned by an angle between 0 and this [degrees].
        masks: Visible masks of the objects so far, bool (size, size).
        full_areas: Their whole areas [px].

    Returns:
        Coverage (size, size) in [0, 1] and whole area [px]; None if no place was found.
    """
    for _ in range(PLACES_TRIED):
        radius = rng.uniform(0.085, 0.24) * size
        centre = rng.uniform(0.6 * radius, size - 0.6 * radius, 2)
        angle = np.deg2rad(rng.uniform(0, max_turn))
        form = rng.uniform()
        whole = coverage(SHAPES[name], radius, angle, form, centre % 1.0)
        alpha = _crop_to_canvas(whole, np.floor(centre).astype(int), size)
        full_area = int((whole >= 0.5).sum())
        covered = alpha >= 0.5
        if int(covered.sum()) < MIN_VISIBLE * full_area:
            continue
        left_over = [int((mask & ~covered).sum()) for mask in masks]
        pairs = zip(left_over, full_areas, strict=True)
        if all(area >= MIN_VISIBLE * full for area, full in pairs):
            return alpha, full_area
    return None


def _draw_clutter(rng: Rng, picture: FloatArray, settings: ToyConfig) -> FloatArray:
    """The picture with shapes that are no class, in any colour; they may hide one another."""
    others = [name for name in SHAPES if name not in settings.shapes]
    for _ in range(int(rng.integers(settings.clutter + 1))):
        name = others[int(rng.integers(len(others)))]
        placed = _place_object(rng, settings.size, name, max_turn=360.0, masks=[], full_areas=[])
        if placed is not None:
            alpha, _ = placed
            color = _vivid_color(rng, _any_hue)
            picture = _paint(picture, _object_texture(rng, settings.size, color), alpha)
    return picture


def _paint(picture: FloatArray, paint: FloatArray, alpha: FloatArray) -> FloatArray:
    """The picture under paint (size, size, 3) that covers the share `alpha` (size, size) of each pixel."""
    share = alpha[..., None]
    return picture * (1 - share) + paint * share


def _crop_to_canvas(window: FloatArray, centre: NDArray[np.int_], size: int) -> FloatArray:
    """Lay a square window with its middle on pixel `centre` (x, y) of an empty canvas; what sticks out is cut."""
    side = window.shape[0]
    half = side // 2
    # With a border as wide as what can stick out.
    canvas = np.zeros((size + 2 * half, size + 2 * half))
    x, y = centre
    canvas[y : y + side, x : x + side] = window
    return canvas[half : half + size, half : half + size]


def _draw_background(rng: Rng, size: int) -> tuple[FloatArray, tuple[FloatArray, FloatArray]]:
    """Float (size, size, 3) in 0 … 255 between two muted colours, and these colours."""
    hue = rng.uniform()
    saturation = rng.uniform(0.12, 0.45)
    value = rng.uniform(0.3, 0.9)
    first = _rgb(hue, saturation, value)
    other_hue = hue + rng.uniform(-0.12, 0.12)
    other_value = np.clip(value + rng.uniform(-0.16, 0.16), 0.2, 0.95)
    second = _rgb(other_hue, saturation, float(other_value))
    pattern = _pattern(rng, size)[..., None]
    clouds = _smooth_noise(rng, size, cells=16)[..., None]
    grain = 6.0 * (clouds - 0.5)
    return first * (1 - pattern) + second * pattern + grain, (first, second)


def _object_texture(rng: Rng, size: int, color: FloatArray) -> FloatArray:
    """Float (size, size, 3): one colour with gentle light, stripes or clouds."""
    pattern = _pattern(rng, size)
    light = (0.5 - pattern) * rng.uniform(0.05, 0.2)
    return color * (1 + light[..., None])


def _contrasting_color(rng: Rng, taken: list[FloatArray], draw_hue: DrawHue) -> FloatArray:
    """A vivid colour far from all taken ones, or the farthest of those tried."""
    tries = [_vivid_color(rng, draw_hue) for _ in range(COLORS_TRIED)]
    distances = [min(np.linalg.norm(color - other) for other in taken) for color in tries]
    for color, distance in zip(tries, distances, strict=True):
        if distance >= MIN_CONTRAST:
            return color
    return tries[int(np.argmax(distances))]


def _vivid_color(rng: Rng, draw_hue: DrawHue) -> FloatArray:
    hue = draw_hue(rng)
    saturation = rng.uniform(0.45, 0.9)
    return _rgb(hue, saturation, value=rng.uniform(0.5, 0.98))


def _any_hue(rng: Rng) -> float:
    return rng.uniform()


def _hue_of(label: int, settings: ToyConfig) -> DrawHue:
    """Draws hues of a class."""
    if not settings.class_colors:
        return _any_hue
    distance = 1 / len(settings.shapes)
    return lambda rng: distance * (label + CLASS_HUE_SPREAD * rng.normal())


def _rgb(hue: float, saturation: float, value: float) -> FloatArray:
    return 255.0 * np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def _pattern(rng: Rng, size: int) -> FloatArray:
    """Clouds, stripes or a ramp: float (size, size) in [0, 1]."""
    draw = (_smooth_noise, _stripes, _ramp)[int(rng.integers(3))]
    return draw(rng, size)


def _smooth_noise(rng: Rng, size: int, cells: int = 5) -> FloatArray:
    coarse = rng.uniform(0, 1, (cells, cells)).astype(np.float32)
    smooth = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float64).clip(0, 1)


def _stripes(rng: Rng, size: int) -> FloatArray:
    waves = rng.uniform(4, 9)
    phase = waves * _slope(rng, size) + rng.uniform()
    return 0.5 + 0.5 * np.sin(2 * np.pi * phase)


def _ramp(rng: Rng, size: int) -> FloatArray:
    return (0.5 + 0.7 * _slope(rng, size)).clip(0, 1)


def _slope(rng: Rng, size: int) -> FloatArray:
    """A plane through 0 in the middle that rises by 1 over the picture in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    axis = (np.arange(size) + 0.5) / size - 0.5
    across, down = axis[None, :], axis[:, None]
    return np.cos(angle) * across + np.sin(angle) * down
