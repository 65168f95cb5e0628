"""What a run on GPUs should take: counts of the network's work, scaled from a published run; loads no torch.

The counts are multiply-adds and stored values per pixel, from the shapes of pyramid, heads and losses and from the
published figures of the backbones. They leave out much (frozen layers keep less, the optimizer takes time), but most of
it cancels in the ratio to the published run of the same method. Measured runs are better: see `orchestration.plan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from boxseg.config import BoxSegConfig
from orchestration.config import RunSpec

REFERENCE = BoxSegConfig.model_validate(
    {"profile": "official", "train": {"image_size": tuple(range(480, 801, 32)), "precision": "fp32"}}
)
REFERENCE_NAME = "the released VOC run (R-50, fp32, 16 images on 4 V100: 0.81 s and 10.95 GB each)"
REFERENCE_GPU_S = 4 * 0.81 / 16
"""GPU seconds for each image."""
REFERENCE_BYTES = 10.95e9
REFERENCE_IMAGES = 4
"""Images of a GPU in one update."""
PHOTO_ASPECT = 4 / 3
"""Long side over short side where no annotation file tells."""
MEMORY_ERROR, TIME_ERROR = 0.4, 0.5
"""How far the estimates may be off, as a share: judgement, not measurement."""


@dataclass(frozen=True)
class BackboneCost:
    """Published figures of a classifier at 224 px."""

    parameters: float
    """Millions, without the layers behind its last map."""
    macs: float
    """Thousand millions of multiply-adds."""
    activations: float
    """Millions of values that its convolutions give."""
    channels: tuple[int, int, int]
    """Of the maps of strides 8, 16 and 32."""


BACKBONE_COSTS = {
    "resnet18": BackboneCost(11.2, 1.8, 2.5, (128, 256, 512)),
    "resnet34": BackboneCost(21.3, 3.7, 3.7, (128, 256, 512)),
    "resnet50": BackboneCost(23.5, 4.1, 11.1, (512, 1024, 2048)),
    "resnet101": BackboneCost(42.5, 7.8, 16.2, (512, 1024, 2048)),
    "efficientnet_lite0": BackboneCost(3.0, 0.4, 6.7, (40, 112, 320)),
    "timm/convnext_tiny": BackboneCost(27.8, 4.5, 13.4, (192, 384, 768)),
}
"""From the model cards of timm."""
ON_RECORD = [f"condinst {name}" for name in BACKBONE_COSTS]
"""Networks whose work is counted here."""
CARD_PIXELS = 224**2
CELLS = sum(1 / stride**2 for stride in (8, 16, 32, 64, 128))
"""Cells of all pyramid levels per pixel."""
FINE = 1 / 8**2
"""Cells of the mask branch per pixel."""


@dataclass(frozen=True)
class Estimate:
    """What a run on GPUs should take."""

    parameters: float
    """Weights of one network."""
    gpu_bytes: float
    """Peak memory of each worker's GPU."""
    step_s: float
    """Seconds per update on GPUs like the published run's."""
    basis: str
    """Where the numbers come from and how far they may be off."""


def estimate(spec: RunSpec, *, aspect: float | None, num_classes: int | None) -> Estimate | None:
    """Memory and time of a run on GPUs; None without GPUs, or for a network that is not ON_RECORD.

    Args:
        spec: The run.
        aspect: Mean of long side over short side of the training images; None: `PHOTO_ASPECT`.
        num_classes: None: 80.
    """
    if not spec.resources.gpus_per_worker or f"{spec.model.kind} {spec.model.backbone}" not in ON_RECORD:
        return None
    classes, aspect = num_classes or 80, aspect or PHOTO_ASPECT
    per_worker = spec.train.batch_size / spec.resources.workers
    work = _macs_per_image(spec, classes, aspect) / _macs_per_image(REFERENCE, 80, PHOTO_ASPECT)
    memory = _step_bytes(spec, classes, aspect, per_worker, bf16=spec.train.precision != "fp32")
    memory /= _step_bytes(REFERENCE, 80, PHOTO_ASPECT, REFERENCE_IMAGES, bf16=False)
    return Estimate(
        parameters=_parameters(spec, classes),
        gpu_bytes=REFERENCE_BYTES * memory,
        step_s=REFERENCE_GPU_S * work * per_worker,
        basis=(
            f"counted from {REFERENCE_NAME}: x{work:.2f} in multiply-adds per image and x{memory:.2f} in bytes per GPU "
            f"({per_worker:g} images each); memory may be off by {MEMORY_ERROR:.0%}, time by {TIME_ERROR:.0%}, and "
            "newer GPUs are several times faster: a short run measures it"
        ),
    )


def _macs_per_image(config: BoxSegConfig, classes: int, aspect: float) -> float:
    """Multiply-adds of one image: student forwards and twice that backwards, teacher forwards."""
    train, teacher = config.train, config.teacher
    pixels = fmean(_pixels(side, train.max_size, aspect) for side in train.short_sides)
    work = 3 * pixels
    if teacher.on:
        short = teacher.resize_short
        work += pixels if short is None else _pixels(short, teacher.resize_long, aspect)
    return work * _macs_per_pixel(config, classes)


def _step_bytes(config: BoxSegConfig, classes: int, aspect: float, images: float, *, bf16: bool) -> float:
    """Weights with gradients and optimizer state, and what the largest images keep for the backward pass."""
    copies = 2 + (2 if config.solver.optimizer == "adamw" else 1) + config.teacher.on
    pixels = _pixels(max(config.train.short_sides), config.train.max_size, aspect)
    network, losses = _values_per_pixel(config)
    return 4 * copies * _parameters(config, classes) + images * pixels * ((2 if bf16 else 4) * network + 4 * losses)


def _macs_per_pixel(config: BoxSegConfig, classes: int) -> float:
    cost, width, branch = BACKBONE_COSTS[config.model.backbone], config.model.channels, config.cond.branch_channels
    lateral = sum(each * width / 4**level for level, each in enumerate(cost.channels)) * FINE
    tower = 2 * config.model.tower_convs * 9 * width**2
    outputs = 9 * width * (classes + 5 + _controller(config))
    mask_branch = 9 * (width * branch * 1.33 + config.cond.branch_convs * branch**2) * FINE
    masks = config.cond.max_per_image * _controller(config) * FINE
    backbone, heads = cost.macs * 1e9 / CARD_PIXELS, (9 * width**2 + tower + outputs) * CELLS
    return backbone + lateral + heads + mask_branch + masks


def _values_per_pixel(config: BoxSegConfig) -> tuple[float, float]:
    """Values kept per pixel by the network (two or three for each convolution: norm and activation) and the losses."""
    cost, width, branch = BACKBONE_COSTS[config.model.backbone], config.model.channels, config.cond.branch_channels
    network = 2 * cost.activations * 1e6 / CARD_PIXELS
    network += (2 + 3 * 2 * config.model.tower_convs) * width * CELLS
    network += 3 * (3 + config.cond.branch_convs) * branch * FINE
    pairs = 4 * 8  # maps of eight neighbours in the pairwise term and its weights
    return network, config.cond.max_per_image * (pairs + 4) / 4**2


def _parameters(config: BoxSegConfig, classes: int) -> float:
    cost, width, branch = BACKBONE_COSTS[config.model.backbone], config.model.channels, config.cond.branch_channels
    pyramid = sum(cost.channels) * width + 5 * 9 * width**2
    head = 2 * config.model.tower_convs * 9 * width**2 + 9 * width * (classes + 5 + _controller(config))
    mask_branch = 9 * (3 * width * branch + config.cond.branch_convs * branch**2)
    return cost.parameters * 1e6 + pyramid + head + mask_branch


def _controller(config: BoxSegConfig) -> int:
    """Parameters of one dynamic mask head."""
    width = config.cond.channels
    inner = (config.cond.layers - 2) * (width**2 + width)
    return (config.cond.features + 2) * width + width + inner + width + 1


def _pixels(short: int, longest: int, aspect: float) -> float:
    """Area of a view [px]."""
    short_side = min(short, longest / aspect)
    return short_side**2 * aspect
