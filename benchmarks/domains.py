"""`boxseg label` on generated pictures of kinds that nothing was tuned for, with exact masks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from benchmarks.harness import Table
from benchmarks.outcome import outcome
from boxseg.coco.writer import CocoSplit
from boxseg.ops.pixels import BoolArray, FloatArray

SIDE = 256
"""Of the square pictures [px]."""
IMAGES = {"train": 24, "val": 12}
LEAST_AREA = 40
"""Objects that others leave fewer pixels of are not asked for."""

Rng = np.random.Generator


class Scene:
    """A picture, and the visible part of each of its objects."""

    def __init__(self, picture: FloatArray) -> None:
        self.picture = picture
        """(h, w, 3), 0 to 255."""
        self.objects: list[tuple[int, BoolArray]] = []
        """Label and mask (h, w)."""

    def is_free(self, mask: BoolArray) -> bool:
        """Whether a mask touches no object."""
        wide = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), dtype=np.uint8)) > 0
        return not any((wide & other).any() for _, other in self.objects)

    def add(self, label: int, mask: BoolArray, surface: FloatArray, *, blur: float = 0.6) -> None:
        """An object in front of the others; `surface` broadcasts to the picture."""
        share = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), blur)[..., None]
        self.picture = self.picture * (1 - share) + surface * share
        self.objects = [(other, there & ~mask) for other, there in self.objects]
        self.objects.append((label, mask))


def domains(options: argparse.Namespace) -> list[Table]:
    """What `outcome` measures, for each kind of pictures; they are drawn once."""
    data = options.folder / "drawn"
    for number, (name, draw) in enumerate(KINDS.items()):
        if not (data / name / "annotations/val.json").exists():
            write_kind(data / name, draw, seed=number)
    drawn = argparse.Namespace(**vars(options) | {"data": data, "sets": list(KINDS)})
    return outcome(drawn)


def write_kind(folder: Path, draw: Callable[[Rng], Scene], *, seed: int) -> None:
    """Images with `annotations/train_boxes.json` and, with masks, `annotations/val.json`."""
    rng = np.random.default_rng(seed)
    for path in (folder / "images", folder / "annotations"):
        path.mkdir(parents=True, exist_ok=True)
    for split, images in IMAGES.items():
        content = CocoSplit(folder / "images", [str(label) for label in range(10)])
        for number in range(images):
            scene = draw(rng)
            name = f"{split}{number:02d}.png"
            pixels = scene.picture.round().clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name)
            content.add_image(name, (SIDE, SIDE))
            for label, mask in scene.objects:
                if mask.sum() >= LEAST_AREA:
                    content.add_object(label, mask=mask)
        if split == "train":
            for annotation in content.content["annotations"]:
                del annotation["segmentation"]
        name = "train_boxes" if split == "train" else split
        (folder / "annotations" / f"{name}.json").write_text(json.dumps(content.content))


def _ground(rng: Rng, color: FloatArray, *, clouds: float, grain: float) -> FloatArray:
    """A picture (h, w, 3) of one colour with clouds of all sizes and grains, both standard deviations."""
    cloud = np.zeros((SIDE, SIDE), dtype=np.float32)
    for octave in range(2, 7):
        noise = rng.normal(size=(2**octave, 2**octave)).astype(np.float32)
        cloud += cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) / 2**octave
    grains = rng.normal(scale=grain, size=(SIDE, SIDE, 3))
    return color + clouds * (cloud / cloud.std())[..., None] + grains


def _polygon(points: FloatArray) -> BoolArray:
    """The pixels of a polygon (N, 2), x and y."""
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    cv2.fillPoly(mask, [(points * 16).round().astype(np.int32)], (1,), shift=4)
    return mask > 0


def _turned(points: FloatArray, angle: float, middle: FloatArray) -> FloatArray:
    sine, cosine = np.sin(angle), np.cos(angle)
    return points @ np.array([[cosine, sine], [-sine, cosine]]) + middle


def _blob(rng: Rng) -> BoolArray:
    """The pixels of a round shape with bays."""
    angles, radius = np.linspace(0, 2 * np.pi, 80, endpoint=False), rng.uniform(16, 44)
    waves = np.zeros_like(angles)
    for k in range(2, 6):
        waves += rng.normal(scale=0.15 / k) * np.cos(k * angles + k)
    outline = np.stack([np.cos(angles), np.sin(angles)], axis=1) * (radius * (1 + waves))[:, None]
    return _polygon(outline + rng.uniform(radius, SIDE - radius, 2))


def _grains(rng: Rng, scale: float) -> FloatArray:
    return rng.normal(scale=scale, size=(SIDE, SIDE, 1))


def _digits(rng: Rng) -> Scene:
    """Digits of 20 to 34 px and any weight, in colours of their own."""
    scene = Scene(_ground(rng, rng.uniform(60, 190, 3), clouds=30, grain=4))
    for _ in range(40):
        digit, height = int(rng.integers(10)), rng.uniform(20, 34)
        x, y = (int(value) for value in rng.uniform(8, SIDE - 36, 2))
        drawn, weight = np.zeros((SIDE, SIDE), dtype=np.uint8), int(rng.integers(2, 6))
        font = cv2.FONT_HERSHEY_DUPLEX
        cv2.putText(drawn, str(digit), (x, y + 30), font, height / 24, (1,), weight)
        mask, color = drawn > 0, rng.uniform(0, 255, 3)
        is_seen = np.linalg.norm(scene.picture[mask].mean(axis=0) - color) > 80
        if is_seen and scene.is_free(mask):
            scene.add(digit, mask, color + rng.normal(scale=5, size=(SIDE, SIDE, 1)))
    return scene


def _roofs(rng: Rng) -> Scene:
    """Rectangles and L shapes with a ridge, from above, with shadows."""
    scene = Scene(_ground(rng, rng.uniform(80, 130, 3), clouds=14, grain=6))
    sun = rng.uniform(-7, 7, 2)
    for _ in range(14):
        a, b = rng.uniform(12, 30, 2)
        corners = [[-a, -b], [a, -b], [a, b], [-a, b]]
        if rng.random() < 0.4:
            corners = [[-a, -b], [a, -b], [a, 0], [0, 0], [0, b], [-a, b]]
        angle, middle = rng.uniform(0, np.pi), rng.uniform(30, SIDE - 30, 2)
        roof = _turned(np.array(corners), angle, middle)
        mask = _polygon(roof)
        if scene.is_free(mask):
            scene.picture[_polygon(roof + sun) & ~mask] *= 0.55
            rows, columns = np.mgrid[:SIDE, :SIDE]
            side = np.cos(angle) * (rows - middle[1]) - np.sin(angle) * (columns - middle[0])
            light = np.where(side > 0, 1.15, 0.85)[..., None]
            scene.add(0, mask, rng.uniform(70, 190, 3) * light)
    return scene


def _worms(rng: Rng) -> Scene:
    """Grey curves of 4 to 8 px that cross one another."""
    scene = Scene(_ground(rng, np.full(3, 165.0), clouds=8, grain=4))
    for _ in range(8):
        turns = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(scale=0.05) + np.zeros(40))
        steps = np.stack([np.cos(turns), np.sin(turns)], axis=1) * rng.uniform(1.5, 3)
        path = np.cumsum(steps, axis=0) + rng.uniform(40, SIDE - 40, 2)
        drawn = np.zeros((SIDE, SIDE), dtype=np.uint8)
        points = path.round().astype(np.int32)
        cv2.polylines(drawn, [points], False, (1,), int(rng.integers(4, 9)))
        scene.add(0, drawn > 0, np.full((SIDE, SIDE, 3), rng.uniform(90, 130)))
    return scene


def _leaves(rng: Rng) -> Scene:
    """Rosettes of serrated leaves of one green, one before another."""
    scene = Scene(_ground(rng, np.array([95.0, 75, 60]), clouds=15, grain=8))
    middle, first, green = rng.uniform(100, SIDE - 100, 2), rng.uniform(0, 6), rng.uniform(90, 150)
    for number in range(int(rng.integers(5, 9))):
        along, length = np.linspace(0, 1, 60), rng.uniform(40, 80)
        teeth = 1 + 0.12 * np.sign(np.sin(60 * along))
        width = 0.3 * length * np.sin(np.pi * along**0.8) * teeth
        upper = np.stack([along * length, width], axis=1)
        outline = np.concatenate([upper, (upper * [1, -1])[::-1]])
        mask = _polygon(_turned(outline, first + 2.4 * number, middle))  # the golden angle
        scene.picture[np.roll(mask, (3, 3), (0, 1))] *= 0.75
        color = np.array([0.6 * green, green, 0.4 * green]) + rng.normal(scale=8, size=3)
        scene.add(0, mask, color + rng.normal(scale=5, size=(SIDE, SIDE, 1)))
    return scene


def _signs(rng: Rng) -> Scene:
    """Shields of 3, 4, 8 or 40 corners with a red or blue rim, a white field and a black bar."""
    scene = Scene(_ground(rng, rng.uniform(60, 180, 3), clouds=35, grain=8))
    for _ in range(5):
        label, radius = int(rng.integers(4)), rng.uniform(16, 45)
        middle, corners = rng.uniform(radius, SIDE - radius, 2), (3, 4, 8, 40)[label]
        angles = 2 * np.pi * (np.arange(corners) + 0.5) / corners + np.pi / 2
        shape = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius
        mask = _polygon(shape + middle)
        if scene.is_free(mask):
            rim = np.array([190.0, 30, 35] if rng.random() < 0.5 else [30.0, 70, 170])
            surface = np.where(_polygon(0.7 * shape + middle)[..., None], 230.0, rim)
            bar = np.array([[-0.3, -0.1], [0.3, -0.1], [0.3, 0.1], [-0.3, 0.1]]) * radius
            surface[_polygon(bar + middle)] = 25
            scene.add(label, mask, surface * rng.uniform(0.6, 1))
    return scene


def _speckle(rng: Rng) -> Scene:
    """Dim blobs without a sharp outline, in grey speckle."""
    scene = Scene(_ground(rng, np.full(3, 70.0), clouds=8, grain=0))
    for _ in range(4):
        mask = _blob(rng)
        if scene.is_free(mask):
            scene.add(0, mask, scene.picture * rng.uniform(0.4, 0.65), blur=2)
    grains = cv2.GaussianBlur(rng.rayleigh(size=(SIDE, SIDE)).astype(np.float32), (0, 0), 1.2)
    scene.picture = scene.picture * (grains / grains.mean())[..., None]
    return scene


def _plates(rng: Rng) -> Scene:
    """Light plates with dark letters."""
    scene = Scene(_ground(rng, rng.uniform(20, 230, 3), clouds=25, grain=5))
    for _ in range(6):
        half = rng.uniform(8, 16) * np.array([rng.uniform(3, 4.5), 1])  # of width and height
        middle = rng.uniform(half + 2, SIDE - half - 2)
        corners = half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        mask = _polygon(_turned(corners, rng.normal(scale=0.12), middle))
        if scene.is_free(mask):
            text = "".join(rng.choice(list("ABCDEFGH0123456789"), 7))
            x, y = (int(value) for value in middle + half * [-0.9, 0.5])
            letters = np.zeros((SIDE, SIDE), dtype=np.uint8)
            cv2.putText(letters, text, (x, y), cv2.FONT_HERSHEY_DUPLEX, half[0] / 70, (1,), 2)
            surface = np.where(letters[..., None], rng.uniform(0, 60), rng.uniform(190, 245))
            scene.add(0, mask, surface + _grains(rng, 5))
    return scene


def _stripes(rng: Rng) -> Scene:
    """Blobs with stripes on stripes of the same two colours, which run another way."""
    color, way = rng.uniform(0, 255, 3), rng.uniform(0, np.pi)
    rows, columns = np.mgrid[:SIDE, :SIDE]

    def striped(angle: float) -> FloatArray:
        waves = np.sin(0.7 * (columns * np.cos(angle) + rows * np.sin(angle)))
        return np.where(waves[..., None] > 0, color, 255 - color) + _grains(rng, 8)

    scene = Scene(striped(way))
    for _ in range(8):
        mask = _blob(rng)
        if scene.is_free(mask):
            scene.add(0, mask, striped(way + np.pi / 2 + rng.normal(scale=0.3)))
    return scene


def _camouflage(rng: Rng) -> Scene:
    """Blobs with spots in the five colours of the ground; only how much there is of each differs."""
    colors = rng.uniform(0, 255, (5, 3))

    def spotted(shares: list[float]) -> FloatArray:
        spots = colors[rng.choice(5, p=shares, size=(SIDE // 6, SIDE // 6))]
        large = cv2.resize(spots, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
        return cv2.GaussianBlur(large, (0, 0), 1.5) + _grains(rng, 6)

    scene = Scene(spotted([0.3, 0.3, 0.2, 0.15, 0.05]))
    for _ in range(7):
        mask = _blob(rng)
        if scene.is_free(mask):
            scene.add(0, mask, spotted([0.05, 0.15, 0.2, 0.3, 0.3]))
    return scene


KINDS: dict[str, Callable[[Rng], Scene]] = {
    "digits": _digits,
    "roofs": _roofs,
    "worms": _worms,
    "leaves": _leaves,
    "signs": _signs,
    "speckle": _speckle,
    "plates": _plates,
    "stripes": _stripes,
    "camouflage": _camouflage,
}
