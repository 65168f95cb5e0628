"""Parameter groups, the optimizer, and the learning rate as a pure function of the step."""

from __future__ import annotations

from bisect import bisect_right
from math import cos, pi

import torch
from torch import nn
from torch.optim import Optimizer

from boxseg.config.method import SolverConfig

WARMUP_START = 0.001
"""Share of the base rate at the first step of the warm-up."""


def build_optimizer(network: nn.Module, settings: SolverConfig) -> Optimizer:
    """Optimizer over all trainable parameters; those of the backbone get a scaled rate.

    The layer `finer`, by which a plain ViT gets a finer map, is as new as the heads and learns at their rate.
    Weight decay acts on every parameter, norms and biases included (`docs/method.md#optimizer-and-schedule`).
    """
    backbone: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            is_of_backbone = name.startswith("backbone.") and ".finer." not in name
            (backbone if is_of_backbone else rest).append(parameter)
    groups = [
        # `set_lr` overwrites `lr` at each step; `base_lr` stays, and torch saves and loads it as well.
        {"params": parameters, "lr": settings.lr * scale, "base_lr": settings.lr * scale}
        for parameters, scale in ((rest, 1.0), (backbone, settings.backbone_lr_scale))
        if parameters
    ]
    decay = settings.weight_decay
    # `fused`: one operation does what would otherwise be several for each tensor.
    if settings.optimizer == "adamw":
        betas = (0.9, settings.beta2)
        return torch.optim.AdamW(groups, betas=betas, weight_decay=decay, fused=True)
    return torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=decay, fused=True)


def lr_factor(step: int, steps: int, settings: SolverConfig) -> float:
    """Factor on the base learning rate at `step` (0-based) of `steps`; in (0, 1].

    The warm-up, here in steps, multiplies the schedule, so that a milestone inside it is not lost.
    Source: `docs/method.md#optimizer-and-schedule`.
    """
    warm, warmup_steps = 1.0, round(settings.warmup)
    if step < warmup_steps:
        warm = WARMUP_START + (1 - WARMUP_START) * step / warmup_steps
    if settings.schedule == "cosine":
        return warm * 0.5 * (1 + cos(pi * min(step / steps, 1.0)))
    milestones = [round(share * steps) for share in settings.milestones]
    return warm * 0.1 ** bisect_right(milestones, step)


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Write `factor` times each group's base rate into the optimizer."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
