"""`boxseg label` on generated pictures of kinds that nothing was tuned for, with exact masks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.harness import Table
from benchmarks.kinds import KINDS, SIDE, Rng, Scene
from benchmarks.outcome import outcome
from boxseg.coco.writer import CocoSplit

IMAGES = {"train": 24, "val": 12}
LEAST_AREA = 40
"""Objects that others leave fewer pixels of are not asked for."""


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
