"""Networks, pictures and batches that the benchmarks measure on.

Weights are random, so the limits of the ranking are opened until every box has its 20 candidates, and every image gets
a paste: the step does all that a step of a trained network can do. The backbone is frozen as with ImageNet weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import FCOS, MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from boxseg.build import build_trainer
from boxseg.config.method import BoxSegConfig
from boxseg.config.presets import merge
from boxseg.engine.state import Trainer
from boxseg.engine.train import optimise
from boxseg.files.writing import write_atomic
from boxseg.ops.masks import box_masks
from boxseg.structures import Batch

CLASSES = 80
STEPS = 1000
STEP = 900
"""The step that is measured again and again: all warm-ups are over."""

SETTINGS: dict[str, Any] = {
    "model": {"backbone": "resnet50", "weights": "none", "frozen_stages": 2, "norm": "frozen"},
    "solver": {"lr": 1e-7},
    "train": {"steps": STEPS, "max_size": 4096},
    "teacher": {"cand_score_thr": 1e-12},
    "qam": {"iou_thr": 0.0, "score_thr": 0.0, "class_match": False},
    "pc": {
        "p_start": 1.0,
        "p_end": 1.0,
        "bank_q_thr": 0.0,
        "bank_s_thr": 0.0,
        "bank_iou_thr": 1.0,
        "min_area": 0,
        "require_better": False,
    },
}
SMALL: dict[str, Any] = {
    "model": {"backbone": "resnet18", "channels": 64, "tower_convs": 2},
    "cond": {"branch_channels": 64, "branch_convs": 2},
}
"""For `--quick`: the machinery, not the numbers."""


@dataclass(frozen=True)
class Scenario:
    """What is in a batch."""

    size: int = 256
    """Side of the square images [px]."""
    boxes: int = 20
    """Boxes of each image."""
    batch_size: int = 2
    small: bool = False
    """A small network instead of ResNet-50."""

    def settings(self, method: str, **over: Any) -> BoxSegConfig:
        """Settings of a method; `over` wins."""
        return BoxSegConfig.model_validate(self.values(method, **over))

    def values(self, method: str, **over: Any) -> dict[str, Any]:
        """What `settings` is made from, as an experiment file would have it."""
        values = merge(SETTINGS, SMALL) if self.small else SETTINGS
        train = {"image_size": self.size, "batch_size": self.batch_size}
        return merge(merge(values, {"method": method, "train": train}), over)


def build(
    scenario: Scenario, method: str, folder: Path, device: str = "cpu", **over: Any
) -> tuple[Trainer, Batch]:
    """A trainer and the batch that its steps are measured with; pictures are written below `folder`."""
    name = f"{scenario.size}-{scenario.boxes}-{scenario.batch_size}"
    source = write_pictures(
        folder / name, scenario.batch_size, (scenario.size, scenario.size), scenario.boxes
    )
    over = merge({"data": {"train": source, "val": source}}, over)
    trainer = build_trainer(scenario.settings(method, **over), data_root=folder, device=device)
    batch = next(trainer.loader.batches(0, 1))
    prepare(trainer, batch)
    return trainer, batch


def prepare(trainer: Trainer, batch: Batch) -> None:
    """Bring random weights to where a step behaves: maps of unit size, boxes that overlap something."""
    student: Any = trainer.student
    norms = [module for module in student.backbone.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        student.pyramid_maps(batch.weak, batch.valid)
        student.head.distances.bias.fill_(4.0)
    student.train()
    if trainer.teacher is not None:
        trainer.teacher.load_state_dict(student.state_dict())


def step_of(trainer: Trainer, batch: Batch) -> Callable[[], object]:
    """One optimizer update, everything included but reading the images."""
    return lambda: optimise(trainer, batch, STEP)


def torchvision_step(
    kind: type[FCOS] | type[MaskRCNN], trainer: Trainer, batch: Batch
) -> tuple[nn.Module, Callable[[], object]]:
    """A detector of torchvision with the trainer's backbone, and its update on the same images, boxes and masks."""
    network = build_detector(kind, trainer, size=batch.valid.shape[-1])
    return network, detector_step(network, batch)


def build_detector(kind: type[FCOS] | type[MaskRCNN], trainer: Trainer, *, size: int) -> nn.Module:
    """A detector of torchvision with the trainer's backbone, on its device, for images of `size` px."""
    only_levels: dict[str, Any] = {}
    if kind is FCOS:
        only_levels = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
    name = trainer.config.model.backbone
    backbone = resnet_fpn_backbone(
        backbone_name=name, weights=None, trainable_layers=3, **only_levels
    )
    student: Any = trainer.student
    backbone.body.load_state_dict(student.backbone.extractor.state_dict(), strict=False)
    network = kind(backbone, CLASSES + 1, min_size=size, max_size=size)
    return network.to(trainer.device).train()


def detector_step(
    network: nn.Module,
    batch: Batch,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Callable[[], object]:
    """An update of a detector of torchvision; `autocast` is around its forward pass."""
    size = batch.valid.shape[-1]
    optimizer = torch.optim.SGD(
        [each for each in network.parameters() if each.requires_grad], lr=1e-7, momentum=0.9
    )
    images = list(batch.strong.float() / 255)
    targets = [
        {
            "boxes": boxes,
            "labels": labels + 1,
            "masks": box_masks(boxes, size, size).to(torch.uint8),
        }
        for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
    ]

    def step() -> None:
        with autocast():
            loss = sum(network(images, targets).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def write_pictures(folder: Path, count: int, size: tuple[int, int], boxes: int) -> dict[str, Path]:
    """A COCO data set of grainy noise, JPEG, with ellipses for objects: (height, width), so many boxes each."""
    source = {"images": folder / "images", "annotations": folder / "boxes.json"}
    if source["annotations"].exists():
        return source
    source["images"].mkdir(parents=True)
    rng, (height, width) = np.random.default_rng(0), size
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, count + 1):
        coarse = Image.fromarray(
            rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        )
        name = f"{image_id:06d}.jpg"
        smooth = np.asarray(
            coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32
        )
        # a photo's: decoding is not that of a blur
        grain = rng.normal(0, 8, (height, width, 1)).astype(np.float32)
        pixels = (smooth + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(source["images"] / name, quality=90)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for _ in range(boxes):
            number = len(annotations) + 1
            annotations.append(
                {"id": number, "image_id": image_id, "iscrowd": 0, **draw_ellipse(rng, size)}
            )
    categories = [{"id": number + 1, "name": f"class {number}"} for number in range(CLASSES)]
    write_atomic(
        source["annotations"],
        json.dumps({"images": images, "annotations": annotations, "categories": categories}),
    )
    return source


def draw_ellipse(rng: np.random.Generator, size: tuple[int, int]) -> dict[str, Any]:
    """Category, box, polygon and area of one object of a tenth to a half of the image."""
    height, width = size
    sides = rng.uniform(0.1, 0.5, 2) * (width, height)
    corner = rng.uniform(0, 1, 2) * ((width, height) - sides)
    angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    outline = corner + sides / 2 * (1 + np.stack([np.cos(angle), np.sin(angle)], axis=1))
    return {
        "category_id": int(rng.integers(CLASSES)) + 1,
        "bbox": [*corner.tolist(), *sides.tolist()],
        "segmentation": [outline.ravel().tolist()],
        "area": float(sides.prod() * np.pi / 4),
    }
