"""What a run should take: counts of the network's work, scaled from runs that were measured; loads no torch.

The counts are multiply-adds and stored values per pixel, of backbone and detection heads, where nearly all of them are.
What they leave out (frozen layers keep less, weights and optimizer take memory and time) mostly cancels in the ratio to
a run of the same method: the published one, or one on the same kind of GPU. Measured runs are better: see
`orchestration.planning.plan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from boxseg.config.method import BoxSegConfig
from orchestration.config.spec import RunSpec


@dataclass(frozen=True)
class MeasuredRun:
    """A run on GPUs that others are scaled from; images have the aspect of photographs."""

    name: str
    """What it was, with its figures."""
    config: BoxSegConfig
    gpu_s: float
    """GPU seconds for each image."""
    gpu_bytes: float
    """Peak memory of each GPU."""
    gpu_images: int
    """Images of a GPU in one update."""
    caveat: str = ""
    """What else is to be said of times that are scaled from it."""


PUBLISHED = MeasuredRun(
    name="the released VOC run (R-50, fp32, 16 images on 4 V100: 0.81 s and 10.95 GB each)",
    config=BoxSegConfig.model_validate(
        {
            "profile": "official",
            "train": {"image_size": tuple(range(480, 801, 32)), "precision": "fp32"},
        }
    ),
    gpu_s=4 * 0.81 / 16,  # 4 GPUs for 0.81 s, 16 images
    gpu_bytes=10.95e9,
    gpu_images=4,
    caveat=", and newer GPUs are several times faster",
)
MEASURED: dict[tuple[str, str], MeasuredRun] = {}
"""Runs by the GPU's name and `train.precision`, as measured with `python -m benchmarks --only gpu` (`docs/gpu.md`).
None was measured yet."""
PHOTO_ASPECT = 4 / 3
"""Long side over short side where no annotation file tells."""
MEMORY_ERROR, TIME_ERROR = 0.4, 0.5
"""How far the estimates may be off, as a share: judgement, not measurement."""


@dataclass(frozen=True)
class BackboneCost:
    """Published figures of a classifier at 224 px."""

    macs: float
    """Thousand millions of multiply-adds."""
    activations: float
    """Millions of values that its convolutions give."""


BACKBONE_COSTS = {
    "resnet18": BackboneCost(1.8, 2.5),
    "resnet34": BackboneCost(3.7, 3.7),
    "resnet50": BackboneCost(4.1, 11.1),
    "resnet101": BackboneCost(7.8, 16.2),
    "efficientnet_lite0": BackboneCost(0.4, 6.7),
    "timm/convnext_tiny": BackboneCost(4.5, 13.4),
}
"""From the model cards of timm."""
CARD_PIXELS = 224**2
CELLS = sum(1 / stride**2 for stride in (8, 16, 32, 64, 128))
"""Cells of all pyramid levels per pixel."""
CORE_MACS_PER_S = 16e9
"""Multiply-adds of an update on one core of 2026, and the rest of it [s]: fits the runs of docs/results.md, and small
ones, to within a factor of two."""
CORE_REST_S = 0.2


@dataclass(frozen=True)
class Estimate:
    """What a run on GPUs should take."""

    gpu_bytes: float
    """Peak memory of each worker's GPU."""
    step_s: float
    """Seconds per update on GPUs like those of the run that it is scaled from."""
    basis: str
    """Where the numbers come from and how far they may be off."""


def estimate(spec: RunSpec, *, aspect: float | None, card: str | None = None) -> Estimate | None:
    """Memory and time of a run on GPUs; None without GPUs, or for a backbone that is not in BACKBONE_COSTS.

    Args:
        aspect: Mean of long side over short side of the training images; None: `PHOTO_ASPECT`.
        card: Name of the GPUs, as their driver tells it; one that was measured is scaled from itself.
    """
    if not spec.resources.gpus_per_worker or spec.model.backbone not in BACKBONE_COSTS:
        return None
    per_worker = spec.train.batch_size / spec.resources.workers
    macs, kept_bytes = _count(spec, aspect or PHOTO_ASPECT)
    base = MEASURED.get((card or "", spec.train.precision), PUBLISHED)
    base_macs, base_bytes = _count(base.config, PHOTO_ASPECT)
    work = macs / base_macs
    memory = kept_bytes * per_worker / (base_bytes * base.gpu_images)
    return Estimate(
        gpu_bytes=base.gpu_bytes * memory,
        step_s=base.gpu_s * work * per_worker,
        basis=(
            f"counted from {base.name}: x{work:.2f} in multiply-adds per image and "
            f"x{memory:.2f} in bytes per GPU ({per_worker:g} images each); memory may be off by "
            f"{MEMORY_ERROR:.0%}, time by {TIME_ERROR:.0%}{base.caveat}: a short run measures it"
        ),
    )


def estimate_on_cpu(spec: RunSpec, *, aspect: float | None) -> tuple[float, str] | None:
    """Seconds per update of a run on CPU cores, and where they come from.

    None with GPUs, or for a backbone that is not in BACKBONE_COSTS.

    Args:
        aspect: As for `estimate`.
    """
    resources = spec.resources
    if resources.gpus_per_worker or spec.model.backbone not in BACKBONE_COSTS:
        return None
    threads = max(1, int(resources.cpus_per_worker))
    image_macs, _ = _count(spec, aspect or PHOTO_ASPECT)
    macs = image_macs * spec.train.batch_size / resources.workers
    # more threads give less each: 0.8 fits the runs that were measured
    step_s = CORE_REST_S + macs / (CORE_MACS_PER_S * threads**0.8)
    basis = (
        f"by size ({macs:.2g} multiply-adds an update, {threads} core{'s' if threads > 1 else ''} "
        "a worker), without evaluations; may be off by a factor of two: a short run measures it"
    )
    return step_s, basis


def _count(config: BoxSegConfig, aspect: float) -> tuple[float, float]:
    """Of one image: multiply-adds (forwards, twice that backwards, the teacher's), and bytes kept for the way back."""
    cost, width = BACKBONE_COSTS[config.model.backbone], config.model.channels
    towers = 2 * config.model.tower_convs  # one tower for classes, one for boxes
    train, teacher = config.train, config.teacher
    # one convolution before, one behind
    macs = cost.macs * 1e9 / CARD_PIXELS + (towers + 2) * 9 * width**2 * CELLS
    # two or three values for each convolution: norm and activation
    network = 2 * cost.activations * 1e6 / CARD_PIXELS + (2 + 3 * towers) * width * CELLS
    # maps of eight neighbours in the pairwise term
    losses = config.cond.max_per_image * (4 * 8 + 4) / 4**2
    pixels = [_pixels(side, train.max_size, aspect) for side in train.short_sides]
    seen = 3 * fmean(pixels)
    if teacher.on:
        resized = teacher.resize_short
        seen += fmean(pixels) if resized is None else _pixels(resized, teacher.resize_long, aspect)
    # auto counts as bf16, which it is on GPUs that have it
    value_bytes = 4 if train.precision == "fp32" else 2
    # the largest size decides over memory, as the mean does over time
    kept_bytes = max(pixels) * (value_bytes * network + 4 * losses)  # losses are always fp32
    return seen * macs, kept_bytes


def _pixels(short: int, longest: int, aspect: float) -> float:
    """Area of a view [px]."""
    # smaller than asked for where the long side meets its limit
    short_side = min(short, longest / aspect)
    return short_side**2 * aspect
