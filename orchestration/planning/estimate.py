"""Estimates how long an update takes: the network's work is counted, and scaled from measured runs; needs no torch.

The counts are the multiply-adds of backbone and detection heads, which do nearly all of the work. What is left out
(weights, optimizer, loading) mostly cancels in the ratio to a run of the same method. Measured runs are better:
see `orchestration.planning.plan`.
"""

from __future__ import annotations

from statistics import fmean

from boxseg.config.method import BoxSegConfig, TrainConfig
from orchestration.config.spec import RunSpec

PUBLISHED = BoxSegConfig.model_validate(
    {"profile": "official", "train": {"image_size": tuple(range(480, 801, 32))}}
)
"""The settings of the released VOC run (R-50, fp32, 16 images on 4 V100)."""
PUBLISHED_IMAGE_S = 4 * 0.81 / 16
"""GPU seconds for each of its images: 4 GPUs for 0.81 s, 16 images."""
START_S = 21.0
"""Loading torch and Ray and building the network, before the first update [s], on two idle cores of 2026."""
PHOTO_ASPECT = 4 / 3
"""Long side over short side, if no annotation file says it."""
CORE_MACS_PER_S = 16e9
"""Multiply-adds per second on one core of 2026, and the time of an update besides [s]. They fit the runs of
docs/results.md, and small ones, to within a factor of two."""
CORE_REST_S = 0.2

BACKBONE_MACS = {
    "resnet18": 1.8e9,
    "resnet34": 3.7e9,
    "resnet50": 4.1e9,
    "resnet101": 7.8e9,
    "efficientnet_lite0": 0.4e9,
    "timm/convnext_tiny": 4.5e9,
}
"""Multiply-adds of a classifier at 224 px, from the model cards of timm."""
CARD_PIXELS = 224**2
ALL_STAGES = 5
"""Value of `model.frozen_stages` with which no part of a backbone learns."""
CELLS = sum(1 / stride**2 for stride in (8, 16, 32, 64, 128))
"""Cells of all pyramid levels per pixel."""


def estimate_step(spec: RunSpec, *, aspect: float | None) -> tuple[float, str] | None:
    """Seconds per update, and what they are based on; None for a backbone that is not in `BACKBONE_MACS`.

    Args:
        spec: All settings.
        aspect: Mean of long side over short side of the training images; None: `PHOTO_ASPECT`.
    """
    if spec.model.backbone not in BACKBONE_MACS:
        return None
    resources = spec.resources
    image_macs = _count_macs(spec, aspect or PHOTO_ASPECT)
    images = spec.train.batch_size / resources.workers
    if resources.gpus_per_worker:
        work = image_macs / _count_macs(PUBLISHED, PHOTO_ASPECT)
        basis = (
            "counted from the released VOC run (R-50, fp32, 16 images on 4 V100: 0.81 s): "
            f"x{work:.2f} in multiply-adds per image; may be off by 50%, and newer GPUs are several "
            "times faster: a short run measures it"
        )
        return PUBLISHED_IMAGE_S * work * images, basis
    threads = max(1, int(resources.cpus_per_worker))
    macs = image_macs * images
    # each further thread gives less: the power 0.8 fits the measured runs
    step_s = CORE_REST_S + macs / (CORE_MACS_PER_S * threads**0.8)
    basis = (
        f"by size ({macs:.2g} multiply-adds an update, {threads} core{'s' if threads > 1 else ''} "
        "a worker), without evaluations; may be off by a factor of two: a short run measures it"
    )
    return step_s, basis


def _count_macs(config: BoxSegConfig, aspect: float) -> float:
    """Multiply-adds of one image: forwards, twice that backwards where something learns, and the teacher's."""
    width, train, teacher = config.model.channels, config.train, config.teacher
    # one tower for classes, one for boxes; one convolution before them, one behind
    convolutions = 2 * config.model.tower_convs + 2
    backbone = BACKBONE_MACS[config.model.backbone] / CARD_PIXELS
    heads = convolutions * 9 * width**2 * CELLS
    pixels = _train_pixels(train, aspect)
    macs = pixels * 3 * heads
    macs += pixels * backbone * (1 if config.model.frozen_stages == ALL_STAGES else 3)
    if teacher.on:
        resized = teacher.resize_short
        seen = pixels if resized is None else _pixels(resized, teacher.resize_long, aspect)
        macs += seen * (backbone + heads)
    return macs


def _train_pixels(train: TrainConfig, aspect: float) -> float:
    """Mean area of the student's views [px]: of windows, where the run has them, or else of whole images."""
    if train.window is None:
        return fmean(_pixels(side, train.max_size, aspect) for side in train.short_sides)
    larger = (1 - train.closer_from) * (train.closer**2 - 1)  # windows grow towards the end
    return train.window**2 * (1 + larger)


def _pixels(short: int, longest: int, aspect: float) -> float:
    """Area of a view [px]."""
    # smaller than asked for if the long side reaches its limit
    short_side = min(short, longest / aspect)
    return short_side**2 * aspect
